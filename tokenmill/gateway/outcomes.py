"""How each release does, counted where its requests end: what the controller judges a candidate by.

A client's own mistakes and departures say nothing about a release and are not counted; an attempt that an
engine lost counts against its release, also when another one answered in its place. Counts only grow; the
controller takes differences. Decides nothing.
"""

from __future__ import annotations

from tokenmill.domain.ledger import Outcome, Settlement
from tokenmill.domain.outcomes import bucket_of
from tokenmill.domain.table import Endpoint

PAIRS_MOST = 1024
"""(alias, release) pairs that are counted; more than a table holds aliases and candidates."""


def answered(settlement: Settlement) -> bool | None:
    """Whether what served it answered or failed; ``None`` when this end says nothing about that."""
    if settlement.outcome is Outcome.OK:
        return True
    failed = settlement.outcome is Outcome.ENGINE_ERROR and settlement.status >= 500
    return False if failed or settlement.outcome is Outcome.ENGINE_FAILED else None


class Tally:
    """One release of one alias."""

    __slots__ = ("errors", "latency", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.latency: dict[int, int] = {}


class OutcomeCounts:
    """All releases of this gateway, since it started."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], Tally] = {}

    def settled(self, settlement: Settlement) -> None:
        """Count one request's end."""
        if not settlement.release:
            return
        found = answered(settlement)
        if found:
            tally = self._tally(settlement.alias, settlement.release)
            tally.requests += 1
            bucket = bucket_of(settlement.duration_us)
            tally.latency[bucket] = tally.latency.get(bucket, 0) + 1
        elif found is False:
            self._failed(settlement.alias, settlement.release)

    def lost(self, alias: str, endpoint: Endpoint | None) -> None:
        """Count an attempt that an engine lost and another one took over."""
        if endpoint is not None:
            self._failed(alias, endpoint.release)

    def _failed(self, alias: str, release: str) -> None:
        tally = self._tally(alias, release)
        tally.requests += 1
        tally.errors += 1

    def state(self) -> dict[str, dict[str, dict[str, object]]]:
        """Alias to release to counts, as ``run/gateway.json`` shows them."""
        shown: dict[str, dict[str, dict[str, object]]] = {}
        for (alias, release), tally in sorted(self._tallies.items()):
            shown.setdefault(alias, {})[release] = {
                "requests": tally.requests,
                "errors": tally.errors,
                "latency": sorted(tally.latency.items()),
            }
        return shown

    def _tally(self, alias: str, release: str) -> Tally:
        key = (alias, release)
        found = self._tallies.get(key)
        if found is None:
            if len(self._tallies) >= PAIRS_MOST:  # the oldest release is long gone from the table
                del self._tallies[next(iter(self._tallies))]
            found = self._tallies[key] = Tally()
        return found
