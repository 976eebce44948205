from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.policy.gate import NAMED, Pairs, exact_p, interval, judge


def evidence(b: int = 18, c: int = 2, champion: bool = False, **changes: Any) -> dict[str, Any]:
    pairs = {"both": 60, "neither": 20, "candidate_only": b, "reference_only": c}
    found: dict[str, Any] = {
        "metric": "exact_match",
        "n": 80 + b + c,
        "pairs": {"base": pairs, "champion": dict(pairs) if champion else None},
        "digests": dict.fromkeys((*NAMED, "base_weights", "champion_weights"), "sha256:x"),
    }
    return {**found, **changes}


def test_exact_p_is_the_binomial_tail() -> None:
    assert exact_p(8, 2) == pytest.approx(56 / 1024)
    assert exact_p(0, 0) == 1.0
    assert exact_p(0, 5) == 1.0


def test_both_ways_of_summing_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = [exact_p(b, 100 - b) for b in range(40, 90, 5)]
    monkeypatch.setattr("tokenmill.policy.gate.EXACT_MOST", 10)
    assert exact == [pytest.approx(exact_p(b, 100 - b), rel=1e-9) for b in range(40, 90, 5)]


def test_interval_against_the_published_example() -> None:
    """Newcombe 1998 part 3, table II: 20/12/2/16 of 50, method 10 gives 0.0562 to 0.3292."""
    low, high = interval(Pairs(both=20, candidate_only=12, reference_only=2, neither=16))
    assert low == pytest.approx(0.0562, abs=5e-4)
    assert high == pytest.approx(0.3292, abs=5e-4)


@given(st.tuples(*(st.integers(0, 50),) * 4).filter(lambda t: sum(t) > 0))
def test_interval_holds_the_difference_and_turns_over(counts: tuple[int, int, int, int]) -> None:
    pairs = Pairs(*counts)
    low, high = interval(pairs)
    difference = (pairs.candidate_only - pairs.reference_only) / pairs.n
    assert -1.0 <= low <= difference + 1e-9
    assert difference - 1e-9 <= high <= 1.0
    other = interval(Pairs(pairs.both, pairs.neither, pairs.reference_only, pairs.candidate_only))
    assert other == (pytest.approx(-high), pytest.approx(-low))


def test_a_better_candidate_passes_with_reasons() -> None:
    verdict = judge(evidence(), {"against": "both", "min_items": 50}, champion=False)
    assert verdict.passed
    assert verdict.n == 100
    assert (verdict.candidate_milli, verdict.reference_milli, verdict.difference_milli) == (780, 620, 160)
    assert verdict.reasons[0].startswith("No champion")
    assert all(reason.startswith("Passed") for reason in verdict.reasons[1:])


@pytest.mark.parametrize(
    "found",
    [
        {},
        evidence(pairs=None),
        evidence(pairs={"base": None}),
        evidence(n=99),
        evidence(pairs={"base": {"both": 100, "neither": 0, "candidate_only": -1, "reference_only": 1}}),
        evidence(pairs={"base": {"both": True, "neither": 0, "candidate_only": 99, "reference_only": 0}}),
        evidence(
            n=0, pairs={"base": dict.fromkeys(("both", "neither", "candidate_only", "reference_only"), 0)}
        ),
    ],
)
def test_bad_evidence_keeps_it_shut(found: dict[str, Any]) -> None:
    verdict = judge(found, {"against": "base"}, champion=True)
    assert not verdict.passed
    assert verdict.reasons


def test_a_champion_must_be_beaten_too_and_its_evidence_must_be_there() -> None:
    params = {"against": "both", "min_items": 50}
    assert judge(evidence(champion=True), params, champion=True).passed
    assert not judge(evidence(), params, champion=True).passed
    lesser = evidence(champion=True)
    lesser["pairs"]["champion"] = {"both": 70, "neither": 20, "candidate_only": 5, "reference_only": 5}
    verdict = judge(lesser, params, champion=True)
    assert not verdict.passed
    assert verdict.difference_milli == 0


