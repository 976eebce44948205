"""Bytes of a data file as records: JSONL lines and CSV records, each with its line number, none lost.

A record that cannot be read comes out as ``Refused`` with the reason; reading goes on with the next line.
Knows nothing about what a row means.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

import orjson

from tokenmill.domain.errors import DataError
from tokenmill.domain.profile import Profile
from tokenmill.domain.stations import IntakeParams
from tokenmill.line.rows import Refused
from tokenmill.store.parquet import parquet_lines

BOM = b"\xef\xbb\xbf"
WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
PARQUET_LEAST_BYTES = 64
RAW_CHARACTERS = 2000
RECORD_LINES = 1000  # of one CSV record; a quote that never closes is found out after so many


@dataclass(frozen=True, slots=True)
class Record:
    n: int
    line: int
    values: dict[str, Any]


@dataclass(slots=True)
class Source:
    """An open data file, the place that reading has come to, and what was seen on the way."""

    path: Path
    params: IntakeParams
    bytes_read: int = 0
    blank_lines: int = 0
    bom: bool = False
    line: int = 0
    records: int = 0
    header: tuple[str, ...] = ()
    sha: Any = field(default_factory=hashlib.sha256)
    bytes_before: int = 0  # of the files before this one
    profile: Profile = field(default_factory=Profile)

    @property
    def format(self) -> str:
        if self.params.format != "auto":
            return self.params.format
        name = self.path.name.lower().removesuffix(".gz")
        if name.endswith((".csv", ".tsv")):
            return "csv"
        return "parquet" if name.endswith(".parquet") or _is_parquet(self.path) else "jsonl"

    def go_on_from(self, before: Source) -> None:
        """Count rows and bytes on from the file before."""
        self.records = before.records
        self.bytes_before = before.bytes_before + before.bytes_read

    def read(self) -> Iterator[Record | Refused]:
        """Every record in file order. Raises ``DataError`` when the file as a whole cannot be read."""
        try:
            if self.format == "parquet":
                yield from parquet_records(self)
                return
            with self._open() as file:
                yield from (_csv if self.format == "csv" else _jsonl)(self, file)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(
                f"the packed file is broken after {self.bytes_read:,} unpacked bytes: {error}",
                where=f"{self.path}:{self.line}",
                expected="a whole gzip file",
                fix="Copy or pack the file again.",
            ) from error

    def _open(self) -> IO[bytes]:
        if not self.path.is_file():
            raise DataError(
                "there is no such data file",
                where=str(self.path),
                expected="a JSONL or CSV file",
                fix="Correct the path; it is relative to the factory file.",
            )
        if self.path.name.lower().endswith(".gz"):
            return cast(IO[bytes], gzip.open(self.path, "rb"))
        return self.path.open("rb")

    def lines(self, file: IO[bytes]) -> Iterator[tuple[int, int, bytes, bool]]:
        """Physical lines: (line number, byte offset, bytes, whether it was too long and is cut)."""
        limit = self.params.max_row_bytes
        while raw := file.readline(limit + 1):
            self.line += 1
            offset = self.bytes_read
            size, whole = len(raw), raw.endswith(b"\n") or len(raw) <= limit
            self.sha.update(raw)
            rest = raw
            while not rest.endswith(b"\n") and (rest := file.readline(1 << 16)):
                self.sha.update(rest)
                size += len(rest)
            self.bytes_read += size
            if raw.strip():
                self.profile.add(raw, size)
            if self.bytes_before + self.bytes_read > self.params.max_bytes:
                raise DataError(
                    f"the file has more than {self.params.max_bytes:,} bytes",
                    where=f"{self.path}:{self.line}",
                    expected="a file within max_bytes",
                    fix="Raise max_bytes of the intake station, or use a smaller file.",
                )
            if offset == 0 and raw.startswith(BOM):
                raw, self.bom = raw[len(BOM) :], True
            yield self.line, offset, raw, not whole

    def next_record(self) -> int:
        """Number of the record that starts now. Raises ``DataError`` beyond ``max_rows``."""
        self.records += 1
        if self.records > self.params.max_rows:
            raise DataError(
                f"the file has more than {self.params.max_rows:,} rows",
                where=f"{self.path}:{self.line}",
                expected="a file within max_rows",
                fix="Raise max_rows of the intake station, or use a smaller file.",
            )
        return self.records


def parquet_records(source: Source) -> Iterator[Record | Refused]:
    """Rows of a Parquet file; ``line`` is the row's number in its file."""
    lines = parquet_lines(source.path)
    first = next(lines, None)  # a file that is not there is refused before its bytes are counted
    with source.path.open("rb") as whole:
        source.sha = hashlib.file_digest(whole, "sha256")
    source.bytes_read = source.path.stat().st_size
    for encoded in chain([] if first is None else [first], lines):
        source.line += 1
        source.profile.add(encoded, len(encoded))
        n = source.next_record()
        if len(encoded) > source.params.max_row_bytes:
            reason = f"row is longer than {source.params.max_row_bytes:,} bytes"
            yield Refused(n, source.line, reason, _shown(encoded))
            continue
        values = orjson.loads(encoded)
        source.header = source.header or tuple(values)
        yield Record(n, source.line, values)


