"""What the gateway says about load and outcomes, as events: read from its file of every second."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tokenmill.domain.events import LoadReported, OutcomesReported
from tokenmill.domain.outcomes import NOTHING_SEEN, Outcomes

STALE_US = 10_000_000
REPEAT_US = 10_000_000
SILENT_US = 5_000_000  # it writes every second


@dataclass(frozen=True, slots=True)
class Counts:
    """One deployment's load; ``refused_full`` and ``asleep`` count since the gateway's start, or a report."""

    in_flight: int = 0
    refused_full: int = 0
    asleep: int = 0
    wait_us: int = 0


AT_REST = Counts()


@dataclass(slots=True)
class LoadWatch:
    """Turns ``run/gateway.json`` into ``LoadReported``: for a deployment whose load changed, and for
    every one now and then, so that one that is idle is seen to be."""

    file: Path
    _last: dict[str, Counts] = field(default_factory=dict)
    _totals: dict[str, Counts] = field(default_factory=dict)
    _reported_us: dict[str, int] = field(default_factory=dict)

    def look(self, now_us: int) -> list[LoadReported]:
        """Return what is new. Blocks for a moment; runs in a thread."""
        events = []
        for name, total in sorted(read_load(self.file, now_us).items()):
            before = self._totals.get(name, total)
            self._totals[name] = total
            refused = max(0, total.refused_full - before.refused_full)
            asleep = max(0, total.asleep - before.asleep)
            counts = Counts(total.in_flight, refused, asleep, total.wait_us)
            recent = now_us - self._reported_us.setdefault(name, now_us) < REPEAT_US
            if recent and self._last.get(name, AT_REST) == counts:
                continue
            self._last[name] = counts
            self._reported_us[name] = now_us
            events.append(LoadReported(now_us, name, counts.in_flight, refused, asleep, counts.wait_us))
        return events


@dataclass(slots=True)
class OutcomeWatch:
    """Turns the gateway's counts per release into ``OutcomesReported`` about what is new.

    The first look after a start only takes note: what happened before it was reported, or is lost.
    """

    file: Path
    _last: dict[tuple[str, str], Outcomes] = field(default_factory=dict)
    _gateway: int = -1  # when the gateway that was read last had started

    def look(self, now_us: int) -> list[OutcomesReported]:
        """Return what is new. Blocks for a moment; runs in a thread."""
        found = _read(self.file)
        if now_us - int(found.get("heartbeat_us", 0)) > STALE_US:
            return []
        began_us = int(found.get("started_us", 0))
        first, another = self._gateway < 0, began_us != self._gateway
        self._gateway = began_us
        if another:
            self._last.clear()
        seen = _outcomes(found)
        events = []
        for key, counts in sorted(seen.items()):
            new = counts.minus(self._last.get(key, NOTHING_SEEN))
            if not first and new != NOTHING_SEEN:
                events.append(OutcomesReported(now_us, key[0], key[1], new))
        self._last = seen
        return events


def _outcomes(found: dict[str, Any]) -> dict[tuple[str, str], Outcomes]:
    return {
        (str(alias), str(release)): Outcomes(
            int(counts.get("requests", 0)),
            int(counts.get("errors", 0)),
            tuple((int(bucket), int(count)) for bucket, count in counts.get("latency", ())),
        )
        for alias, releases in dict(found.get("outcomes", {})).items()
        for release, counts in dict(releases).items()
    }


def read_load(path: Path, now_us: int) -> dict[str, Counts]:
    """Return alias -> its load as the gateway last wrote it; nothing when that is old."""
    found = _read(path)
    if now_us - int(found.get("heartbeat_us", 0)) > STALE_US:
        return {}
    names = ("in_flight", "refused_full", "asleep", "wait_us")
    return {
        str(alias): Counts(*(int(load.get(name, 0)) for name in names))
        for alias, load in dict(found.get("deployments", {})).items()
    }


def drained(path: Path, replica: str, table_version: int, now_us: int) -> bool | None:
    """Whether the gateway has no open request on a replica and, knowing the table that takes it out, will
    give it none. ``None`` when no gateway says anything now."""
    found = _read(path)
    if now_us - int(found.get("heartbeat_us", 0)) > SILENT_US:
        return None
    if int(found.get("table_version", -1)) < table_version:
        return False
    seen = dict(found.get("endpoints", {})).get(replica, {})
    return not int(seen.get("in_flight", 0))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return {}
    return found if isinstance(found, dict) else {}
