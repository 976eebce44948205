from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.domain.factory import CanaryPlan, CanaryStep
from tokenmill.domain.outcomes import LATENCY_US, Outcomes, bucket_of
from tokenmill.policy.canary import Course, judge_step

SECOND = 1_000_000
PLAN = CanaryPlan((CanaryStep(50, 60 * SECOND), CanaryStep(250, 60 * SECOND)), patience_us=600 * SECOND)
LIKED = CanaryPlan((CanaryStep(50, 60 * SECOND),), feedback_milli=50)


def seen(requests: int = 100, errors: int = 0, ms: int = 100, good: int = 0, bad: int = 0) -> Outcomes:
    answered = requests - errors
    latency = ((bucket_of(ms * 1000), answered),) if answered else ()
    return Outcomes(requests, errors, latency, good, bad)


def judged(candidate: Outcomes, champion: Outcomes, at_s: int = 60, plan: CanaryPlan = PLAN) -> Course:
    found = judge_step(plan, 0, 0, candidate, champion, at_s * SECOND)
    assert found.reasons
    return found.course


def test_as_good_in_its_time_advances() -> None:
    assert judged(seen(), seen(), 59) is Course.WAIT
    assert judged(seen(), seen(), 60) is Course.ADVANCE


def test_clearly_worse_goes_back_before_its_time() -> None:
    assert judged(seen(5, 5), seen(0), 1) is Course.BACK
    assert judged(seen(4, 4), seen(0), 1) is Course.WAIT, "one unlucky moment says nothing"
    assert judged(seen(100, 40), seen(100, 38), 1) is Course.WAIT, "the champion fails as often"


@pytest.mark.parametrize(
    ("candidate", "champion", "word"),
    [
        (seen(100, 2), seen(), "failed"),
        (seen(ms=200), seen(ms=100), "95 %"),
        (seen(100, 100), seen(100, 100), "95 %"),
    ],
)
def test_a_broken_bound_goes_back_at_the_end(candidate: Outcomes, champion: Outcomes, word: str) -> None:
    found = judge_step(PLAN, 0, 0, candidate, champion, 60 * SECOND)
    assert found.course is Course.BACK
    assert word in " ".join(found.reasons)


def test_missing_evidence_is_waited_for_and_then_is_a_no() -> None:
    for candidate, champion in ((seen(49), seen()), (seen(), seen(49)), (seen(0), seen(0))):
        found = judge_step(PLAN, 0, 0, candidate, champion, 61 * SECOND)
        assert (found.course, found.check_us) == (Course.WAIT, 660 * SECOND)
        assert judged(candidate, champion, 660) is Course.BACK


def test_feedback_is_evidence_when_it_is_asked() -> None:
    assert judged(seen(), seen(), 60, LIKED) is Course.WAIT
    liked, disliked = seen(good=19, bad=1), seen(good=15, bad=5)
    assert judged(disliked, liked, 60, LIKED) is Course.BACK
    assert judged(liked, disliked, 60, LIKED) is Course.ADVANCE


def test_quantiles_are_right_within_a_bucket() -> None:
    assert Outcomes().latency_us(950) == 0
    slow = Outcomes(100, 0, ((bucket_of(10_000), 90), (bucket_of(900_000), 10)))
    assert 0.8 * 900_000 < slow.latency_us(950) < 1.2 * 900_000
    assert Outcomes(1, 0, ((len(LATENCY_US), 1),)).latency_us(950) >= LATENCY_US[-1]


counts = st.builds(
    Outcomes,
    st.integers(0, 500),
    st.integers(0, 500),
    st.dictionaries(st.integers(0, 80), st.integers(1, 50), max_size=4).map(
        lambda d: tuple(sorted(d.items()))
    ),
    st.integers(0, 9),
    st.integers(0, 9),
)


@given(counts, counts)
def test_what_was_added_can_be_taken_off(one: Outcomes, other: Outcomes) -> None:
    assert one.plus(other).minus(other) == one
    assert one.plus(other) == other.plus(one)
