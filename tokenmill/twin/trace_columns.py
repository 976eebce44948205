"""Traces as arrays for the compiled core, and ServeGen's clients as a generator of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tokenmill.domain.errors import DataError
from tokenmill.twin import floor_arrays as fa
from tokenmill.twin.demand import generator, merged
from tokenmill.twin.floor_arrays import Array
from tokenmill.twin.traces import TraceRow

WINDOW_S = 600.0
LENGTHS_S = 21_600.0
DISTRIBUTIONS = ("Gamma", "Weibull")


def columns(rows: Sequence[TraceRow], seed: int, alias: int = 0) -> tuple[Array, Array]:
    """Records of ``REQUEST`` in order of time with ids from 0, and the prefix units that they name."""
    ordered = sorted(range(len(rows)), key=lambda i: (rows[i].at_s, i))
    made = np.zeros(len(rows), fa.REQUEST)
    kept = [rows[i] for i in ordered]
    made["at"] = [row.at_s for row in kept]
    made["input"] = [row.input_tokens for row in kept]
    made["output"] = [row.output_tokens for row in kept]
    counts = np.array([len(row.prefix) for row in kept], np.int64)
    made["units"] = counts
    made["key"] = np.cumsum(counts) - counts
    made["alias"] = alias
    made["id"] = np.arange(len(rows))
    draw = generator(seed, "trace", alias)
    for name in ("draw", "draw2"):
        made[name] = draw.integers(0, 2**31 - 1, len(rows), dtype=np.int32, endpoint=True)
    return made, np.array([key for row in kept for key in row.prefix] or [0], np.int64)


@dataclass(frozen=True, slots=True)
class ServeGen:
    """Clients of one production model (ServeGen, Alibaba 2025): rates by 10 minutes, lengths by 6 hours.

    ``rates`` has the columns client, t, rate, dist, p1; ``lengths`` client, t, field, value, prob, of which
    fields input_tokens and output_tokens are used. Both are columns of one model.
    """

    rates: Mapping[str, Array]
    lengths: Mapping[str, Array]

    def __post_init__(self) -> None:
        """Raise ``DataError`` that names table, row and field of what makes no sense."""
        for table, columns_of, numbers in (
            ("rates", self.rates, ("client", "t", "rate", "p1")),
            ("lengths", self.lengths, ("client", "t", "value", "prob")),
        ):
            for field in numbers:
                if field not in columns_of:
                    raise DataError(f"{table} has no column {field}", expected=", ".join(numbers))
                values = np.asarray(columns_of[field], np.float64)
                wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
                if len(wrong):
                    row = int(wrong[0])
                    found = f"{field} is {values[row]}"
                    raise DataError(found, expected="zero or more", where=f"{table}, row {row}")
        unknown = sorted({str(kind) for kind in np.unique(self.rates["dist"])} - set(DISTRIBUTIONS))
        if unknown:
            raise DataError(f"rates: dist is {unknown[0]!r}", expected=" or ".join(DISTRIBUTIONS))

    def window(self, seed: int, start_s: float, alias: int = 0) -> Array:
        """All requests of the ten minutes from ``start_s``, every client with gaps and lengths of its own.

        A client whose lengths are not known takes those of all others.
        """
        at = np.flatnonzero(np.asarray(self.rates["t"]) == start_s)
        parts = [self._client(seed, start_s, int(row), alias) for row in at]
        parts = [part for part in parts if len(part)]
        return merged(parts) if parts else np.zeros(0, fa.REQUEST)

    def _client(self, seed: int, start_s: float, row: int, alias: int) -> Array:
        client = int(self.rates["client"][row])
        draw = generator(seed, "servegen", client, start_s)
        count = int(draw.poisson(float(self.rates["rate"][row]) * WINDOW_S))
        made = np.zeros(count, fa.REQUEST)
        if count == 0:
            return made
        shape = max(1e-3, float(self.rates["p1"][row]))
        kind = self.rates["dist"][row]
        gaps = draw.standard_gamma(shape, count + 1) if kind == "Gamma" else draw.weibull(shape, count + 1)
        ends = np.cumsum(gaps)
        # The scale of the tables is rough: as upstream does, gaps are stretched to fill the window.
        made["at"] = start_s + ends[:-1] * (WINDOW_S / max(float(ends[-1]), 1e-300))
        made["input"] = self._lengths(draw, client, start_s, "input_tokens", count)
        made["output"] = self._lengths(draw, client, start_s, "output_tokens", count)
        made["tenant"] = 0
        made["key"] = client
        made["alias"] = alias
        made["id"] = -1
        for name in ("draw", "draw2"):
            made[name] = draw.integers(0, 2**31 - 1, count, dtype=np.int32, endpoint=True)
        return made

    def _lengths(
        self, draw: np.random.Generator, client: int, start_s: float, field: str, count: int
    ) -> Array:
        named = np.asarray(self.lengths["field"]) == field
        own = named & (np.asarray(self.lengths["client"]) == client)
        chosen = np.flatnonzero(own if own.any() else named)
        if not len(chosen):
            raise DataError(f"lengths has no {field}", expected="input_tokens and output_tokens")
        if own.any():
            times = np.asarray(self.lengths["t"])[chosen]
            wanted = math.floor(start_s / LENGTHS_S) * LENGTHS_S
            nearest = times[np.argmin(np.abs(times - wanted))]
            chosen = chosen[times == nearest]
        weights = np.asarray(self.lengths["prob"], np.float64)[chosen]
        values = np.asarray(self.lengths["value"])[chosen]
        found = draw.choice(values, count, p=weights / weights.sum())
        return np.maximum(1, found).astype(np.int32)
