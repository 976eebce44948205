from __future__ import annotations

from tokenmill.domain.outcomes import MEASURED_US
from tokenmill.policy.scale import (
    DOWN_AFTER_US,
    LIMIT_US,
    UP_AFTER_US,
    Bounds,
    Load,
    ScaleMemory,
    because,
    scale,
)

FOUR = Bounds(1, 4, 4)
PROMISE = Bounds(1, 4, 10, attainment_milli=900)
SLEEPER = Bounds(0, 2, 4, idle_after_us=60_000_000)


def test_up_after_a_while_of_being_busy() -> None:
    first = scale(ScaleMemory(1), FOUR, Load(4), 100)
    assert first == ScaleMemory(1, busy_since_us=100)
    assert scale(first, FOUR, Load(4), 200) == first
    assert scale(first, FOUR, Load(8), 100 + UP_AFTER_US) == ScaleMemory(3)


def test_up_when_requests_wait_longer_than_the_target() -> None:
    late = Load(1, wait_us=3_000_000)
    first = scale(ScaleMemory(1), FOUR, late, 100)
    assert first.busy_since_us == 100
    assert scale(first, FOUR, late, 100 + UP_AFTER_US).wanted == 2
    assert scale(first, FOUR, Load(1, wait_us=1_000_000), 200) == ScaleMemory(1)


def test_up_at_once_when_requests_are_turned_away_but_never_past_the_most() -> None:
    assert scale(ScaleMemory(1), FOUR, Load(40, 3), 100) == ScaleMemory(4)
    assert scale(ScaleMemory(4), FOUR, Load(40, 3), 100).wanted == 4


def test_down_slowly_by_one() -> None:
    idle = scale(ScaleMemory(3), FOUR, Load(1), 100)
    assert idle == ScaleMemory(3, idle_since_us=100)
    assert scale(idle, FOUR, Load(1), 100 + DOWN_AFTER_US) == ScaleMemory(2)
    assert scale(idle, FOUR, Load(10), 200) == ScaleMemory(3, busy_since_us=200)


def test_sleeps_when_idle_and_wakes_on_request() -> None:
    idle = scale(ScaleMemory(1), SLEEPER, Load(0), 100)
    assert scale(idle, SLEEPER, Load(0), 100 + 59_000_000).wanted == 1
    assert scale(idle, SLEEPER, Load(1), 100 + 70_000_000) == ScaleMemory(1), "one request keeps it awake"
    asleep = scale(idle, SLEEPER, Load(0), 100 + 60_000_000)
    assert asleep == ScaleMemory(0)
    assert scale(asleep, SLEEPER, Load(0), 200_000_000) == asleep
    assert scale(asleep, SLEEPER, Load(0, asleep=1), 200_000_000) == ScaleMemory(1)


def test_no_flapping_at_any_steady_load() -> None:
    for load in range(40):
        memory, changes, now = ScaleMemory(1), 0, 1
        for _ in range(400):
            now += 2_000_000
            new = scale(memory, Bounds(1, 8, 4), Load(load), now)
            changes += new.wanted < memory.wanted
            memory = new
        assert changes == 0, f"load {load} scales down after it scaled up"


def test_a_missed_objective_adds_a_replica_and_is_remembered_as_the_limit_of_one() -> None:
    missed = Load(5, measured=40, attained=35, settled_us=100)
    now = 100 + MEASURED_US
    kept = Load(5, measured=40, attained=36, settled_us=100)
    assert scale(ScaleMemory(1), PROMISE, kept, now) == ScaleMemory(1)
    up = scale(ScaleMemory(1), PROMISE, missed, now)
    assert up == ScaleMemory(2, limit_milli=500, limit_us=now)
    # With two replicas, half of the slots are the limit from now on, before anything is missed again.
    busy = scale(up, PROMISE, Load(10), now + 1)
    assert busy.busy_since_us == now + 1
    assert scale(busy, PROMISE, Load(10), now + 1 + UP_AFTER_US).wanted == 3
    assert scale(up, PROMISE, Load(9), now + 1).busy_since_us == 0
    later = now + LIMIT_US
    assert scale(up, PROMISE, Load(10), later) == ScaleMemory(2), "the limit is forgotten after an hour"


