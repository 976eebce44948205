"""What curating made of a data set: rows by split, and every other row with the reason why it was dropped.

Rows are not held but read again when they are asked for, so that a data set may be larger than memory.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import overload

from tokenmill.line.rows import Refused, Row

SPLITS = ("train", "validation", "test")
RAW_CHARACTERS = 200


class Picked(Sequence[Row]):
    """Some rows of a data set, made by ``make`` from their places each time they are asked for."""

    def __init__(self, make: Callable[[int], Row], places: Sequence[int] = ()) -> None:
        self._make = make
        self.places = array("Q", places)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | list[Row]:
        if isinstance(at, slice):
            return [self._make(place) for place in self.places[at]]
        return self._make(self.places[at])


def _none(at: int) -> Row:
    raise IndexError(at)


@dataclass(slots=True)
class Curated:
    """Rows by split, what was dropped with its reason, and the counts that go on the data card."""

    splits: dict[str, Picked] = field(default_factory=lambda: {name: Picked(_none) for name in SPLITS})
    dropped: list[Refused] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    conflicts: list[dict[str, object]] = field(default_factory=list)
    redactions: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    rows_in: int = 0

    def drop(self, row: Row, kind: str, detail: str = "") -> None:
        self.reasons[kind] += 1
        reason = f"{kind}: {detail}" if detail else kind
        self.dropped.append(Refused(row.n, row.line, reason, row.completion[:RAW_CHARACTERS]))

    @property
    def kept(self) -> int:
        return sum(len(rows) for rows in self.splits.values())
