"""Sees that the machine's clock was set: from then on it does not go with the time since the machine's start.

A clock that is corrected by and by, as NTP does it, is not set. One that was set while no controller ran is
seen if it is behind what the journal has: a machine may start with a wrong clock, which is set right later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from tokenmill.domain.events import ClockSet, ControllerStarted, Event, Tick
from tokenmill.domain.units import format_duration
from tokenmill.floor.ports import Clock

log = logging.getLogger(__name__)

LEAST_US = 2_000_000
LOOKED_BACK = 1000
"""Newest events in which one of a controller's own clock is looked for, at a start."""

OWN = (ControllerStarted, Tick, ClockSet)


def since_boot_us() -> int:
    """Time since the machine's start, sleep included, which nobody can set; that of ``/proc/PID/stat``."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class ClockWatch:
    """Compares the wall clock with a steady one, from look to look."""

    def __init__(self, now_us: Clock, steady_us: Clock) -> None:
        self._now_us = now_us
        self._steady_us = steady_us
        self._ahead_us = now_us() - steady_us()

    def follow(self, journal: Sequence[tuple[int, Event]]) -> None:
        """These happened before now: if one is still to come by this clock, it was set back.

        Other machines' clocks are not asked: only what a controller wrote by its own.
        """
        for _, event in journal:
            if isinstance(event, OWN):
                self._ahead_us = max(self._ahead_us, event.at_us - self._steady_us())

    def look(self) -> tuple[ClockSet, ...]:
        """What to tell the core before anything else that happens now."""
        now_us = self._now_us()
        ahead_us = now_us - self._steady_us()
        by_us, self._ahead_us = ahead_us - self._ahead_us, ahead_us
        if abs(by_us) < LEAST_US:
            return ()
        way = "forward" if by_us > 0 else "back"
        log.warning("the machine's clock was set %s by %s", way, format_duration(abs(by_us)))
        return (ClockSet(now_us, by_us),)
