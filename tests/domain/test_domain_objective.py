"""Whether an answer came in the time that its deployment promises."""

from __future__ import annotations

import pytest

from tokenmill.domain.factory import Objective

BOTH = Objective(ttft_us=1_000_000, tpot_us=50_000)


@pytest.mark.parametrize(
    ("slo", "first_us", "duration_us", "tokens", "met"),
    [
        (BOTH, 1_000_000, 1_450_000, 10, True),
        (BOTH, 1_000_001, 1_450_001, 10, False),  # late
        (BOTH, 100_000, 550_001, 10, False),  # slow
        (BOTH, 100_000, 5_000_000, 1, True),  # one token has no time between tokens
        (BOTH, 0, 1_450_000, 10, True),  # not streamed: as long as a stream that just keeps both
        (BOTH, 0, 1_450_001, 10, False),
        (BOTH, 0, 1_000_001, 0, False),
        (Objective(ttft_us=1_000_000), 0, 90_000_000, 10, True),  # an end says nothing of a first token
        (Objective(ttft_us=1_000_000), 900_000, 90_000_000, 10, True),
        (Objective(tpot_us=50_000), 9_000_000, 9_450_000, 10, True),
        (Objective(tpot_us=50_000), 9_000_000, 9_450_001, 10, False),
    ],
)
def test_an_answer_keeps_its_objective(
    slo: Objective, first_us: int, duration_us: int, tokens: int, met: bool
) -> None:
    assert slo.met(first_us, duration_us, tokens) is met
