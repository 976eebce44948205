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


@dataclass(slots=True)
class LoadWatch:
    """Turns ``run/gateway.json`` into ``LoadReported``: for a deployment whose load changed, and for every
    loaded one now and then."""

    file: Path
    _last: dict[str, tuple[int, int]] = field(default_factory=dict)
    _refused: dict[str, int] = field(default_factory=dict)
    _reported_us: dict[str, int] = field(default_factory=dict)

    def look(self, now_us: int) -> list[LoadReported]:
        """Return what is new. Blocks for a moment; runs in a thread."""
        events = []
        for name, (in_flight, refused_total) in sorted(read_load(self.file, now_us).items()):
            before = self._refused.get(name, refused_total)
            refused = max(0, refused_total - before)
            self._refused[name] = refused_total
            quiet = self._last.get(name, (0, 0)) == (in_flight, refused)
            recent = now_us - self._reported_us.get(name, 0) < REPEAT_US
            if quiet and (recent or (in_flight, refused) == (0, 0)):
                continue
            self._last[name] = (in_flight, refused)
            self._reported_us[name] = now_us
            events.append(LoadReported(now_us, name, in_flight, refused))
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


def read_load(path: Path, now_us: int) -> dict[str, tuple[int, int]]:
    """Return alias -> (requests in flight, requests refused for want of a free slot since its start)."""
    found = _read(path)
    if now_us - int(found.get("heartbeat_us", 0)) > STALE_US:
        return {}
    return {
        str(alias): (int(load.get("in_flight", 0)), int(load.get("refused_full", 0)))
        for alias, load in dict(found.get("deployments", {})).items()
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return {}
    return found if isinstance(found, dict) else {}
