"""Measured rows of one configuration that no model could meet together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenmill.twin.bench_rows import ServingRow

APART = 1.5
"""The larger over the smaller. Of 328 configurations that the published table has more than once, 19 of 20
lie within 1.15."""


@dataclass(frozen=True, slots=True)
class Contradiction:
    """The two rows of one configuration whose ``quantity``, in seconds, lies furthest apart."""

    quantity: str
    low: ServingRow
    high: ServingRow
    low_s: float
    high_s: float

    @property
    def times(self) -> float:
        return self.high_s / self.low_s

    def __str__(self) -> str:
        apart = f"differ {self.times:.1f} times in {self.quantity.upper()}"
        values = f"{self.low_s * 1000:.4g} and {self.high_s * 1000:.4g} ms"
        return f"{self.low.where} and {self.high.where} measured the same configuration and {apart}: {values}"


def contradictions(rows: Sequence[ServingRow]) -> list[Contradiction]:
    """One for each configuration and quantity with rows more than ``APART`` from each other, worst first."""
    alike: dict[tuple[str, float], list[ServingRow]] = {}
    for row in rows:
        alike.setdefault((row.sweep, row.batch), []).append(row)
    found = []
    for group in alike.values():
        for quantity in ("tpot",) if group[0].decode_only else ("tpot", "ttft"):
            values = sorted((getattr(row, f"{quantity}_s"), row.where, at) for at, row in enumerate(group))
            (low_s, _, low), (high_s, _, high) = values[0], values[-1]
            if high_s > APART * low_s:
                found.append(Contradiction(quantity, group[low], group[high], low_s, high_s))
    return sorted(found, key=lambda one: (-one.times, one.low.where, one.quantity))
