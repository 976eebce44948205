"""What is remembered of a place's draw: against the whole of it, drawn at random."""

import random

import pytest

from tokenmill.domain.factory import Node
from tokenmill.policy.power import Cap, History, exceeded, remembered

WINDOW_US = 100


def least(seen: list[tuple[int, int]], now_us: int) -> int:
    """The least draw of the window, by all that was ever drawn."""
    ends = [at_us for at_us, _ in seen[1:]] + [now_us + 1]
    return min(mw for (_, mw), end in zip(seen, ends, strict=True) if end > now_us - WINDOW_US)


@pytest.mark.parametrize("seed", range(20))
def test_the_first_is_always_the_least_of_the_window(seed: int) -> None:
    draw, now_us = random.Random(seed), 0
    history: History = ()
    seen: list[tuple[int, int]] = []
    for _ in range(200):
        now_us += draw.choice((0, 1, 10, 60, 250))
        mw = draw.randrange(8)
        history = remembered(history, now_us, mw, WINDOW_US)
        seen.append((now_us, mw))
        assert history[0][1] == least(seen, now_us)
        assert history[-1][1] == mw
        assert list(history) == sorted(history)
        assert len({value for _, value in history}) == len(history)


def test_a_clock_that_was_set_back_forgets_nothing() -> None:
    history = remembered(remembered((), 1000, 5, WINDOW_US), 1050, 9, WINDOW_US)
    history = remembered(history, 20, 9, WINDOW_US)
    assert history[0][1] == 5
    assert remembered(history, 120, 9, WINDOW_US)[0][1] == 9


def test_a_bound_that_is_exceeded_by_little_is_told_apart_from_the_draw() -> None:
    node = Node("n", "s", cpu_millis=2000, idle_mw=50_000, power_mw=250_000)
    cap = {"site s": Cap("site s", 180_000)}
    assert exceeded(cap, {"site s": 150_000}, [(node, 50_000)])[1] == (
        "site s would draw 0.2 kW, its cap is 0.18 kW"
    )
