from __future__ import annotations

from tokenmill.policy.scale import DOWN_AFTER_US, UP_AFTER_US, ScaleMemory, scale


def test_up_after_a_while_of_being_busy() -> None:
    first = scale(ScaleMemory(1), 1, 4, 4, 4, 0, 100)
    assert first == ScaleMemory(1, busy_since_us=100)
    assert scale(first, 1, 4, 4, 4, 0, 200) == first
    assert scale(first, 1, 4, 4, 8, 0, 100 + UP_AFTER_US) == ScaleMemory(3)


def test_up_at_once_when_requests_are_turned_away_but_never_past_the_most() -> None:
    assert scale(ScaleMemory(1), 1, 4, 4, 40, 3, 100) == ScaleMemory(4)
    assert scale(ScaleMemory(4), 1, 4, 4, 40, 3, 100).wanted == 4


def test_down_slowly_by_one() -> None:
    idle = scale(ScaleMemory(3), 1, 4, 4, 1, 0, 100)
    assert idle == ScaleMemory(3, idle_since_us=100)
    assert scale(idle, 1, 4, 4, 1, 0, 100 + DOWN_AFTER_US) == ScaleMemory(2)
    assert scale(idle, 1, 4, 4, 10, 0, 200) == ScaleMemory(3, busy_since_us=200)


def test_no_flapping_at_any_steady_load() -> None:
    for load in range(40):
        memory, changes, now = ScaleMemory(1), 0, 1
        for _ in range(400):
            now += 2_000_000
            new = scale(memory, 1, 8, 4, load, 0, now)
            changes += new.wanted < memory.wanted
            memory = new
        assert changes == 0, f"load {load} scales down after it scaled up"
