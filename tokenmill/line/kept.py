"""The rows that curating still has, as places in a file that is read again, and short keys to compare them
by.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenmill.domain.redact import redacted
from tokenmill.domain.stations import CurateParams
from tokenmill.line.rows import Row, normalised, with_messages


@dataclass(slots=True)
class Kept:
    """Places of the rows that are still in, with what is needed to compare them: about 200 bytes for each."""

    places: list[int] = field(default_factory=list)
    prompts: list[bytes] = field(default_factory=list)  # keys of normalised prompts
    answers: list[bytes] = field(default_factory=list)
    held: int = 0  # so many of the first are of the held-out file

    def without(self, bad: set[int]) -> Kept:
        """The same without the rows at these indexes."""
        good = [at for at in range(len(self.places)) if at not in bad]
        held = sum(1 for at in good if at < self.held)
        return Kept(
            [self.places[at] for at in good],
            [self.prompts[at] for at in good],
            [self.answers[at] for at in good],
            held,
        )


class Prepared(Sequence[Row]):
    """Held-out rows, then the others, redacted where that is asked for; made anew each time."""

    def __init__(self, held_out: Sequence[Row], rows: Sequence[Row], params: CurateParams) -> None:
        self._held_out, self._rows, self._redact = held_out, rows, params.redact_pii

    def __len__(self) -> int:
        return len(self._held_out) + len(self._rows)

    def pair(self, at: int) -> tuple[Row, Counter[str]]:
        """Row ``at`` and what was redacted in it."""
        held = len(self._held_out)
        row = self._held_out[at] if at < held else self._rows[at - held]
        return redacted_row(row) if self._redact else (row, Counter())

    def __getitem__(self, at: Any) -> Any:
        return self.pair(at)[0]


class Prompts(Sequence[str]):
    """Normalised prompts of some rows, read when they are asked for."""

    def __init__(self, rows: Prepared, places: Sequence[int]) -> None:
        self._rows, self._places = rows, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, at: Any) -> Any:
        return normalised(self._rows[self._places[at]].prompt)


def key_of(text: str) -> bytes:
    """Eight bytes that tell texts apart: among ten million, two differ with the same key with p = 3e-6."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def redacted_row(row: Row) -> tuple[Row, Counter[str]]:
    """``row`` with every message redacted; the same object when there was nothing to redact."""
    counts: Counter[str] = Counter()
    messages = []
    for message in row.messages:
        text, found = redacted(message["content"])
        counts += found
        messages.append({**message, "content": text})
    rejected, found = redacted(row.rejected)
    counts += found
    return (with_messages(row, messages, rejected), counts) if counts else (row, counts)