@pytest.mark.parametrize(
    "params", [{"min_items": 101}, {"alpha": 0.0001}, {"min_difference_milli": 161}, {"against": "nobody"}]
)
def test_each_check_can_fail(params: dict[str, Any]) -> None:
    assert judge(evidence(), {"against": "base", "min_difference_milli": 160}, champion=False).passed
    assert not judge(evidence(), {"against": "base", **params}, champion=False).passed


def test_not_clearly_worse_stops_what_is_worse_beyond_luck_and_lets_the_rest_pass() -> None:
    own = {"against": "base", "min_items": 1, "rule": "not_clearly_worse"}
    assert judge(evidence(2, 2), own, champion=False).passed
    assert judge(evidence(2, 5), own, champion=False).passed
    worse = judge(evidence(2, 18), own, champion=False)
    assert not worse.passed
    assert any("worse by luck" in reason for reason in worse.reasons)
    assert not judge({"metric": "m", "n": 0}, own, champion=False).passed, "no evidence is no pass"
    assert not judge(evidence(2, 2), own | {"min_items": 500}, champion=False).passed


@pytest.mark.parametrize("name", [*NAMED, "base_weights"])
def test_evidence_that_does_not_name_what_it_is_about_is_rejected(name: str) -> None:
    found = evidence()
    for digests in ({k: v for k, v in found["digests"].items() if k != name}, found["digests"] | {name: ""}):
        verdict = judge(found | {"digests": digests}, {"min_items": 50}, champion=False)
        assert not verdict.passed
        assert name in verdict.reasons[-1]
    assert not judge(found | {"digests": None}, {}, champion=False).passed


def test_the_champion_must_be_named_only_where_it_is_a_reference() -> None:
    found = evidence(champion=True)
    del found["digests"]["champion_weights"]
    assert judge(found, {"against": "base"}, champion=True).passed
    assert not judge(found, {"against": "both"}, champion=True).passed


def test_a_candidate_that_is_the_champion_itself_is_called_so() -> None:
    digests = evidence(champion=True)["digests"]
    same = {name: value for name, value in digests.items() if not name.startswith(("candidate", "champion"))}
    same |= {
        f"{who}_{what}": f"sha256:{what}"
        for who in ("candidate", "champion")
        for what in ("weights", "adapter")
    }
    note = "The candidate is the champion itself, byte for byte: nothing was made anew."
    assert note in judge(evidence(champion=True) | {"digests": same}, {}, champion=True).reasons
    same["candidate_adapter"] = "sha256:other"
    assert note not in judge(evidence(champion=True) | {"digests": same}, {}, champion=True).reasons


def judged_by_model(graded: int, ungraded: int, **changes: Any) -> dict[str, Any]:
    return evidence(
        metric="judge",
        graded=True,
        n=graded + ungraded,
        pairs={"base": None, "champion": None},
        differences_milli={"base": [300] * graded},
        ungraded={"base": ungraded},
        subjects={"candidate": {"score_milli": 800}, "base": {"score_milli": 500}},
        **changes,
    )


@pytest.mark.parametrize(
    ("graded", "ungraded", "most", "passes"),
    [(100, 0, 0.05, True), (95, 5, 0.05, True), (94, 6, 0.05, False), (94, 6, 0.06, True), (99, 1, 0, False)],
)
def test_the_gate_is_shut_above_its_bound_of_ungraded_items(
    graded: int, ungraded: int, most: float, passes: bool
) -> None:
    params = {"against": "base", "max_ungraded": most}
    verdict = judge(judged_by_model(graded, ungraded), params, champion=False)
    assert verdict.passed is passes, verdict.reasons
    assert passes or "grade" in " ".join(verdict.reasons)


def test_ungraded_items_that_are_not_accounted_for_keep_it_shut() -> None:
    for wrong in ({}, None, {"base": True}, {"base": -4}, {"base": 3}):
        found = {**judged_by_model(96, 4), "ungraded": wrong}
        assert not judge(found, {"against": "base"}, champion=False).passed, wrong


def test_the_bound_holds_for_a_judge_that_is_only_reported() -> None:
    for milli, passes in ((50, True), (51, False)):
        found = evidence(subjects={"candidate": {"judge_milli": 900, "judge_ungraded_milli": milli}})
        assert judge(found, {"against": "base"}, champion=False).passed is passes