def _is_parquet(path: Path) -> bool:
    """Whether a file without a telling name has Parquet's mark at both ends, as an uploaded one may."""
    try:
        with path.open("rb") as file:
            first = file.read(4)
            file.seek(-4, 2)
            return first == file.read(4) == b"PAR1" and path.stat().st_size > PARQUET_LEAST_BYTES
    except OSError:
        return False


def _jsonl(source: Source, file: IO[bytes]) -> Iterator[Record | Refused]:
    limit = source.params.max_row_bytes
    for line, offset, raw, too_long in source.lines(file):
        if not raw.strip():
            source.blank_lines += 1
            continue
        n = source.next_record()
        if too_long:
            yield Refused(n, line, f"row is longer than {limit:,} bytes", _shown(raw))
            continue
        try:
            text = raw.decode(source.params.encoding).rstrip("\r\n")
            values = orjson.loads(text)
        except UnicodeDecodeError as error:
            yield Refused(n, line, _encoding_reason(source, offset, error), _shown(raw))
        except orjson.JSONDecodeError as error:
            yield Refused(n, line, f"not JSON at column {error.colno}: {error.msg}", _shown(raw))
        else:
            if isinstance(values, dict):
                yield Record(n, line, values)
            else:
                yield Refused(n, line, f"a JSON {type(values).__name__} instead of an object", _shown(raw))


class _QuoteError(Exception):
    """A CSV record that grows beyond what one record may be."""


def _csv(source: Source, file: IO[bytes]) -> Iterator[Record | Refused]:
    """CSV records. One with broken quotes costs its first line only: reading starts again on the next."""
    lines = source.lines(file)
    pending: deque[tuple[int, int, bytes, bool]] = deque()
    csv.field_size_limit(max(source.params.max_row_bytes, 131_072))
    while True:
        taken: list[tuple[int, int, bytes, bool]] = []

        def feed(taken: list[tuple[int, int, bytes, bool]] = taken) -> Iterator[str]:
            size = 0
            while (item := pending.popleft() if pending else next(lines, None)) is not None:
                taken.append(item)
                size += len(item[2])
                if len(taken) > 1 and (len(taken) > RECORD_LINES or size > source.params.max_row_bytes):
                    raise _QuoteError
                yield item[2].decode(source.params.encoding, "surrogateescape")

        try:
            cells = next(csv.reader(feed(), delimiter=source.params.delimiter, strict=True), None)
        except (csv.Error, _QuoteError) as error:
            pending.extendleft(reversed(taken[1:]))
            line, _, raw, too_long = taken[0]
            if not source.header:
                raise _header_error(source, f"the header cannot be read: {error}") from error
            reason = (
                f"row is longer than {source.params.max_row_bytes:,} bytes" if too_long else _quotes(error)
            )
            yield Refused(source.next_record(), line, reason, _shown(raw))
            continue
        if cells is None:
            return
        if not cells or (len(cells) == 1 and not cells[0].strip()):
            source.blank_lines += 1
        elif not source.header:
            source.header = _header(source, cells)
        else:
            yield _record(source, taken, cells)


def _record(source: Source, taken: list[tuple[int, int, bytes, bool]], cells: list[str]) -> Record | Refused:
    n, line = source.next_record(), taken[0][0]
    raw = b"".join(t[2] for t in taken)
    if any(t[3] for t in taken):
        return Refused(n, line, f"row is longer than {source.params.max_row_bytes:,} bytes", _shown(raw))
    for _, offset, part, _ in taken:
        try:
            part.decode(source.params.encoding)
        except UnicodeDecodeError as error:
            return Refused(n, line, _encoding_reason(source, offset, error), _shown(raw))
    if len(cells) != len(source.header):
        reason = f"{len(cells)} columns where the header has {len(source.header)}"
        return Refused(n, line, reason, _shown(raw))
    return Record(n, line, dict(zip(source.header, cells, strict=True)))


def _header(source: Source, cells: list[str]) -> tuple[str, ...]:
    names = tuple(cell.strip() for cell in cells)
    if not all(names) or len(set(names)) != len(names):
        raise _header_error(source, f"the header {names} has empty or repeated names")
    return names


def _header_error(source: Source, message: str) -> DataError:
    return DataError(
        message,
        where=f"{source.path}:{source.line}",
        expected="a first line with one name per column",
        fix="Correct the header, or the delimiter of the intake station.",
    )


def _quotes(error: Exception) -> str:
    if isinstance(error, _QuoteError) or "unexpected end" in str(error):
        return "a quote is opened and never closed"
    return f"broken quotes or cells: {error}"


def _encoding_reason(source: Source, offset: int, error: UnicodeDecodeError) -> str:
    at = offset + error.start + (len(BOM) if offset == 0 and source.bom else 0)
    wide = at == 0 and error.object.startswith(WIDE_BOMS)
    hint = " (it begins like UTF-16; iconv -f UTF-16 -t UTF-8 converts it)" if wide else ""
    return f"byte {at} of the file is not {source.params.encoding}: {error.reason}{hint}"


def _shown(raw: bytes) -> str:
    return raw[: RAW_CHARACTERS * 4].decode("utf-8", "replace")[:RAW_CHARACTERS].rstrip("\r\n")
