"""A clock that was set, seen by one that nobody can set."""

from __future__ import annotations

from tokenmill.domain.events import ClockSet
from tokenmill.floor.clock import LEAST_US, ClockWatch

HOUR_US = 3_600_000_000


class Clocks:
    def __init__(self) -> None:
        self.wall_us, self.steady_us = 1_800_000_000_000_000, 77

    def go_on(self, us: int) -> None:
        self.wall_us += us
        self.steady_us += us


def test_a_step_is_told_once_and_time_that_passes_is_none() -> None:
    clocks = Clocks()
    watch = ClockWatch(lambda: clocks.wall_us, lambda: clocks.steady_us)
    clocks.go_on(48 * HOUR_US)  # a laptop that slept
    assert watch.look() == ()
    for by_us in (HOUR_US, -HOUR_US, LEAST_US):
        clocks.wall_us += by_us
        assert watch.look() == (ClockSet(clocks.wall_us, by_us),)
        clocks.go_on(5)
        assert watch.look() == ()


def test_a_clock_that_is_corrected_by_and_by_is_not_set() -> None:
    clocks = Clocks()
    watch = ClockWatch(lambda: clocks.wall_us, lambda: clocks.steady_us)
    for _ in range(10):
        clocks.wall_us += LEAST_US - 1
        assert watch.look() == ()
