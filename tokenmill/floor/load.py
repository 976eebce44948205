"""What the gateway says about load, as events: read from the file that it writes every second."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tokenmill.domain.events import LoadReported

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
