"""What a factory's day looked like minute by minute: of the whole, and of each deployment."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tokenmill.twin import floor_arrays as fa
from tokenmill.twin.fleet import Fleet, quantile
from tokenmill.twin.floor_arrays import Array


@dataclass(frozen=True, slots=True)
class AliasMinute:
    """One deployment in one minute; latencies are of requests whose first token, or end, fell into it.

    ``good_per_s`` are output tokens of requests that met both targets. ``waiting`` is as at the end.
    """

    offered_per_s: float
    output_per_s: float
    good_per_s: float
    refused_per_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    running: int
    waiting: int
    ready: int
    late: int
    slow: int


@dataclass(frozen=True, slots=True)
class Minute:
    """One row of the series; rates are means over the minute, the rest is as at its end.
    The last one may be shorter."""

    at_s: float
    requests_per_s: float
    output_per_s: float
    refused_per_s: float
    watts: float
    in_flight: int
    ready: int
    wanted: int
    training_accelerators: int
    jobs_waiting: int
    nodes_lost: int
    clock: int
    aliases: tuple[AliasMinute, ...] = ()


@dataclass(slots=True)
class Recorder:
    """Remembers the totals of the last minute, so that the next one is a difference."""

    fleet: Fleet
    offered: Array = field(init=False)  # by alias, since the last minute
    _served: Array = field(init=False)
    _refused: Array = field(init=False)
    _histograms: Array = field(init=False)

    def __post_init__(self) -> None:
        self.offered = np.zeros(len(self.fleet.routers), np.int64)
        self._keep()

    def minute(self, span_s: float) -> tuple[AliasMinute, ...]:
        """Every deployment over the ``span_s`` since the last call."""
        floor = self.fleet.floor
        served, refused = floor.served - self._served, floor.refused - self._refused
        times = floor.histograms - self._histograms
        state = floor.replicas
        found = []
        for alias in range(len(self.fleet.routers)):
            pool = self.fleet.pools[alias, : self.fleet.sizes[alias]]
            found.append(
                AliasMinute(
                    offered_per_s=float(self.offered[alias]) / span_s,
                    output_per_s=float(served[alias, fa.MADE]) / span_s,
                    good_per_s=float(served[alias, fa.MADE_GOOD]) / span_s,
                    refused_per_s=float(refused[alias]) / span_s,
                    ttft_p50_s=quantile(times[alias, fa.TTFT], 0.5),
                    ttft_p99_s=quantile(times[alias, fa.TTFT], 0.99),
                    tpot_p50_s=quantile(times[alias, fa.TPOT], 0.5),
                    tpot_p99_s=quantile(times[alias, fa.TPOT], 0.99),
                    running=int(state["batch"][pool].sum()),
                    waiting=int(state["waiting"][pool].sum()),
                    ready=len(pool),
                    late=int(served[alias, fa.LATE]),
                    slow=int(served[alias, fa.SLOW]),
                )
            )
        self.offered[:] = 0
        self._keep()
        return tuple(found)

    def _keep(self) -> None:
        floor = self.fleet.floor
        self._served, self._refused = floor.served.copy(), floor.refused.copy()
        self._histograms = floor.histograms.copy()
