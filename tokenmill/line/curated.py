"""What curating made of a data set: rows by split, and every other row with the reason why it was dropped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tokenmill.line.rows import Refused, Row

SPLITS = ("train", "validation", "test")


@dataclass(slots=True)
class Curated:
    """Rows by split, what was dropped with its reason, and the counts that go on the data card."""

    splits: dict[str, list[Row]] = field(default_factory=lambda: {name: [] for name in SPLITS})
    dropped: list[Refused] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    conflicts: list[dict[str, object]] = field(default_factory=list)
    redactions: Counter[str] = field(default_factory=Counter)
    rows_in: int = 0

    def drop(self, row: Row, kind: str, detail: str = "") -> None:
        self.reasons[kind] += 1
        reason = f"{kind}: {detail}" if detail else kind
        self.dropped.append(Refused(row.n, row.line, reason, row.messages[-1]["content"][:200]))

    @property
    def kept(self) -> int:
        return sum(len(rows) for rows in self.splits.values())
