from __future__ import annotations

from tokenmill.policy.scale import DOWN_AFTER_US, UP_AFTER_US, Bounds, Load, ScaleMemory, scale

FOUR = Bounds(1, 4, 4)
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
