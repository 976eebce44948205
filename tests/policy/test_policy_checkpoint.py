"""The interval between checkpoints follows what was seen, within its bounds."""

from dataclasses import replace

import pytest

from tokenmill.domain.work import NO_UPTIME, Checkpoints, Uptime
from tokenmill.policy.checkpoint import LEAST_US, MOST_US, checkpoint_interval_s, pace

SECOND = 1_000_000
HOUR = 3600 * SECOND
SEEN = Checkpoints(save_us=SECOND)


def interval_us(seen: Checkpoints = SEEN, nodes: int = 1, ran_us: int = 0, uptime: Uptime = NO_UPTIME) -> int:
    found = pace(nodes, seen, ran_us, uptime, 100 * HOUR)
    assert found is not None
    return found.interval_us


def test_nothing_is_said_before_a_save_was_measured():
    assert pace(1, Checkpoints(interrupted=3, ran_us=HOUR), 0, NO_UPTIME, 0) is None


def test_it_is_the_optimum_of_the_rate_that_was_seen():
    seen = replace(SEEN, interrupted=23, ran_us=24 * HOUR)
    assert interval_us(seen) == pytest.approx(checkpoint_interval_s(1.0, 2 * 3600.0) * 1e6, rel=1e-6)


@pytest.mark.parametrize(
    "worse",
    [
        {"seen": replace(SEEN, interrupted=1)},
        {"nodes": 2},
        {"uptime": Uptime(node_us=HOUR, lost=1)},
    ],
    ids=["its own interruption", "more nodes", "a lost node"],
)
def test_what_fails_more_often_is_saved_more_often(worse):
    assert interval_us(**worse) < interval_us()


def test_hours_without_a_failure_and_dear_saves_make_it_longer():
    assert interval_us(ran_us=HOUR) > interval_us()
    assert interval_us(uptime=Uptime(nodes=10, at_us=0)) > interval_us()
    assert interval_us(replace(SEEN, save_us=2 * SECOND)) > interval_us()


def test_bounds_hold_and_are_named():
    often = pace(1, replace(SEEN, save_us=1000, interrupted=10_000), HOUR, NO_UPTIME, HOUR)
    seldom = pace(1, replace(SEEN, save_us=600 * SECOND), 0, Uptime(nodes=1000), 10_000 * HOUR)
    assert often is not None
    assert seldom is not None
    assert (often.interval_us, seldom.interval_us) == (LEAST_US, MOST_US)
    assert "the bound" in often.reason
    assert "10000 in 1.0 h of the job" in often.reason
    slow = replace(SEEN, save_us=60 * SECOND, interrupted=10_000)
    assert interval_us(slow, ran_us=HOUR) == 60 * SECOND, "saving takes half of the time at most"
