"""A step table with a figure that cannot be is refused, by field."""

import math
from dataclasses import replace

import pytest

from tokenmill.domain.errors import DataError
from tokenmill.twin.step_table import EngineRules, StepTable

RULES = EngineRules(token_budget=32, max_sequences=8)
TABLE = StepTable("engine", tuple(0.01 for _ in range(33)), 1e-8, 1e-10, 10_000, RULES)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seconds", (0.01,) * 5),
        ("seconds", (0.01, math.nan, *(0.01,) * 31)),
        ("seconds", (0.0,) * 33),
        ("joules", (1.0,)),
        ("cached_token_s", -1.0),
        ("pair_s", math.inf),
        ("idle_w", math.nan),
        ("cache_tokens", 0),
    ],
)
def test_a_wrong_figure_is_named(field, value):
    with pytest.raises(DataError) as caught:
        replace(TABLE, **{field: value})
    assert field in str(caught.value) or "takes no time" in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"max_sequences": 0}, {"token_budget": 0}, {"tokens_per_step": 2.0}, {"block_tokens": 0}]
)
def test_rules_that_no_engine_can_follow(wrong):
    with pytest.raises(DataError):
        EngineRules(**wrong)


def test_the_table_reaches_to_the_largest_batch():
    assert EngineRules(token_budget=4, max_sequences=8, draft_tokens=3, tokens_per_step=2).most_tokens == 33
