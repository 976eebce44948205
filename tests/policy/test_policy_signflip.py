"""The exact sign-flip test and the gate on graded scores: against counting by hand, and how often luck
passes.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.policy import signflip
from tokenmill.policy.gate import NAMED, judge
from tokenmill.policy.signflip import mean_interval, sign_flip_p, t95


@given(st.lists(st.integers(-30, 30), min_size=1, max_size=9))
def test_p_is_the_share_of_sign_patterns_that_sum_to_as_much(differences: list[int]) -> None:
    observed = sum(differences)
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    sums = [sum(sign * abs(d) for sign, d in zip(p, differences, strict=True)) for p in patterns]
    assert sign_flip_p(differences) == pytest.approx(sum(s >= observed for s in sums) / len(sums))


def test_the_normal_limit_is_near_the_exact_count(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(3)
    differences = [draw.randint(-500, 560) for _ in range(150)]
    exact = sign_flip_p(differences)
    monkeypatch.setattr(signflip, "EXACT_BITS", 0)
    assert sign_flip_p(differences) == pytest.approx(exact, abs=0.01)


def test_students_quantile_and_the_interval() -> None:
    table = {4: 2.776, 10: 2.228, 30: 2.042, 100: 1.984}
    assert all(t95(v) == pytest.approx(t, abs=0.01) for v, t in table.items())
    low, high = mean_interval([0, 10, 20, 30])
    assert (low + high) / 2 == 15
    assert high - 15 == pytest.approx(3.182 * 12.91 / 2, rel=0.02)


NAMES = dict.fromkeys((*NAMED, "base_weights", "champion_weights"), "sha256:x")


def graded(differences: Any, **more: Any) -> dict[str, Any]:
    subjects = {"base": {"score_milli": 400}, "candidate": {"score_milli": 500}}
    n = len(differences) if differences else 60
    found = {"metric": "f1", "graded": True, "n": n, "differences_milli": {"base": differences}}
    return {**found, "subjects": subjects, "digests": NAMES, **more}


def test_graded_scores_pass_by_their_differences() -> None:
    verdict = judge(graded([100, 250, -50, 100] * 15), {"min_items": 50}, champion=False)
    assert verdict.passed
    assert (verdict.n, verdict.difference_milli, verdict.candidate_milli) == (60, 100, 500)
    assert 0 < verdict.low_milli < 100 < verdict.high_milli
    worse = judge(graded([-100, -250, 50, -100] * 15), {"min_items": 50}, champion=False)
    assert not worse.passed
    assert not judge(graded([100] * 10), {"min_items": 50}, champion=False).passed


@pytest.mark.parametrize(
    "evidence",
    [
        graded(None),
        graded([True] * 60),
        graded([0.5] * 60),
        graded([100] * 60, n=61),
        graded([100] * 60, differences_milli="x"),
        graded([100], n=1),
    ],
)
def test_evidence_that_is_missing_or_odd_never_passes(evidence: dict[str, Any]) -> None:
    assert not judge(evidence, {"min_items": 1}, champion=False).passed


def bounded(bounds: list[str], candidate: dict[str, Any], **others: Any) -> Any:
    pairs = {"both": 50, "neither": 10, "candidate_only": 30, "reference_only": 5}
    subjects = {"candidate": candidate, "base": {"ttft_ms_p95": 100.0, "f1_milli": 700}, **others}
    evidence = {
        "metric": "exact_match",
        "n": 95,
        "pairs": {"base": pairs},
        "subjects": subjects,
        "digests": NAMES,
    }
    return judge(evidence, {"bounds": bounds, "min_items": 50}, champion=bool(others.get("champion")))


def test_bounds_on_other_figures_are_kept_or_shut_the_gate() -> None:
    good = {"ttft_ms_p95": 120.0, "f1_milli": 690, "safety_milli": 900}
    bounds = ["safety_milli >= 900", "ttft_ms_p95 <= 1.5 x base", "f1_milli >= base - 20"]
    assert bounded(bounds, good).passed
    for name, value in (("safety_milli", 899), ("ttft_ms_p95", 151), ("f1_milli", 679)):
        verdict = bounded(bounds, {**good, name: value})
        assert not verdict.passed
        (failed,) = [r for r in verdict.reasons if r.startswith("Failed")]
        assert name in failed
    for odd in ({}, {"safety_milli": None}, {"safety_milli": float("nan")}, {"safety_milli": True}):
        assert not bounded(bounds[:1], odd).passed
    assert not bounded(["f1_milli >= champion"], good, champion={}).passed
    # Without a champion the base is what must not be fallen behind.
    assert not bounded(["f1_milli >= champion"], good).passed
    assert bounded(["f1_milli >= champion - 10"], good).passed
    assert not bounded(["nonsense"], good).passed


def test_the_verdict_carries_the_digests_of_what_it_is_about() -> None:
    digests = {"data": "sha256:d", "engine": "xllamacpp 1", "settings": "sha256:s"}
    assert dict(judge(graded([100] * 60, digests=digests), {}, champion=False).digests) == digests
    assert dict(judge({"digests": digests}, {}, champion=False).digests) == digests


def test_equal_models_are_called_better_no_more_often_than_stated() -> None:
    """500 comparisons of models that are equally good, 120 items each: at most 5 % may pass, within luck."""
    draw = random.Random(11)
    params = {"min_items": 50, "alpha": 0.05}
    graded_passes = exact_passes = 0
    for _ in range(500):
        noise = [round(draw.gauss(0, 200) / 10) * 10 for _ in range(120)]
        graded_passes += judge(graded(noise), params, champion=False).passed
        coins = [draw.random() < 0.5 for _ in range(draw.randint(10, 60))]
        pairs = {"both": 60, "neither": 10, "candidate_only": sum(coins)}
        pairs["reference_only"] = len(coins) - sum(coins)
        evidence = {"metric": "exact_match", "n": 70 + len(coins), "pairs": {"base": pairs}, "digests": NAMES}
        exact_passes += judge(evidence, params, champion=False).passed
    # 500 throws at 5 % give 25 on average, and more than 40 with a chance of 0.1 %.
    assert graded_passes <= 40
    assert exact_passes <= 40
    assert graded_passes >= 8


def test_a_real_gain_is_found() -> None:
    draw = random.Random(12)
    found = sum(
        judge(
            graded([round(draw.gauss(60, 200)) for _ in range(120)]), {"min_items": 50}, champion=False
        ).passed
        for _ in range(40)
    )
    assert found >= 32  # its power at this size is 0.95
