"""Own time: of the forward pass alone, per token; a slow rank is named by every other's clock."""

from typing import Any

import pytest

from tokenmill.engine.gang import Gang
from tokenmill.engine.own_time import OwnTime, compared


def test_who_is_clearly_above_the_median_is_named():
    assert compared([100.0, 101.0, 160.0, 99.0], 7).slow == ((2, 160),)
    assert compared([100.0, 200.0], 7).slow == ((1, 200),), "of two it is the slower one"
    assert compared([100.0, 100.0], 7).slow == ()


def test_a_window_is_ten_steps_and_fifteen_seconds_and_counts_training_only():
    torch = pytest.importorskip("torch", reason="the tune extra is not installed")

    class Model(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, input_ids: Any) -> Any:
            return input_ids * 2

    class Two(Gang):
        def gather(self, value: float) -> list[float]:
            seen.append(value)
            return [value, 3 * value]

    seen: list[float] = []
    model, times = Model(), OwnTime(Two(0, 2, 0))
    times.watch(model)
    ids = torch.ones((2, 4), dtype=torch.long)
    for step in range(12):
        model.train(step != 5)
        model(input_ids=ids)
        times.stepped(100.0 + 1.4 * step)
    assert times.last is not None
    assert times.last.slow[0][0] == 1
    assert len(seen) == 1
    assert seen[0] > 0
    alone = OwnTime(Gang())
    alone.watch(model)
    for step in range(40):
        alone.stepped(float(step))
    assert alone.last is None
