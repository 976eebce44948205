"""A clock that was set, seen by one that nobody can set."""

from __future__ import annotations

from tokenmill.domain.events import ClockSet, ControllerStarted, JobStarted, Tick
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


def test_a_machine_that_starts_with_a_clock_of_the_past_has_it_set_right_later() -> None:
    clocks = Clocks()
    watch = ClockWatch(lambda: clocks.wall_us, lambda: clocks.steady_us)
    before_us, ahead_us = clocks.wall_us - HOUR_US, clocks.wall_us + 50_000 * HOUR_US
    watch.follow([(1, ControllerStarted(before_us, 1)), (2, JobStarted(ahead_us, "far", 1))])
    assert watch.look() == (), "all is well, but for another machine's clock"
    watch.follow([(1, Tick(ahead_us)), (2, Tick(before_us))])
    (back,) = watch.look()
    assert back.by_us == -50_000 * HOUR_US
    clocks.wall_us += 50_001 * HOUR_US
    (right,) = watch.look()
    assert back.by_us + right.by_us == HOUR_US, "all that was waited for is that much later"