def test_a_missed_objective_is_believed_only_of_replicas_that_it_speaks_of() -> None:
    now = 10 * MEASURED_US

    def after(load: Load, changed_us: int = 0) -> int:
        return scale(ScaleMemory(2, limit_us=changed_us), PROMISE, load, now).wanted

    assert after(Load(8, measured=40, attained=0)) == 3
    assert after(Load(8, measured=19, attained=0)) == 2, "too few answers"
    assert after(Load(8, measured=40, attained=0, settled_us=-1)) == 2, "one of the replicas still starts"
    assert after(Load(8, measured=40, attained=0, settled_us=now - MEASURED_US + 1)) == 2, "it just started"
    assert after(Load(8, measured=40, attained=0), now - 5_000_000) == 2, "the second was just added"
    assert after(Load(2, measured=40, attained=0)) == 2, "one request on each: others are not what is slow"
    assert scale(ScaleMemory(2), FOUR, Load(4, measured=40, attained=0), now) == ScaleMemory(2), "no promise"


def test_no_replica_goes_while_the_objective_is_missed_or_would_be_again() -> None:
    now = 10 * MEASURED_US
    idle = ScaleMemory(3, idle_since_us=now - DOWN_AFTER_US)
    assert scale(idle, PROMISE, Load(3), now).wanted == 2
    assert scale(idle, PROMISE, Load(3, measured=40, attained=10), now) == ScaleMemory(3)
    limited = ScaleMemory(3, idle_since_us=now - DOWN_AFTER_US, limit_milli=200, limit_us=now - 1)
    assert scale(limited, PROMISE, Load(3), now).idle_since_us == 0
    assert scale(limited, PROMISE, Load(2), now).wanted == 2


def test_a_service_that_is_slow_above_three_requests_settles_at_any_load() -> None:
    """Closed loop: answers come late while a replica has more than three requests, of ten slots."""
    bounds = Bounds(1, 12, 10, attainment_milli=950)
    for load in range(1, 34):
        memory, downs, now, changed = ScaleMemory(1), 0, 1, 1
        for _ in range(1500):  # 50 minutes, the hour in which the limit holds
            now += 2_000_000
            late = load > 3 * memory.wanted
            answers = Load(load, measured=60, attained=0 if late else 60, settled_us=changed)
            new = scale(memory, bounds, answers, now)
            downs += new.wanted < memory.wanted
            changed = now if new.wanted > memory.wanted else changed
            memory = new
        assert downs == 0, f"load {load} scales down after it scaled up"
        assert load <= 3 * memory.wanted, f"load {load} is still late with {memory.wanted} replicas"
        assert memory.wanted <= -(-load // 3) + 1, f"load {load} has {memory.wanted} replicas"


def test_each_change_says_because_of_what() -> None:
    late, full = Load(1, wait_us=3_200_000), Load(8)
    begun = ScaleMemory(2, busy_since_us=100)
    then = 100 + UP_AFTER_US
    assert because(ScaleMemory(0), SLEEPER, Load(0, asleep=1), 100) == (
        "0 -> 1 replicas, since somebody asked while it slept"
    )
    assert because(ScaleMemory(2), FOUR, full, 100) == ""
    assert because(begun, FOUR, full, then) == "2 -> 3 replicas, since 8 of 8 slots are in use"
    assert because(begun, FOUR, late, then) == (
        "2 -> 3 replicas, since the oldest request has waited 3.2 s for its first token, more than 2 s"
    )
    assert because(begun, FOUR, Load(8, 3), then) == (
        "2 -> 3 replicas, since 3 requests were turned away for want of a slot"
    )
    missed = Load(20, measured=100, attained=80)
    assert because(ScaleMemory(3), PROMISE, missed, MEASURED_US) == (
        "3 -> 4 replicas, since 80 of 100 answers of the last minute kept its objective"
    )
    idle = ScaleMemory(3, idle_since_us=100)
    assert because(idle, FOUR, Load(1), 100 + DOWN_AFTER_US) == (
        "3 -> 2 replicas, since 1 request in flight, and little for 2 m"
    )


def test_one_that_has_all_it_may_have_is_told_once() -> None:
    assert because(ScaleMemory(4), FOUR, Load(16), 100) == (
        "it has the 4 replicas that it may have at most, though 16 of 16 slots are in use"
    )
    assert because(ScaleMemory(4, busy_since_us=50), FOUR, Load(16), 100) == ""
