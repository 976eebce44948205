"""A training row as the stations hand it on, its digest, and files of rows. Judges nothing about a row."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import msgspec
import orjson

from tokenmill.domain.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class Row(msgspec.Struct, frozen=True):
    """One conversation whose last message is the assistant's, the wanted answer.

    ``n`` counts the source's rows from 1 (broken ones too), ``line`` is where it starts in the file.
    """

    n: int
    line: int
    digest: str  # hex sha256 of the messages
    messages: tuple[Mapping[str, str], ...]
    columns: Mapping[str, Any] = {}
    group: str = ""
    rejected: str = ""  # the worse answer, of a preference row

    @property
    def prompt(self) -> str:
        """All that is said by users, which makes a row the same question as another."""
        return "\n".join(m["content"] for m in self.messages[:-1] if m["role"] not in ("system", "developer"))

    @property
    def completion(self) -> str:
        return self.messages[-1]["content"]


class Refused(msgspec.Struct, frozen=True):
    """A row that goes no further: where it stood, why, and (cut to 2,000 characters) what it was."""

    n: int
    line: int
    reason: str
    raw: str = ""


def row_of(
    n: int,
    line: int,
    messages: Iterable[Mapping[str, str]],
    columns: Mapping[str, Any],
    rejected: str = "",
) -> Row:
    """Build a row and its digest."""
    kept = tuple({k: m[k] for k in ("role", "content", "weight") if k in m} for m in messages)
    return Row(n, line, digest_of_messages(kept, rejected), kept, columns, rejected=rejected)


def digest_of_messages(messages: Iterable[Mapping[str, str]], rejected: str = "") -> str:
    """Hex sha256 of the messages' canonical JSON, and of the worse answer where there is one."""
    digest = hashlib.sha256(orjson.dumps(list(messages), option=orjson.OPT_SORT_KEYS))
    digest.update(rejected.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def with_messages(row: Row, messages: Iterable[Mapping[str, str]], rejected: str = "") -> Row:
    """``row`` with other messages and the digest that belongs to them."""
    kept = tuple(messages)
    digest = digest_of_messages(kept, rejected)
    return msgspec.structs.replace(row, messages=kept, rejected=rejected, digest=digest)


def in_group(row: Row, group: str) -> Row:
    """``row`` as a member of ``group``."""
    return msgspec.structs.replace(row, group=group)


_SPACE = re.compile(r"\s+")
_PUNCTUATION = re.compile(r"[^\w\s]+")


def normalised(text: str) -> str:
    """Text as duplicates are compared: NFKC, case folded, punctuation and repeated spaces gone."""
    plain = _PUNCTUATION.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    compared = _SPACE.sub(" ", plain).strip()
    return compared or _SPACE.sub(" ", text).strip()


def estimated_tokens(row: Row) -> int:
    """Tokens of a row without a tokenizer: four characters each, five per message for the template."""
    return sum(5 + (len(m["content"]) + 3) // 4 for m in row.messages)


def write_jsonl(path: Path, values: Iterable[Any]) -> int:
    """Write one JSON line per value and return how many. Raises ``OSError`` (disk full and the like)."""
    count = 0
    with path.open("wb") as file:
        for value in values:
            file.write(msgspec.json.encode(value) + b"\n")
            count += 1
    return count


class RowFile(Sequence[Row]):
    """Rows of a file that ``write_jsonl`` wrote, read when they are asked for: 8 bytes of memory for each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._decoder = msgspec.json.Decoder(Row)
        self._starts = array("Q")
        with path.open("rb") as file:
            at = 0
            for line in file:
                self._starts.append(at)
                at += len(line)
            self._starts.append(at)
        self._file = path.open("rb")

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | list[Row]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not 0 <= at < len(self):
            raise IndexError(at)
        self._file.seek(self._starts[at])
        line = self._file.read(self._starts[at + 1] - self._starts[at])
        try:
            return self._decoder.decode(line)
        except msgspec.DecodeError as error:
            raise _no_row(self._path, at + 1, error) from error

    def close(self) -> None:
        self._file.close()


def _no_row(path: Path, line: int, error: Exception) -> DataError:
    return DataError(
        f"not a row: {error}",
        where=f"{path}:{line}",
        expected="rows as intake or curate wrote them",
        fix="Run the line again with --force from the intake station.",
    )


def read_rows(path: Path) -> Iterator[Row]:
    """Read rows that ``write_jsonl`` wrote. Raises ``DataError`` naming the line that is not one."""
    decoder = msgspec.json.Decoder(Row)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield decoder.decode(line)
            except msgspec.DecodeError as error:
                raise _no_row(path, number, error) from error
