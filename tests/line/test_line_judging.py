"""How answers are read, judged, scored and paired, and the intervals around the scores."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.line.answers import AnswerError, Judgement, judge, macro_f1, parse_object
from tokenmill.line.evaluate import chosen, paired, scored
from tokenmill.line.intervals import bootstrap, percentile, wilson
from tokenmill.line.rows import Row, row_of


def item(n: int, completion: str) -> Row:
    said = [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": completion}]
    return row_of(n, n, said, {})


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", '{"a":1} and more', '{"a":1,"a":1}', '{"a":Infinity}', "[" * 9999]
)
def test_an_answer_that_is_not_one_json_object_is_refused(text: str) -> None:
    with pytest.raises(AnswerError):
        parse_object(text)


@pytest.mark.parametrize(
    ("answer", "correct", "valid", "fields"),
    [
        (' {"b": "x", "a": 1}\n', True, True, {"a": True, "b": True}),
        ('{"a":1,"b":"y"}', False, True, {"a": True, "b": False}),
        ('{"a":true,"b":"x"}', False, True, {"a": False, "b": True}),
        ('{"a":1}', False, True, {"a": True, "b": False}),
        ('{"a":1,"b":"x","c":2}', False, True, {"a": True, "b": True}),
        ('Sure: {"a":1,"b":"x"}', False, False, {"a": False, "b": False}),
    ],
)
def test_json_answers_are_judged_by_field_and_as_a_whole(
    answer: str, correct: bool, valid: bool, fields: dict[str, bool]
) -> None:
    judgement = judge("json_fields", '{"a":1,"b":"x"}', answer)
    assert (judgement.correct, judgement.valid, dict(judgement.fields)) == (correct, valid, fields)


def test_labels_are_compared_without_case_and_punctuation() -> None:
    labels = frozenset({"card arrival", "lost card"})
    assert judge("classification", "card_arrival", " Card arrival.", labels).correct
    assert judge("classification", "card_arrival", "lost card", labels) == Judgement(False, True, "lost card")
    assert not judge("classification", "card_arrival", "I think it is lost", labels).valid
    assert not judge("exact_match", "card", "Card").correct
    assert judge("exact_match", "card", "card\n").correct


def test_macro_f1_weighs_every_label_the_same() -> None:
    pairs = [("a", "a")] * 9 + [("b", "a")]
    assert macro_f1(pairs) == pytest.approx((2 * 9 / (9 + 10) + 0) / 2)
    assert macro_f1([("a", "a"), ("b", "b")]) == 1.0
    assert macro_f1([]) == 0.0


def test_wilson_intervals_as_published() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), 857, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_bootstrap_is_repeatable_and_covers_the_mean() -> None:
    draw = random.Random(5)
    values = [draw.gauss(10, 2) for _ in range(200)]

    def mean(sample: object) -> float:
        return sum(sample) / len(sample)  # type: ignore[call-overload, arg-type, no-any-return]

    low, high = bootstrap(values, mean, seed=1)
    assert (low, high) == bootstrap(values, mean, seed=1)
    assert low < sum(values) / 200 < high
    assert high - low == pytest.approx(2 * 1.96 * 2 / 200**0.5, rel=0.2)


def test_percentiles_are_nearest_rank() -> None:
    assert [percentile([3, 1, 2, 4], p) for p in (0.0, 0.25, 0.5, 0.95, 1.0)] == [1, 1, 2, 4, 4]
    assert percentile([], 0.5) == 0.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=50))
def test_pairs_count_every_item_once(outcomes: list[tuple[bool, bool]]) -> None:
    candidate = [Judgement(c, True, "") for c, _ in outcomes]
    reference = [Judgement(r, True, "") for _, r in outcomes]
    counts = paired(candidate, reference)
    assert sum(counts.values()) == len(outcomes)
    assert counts["both"] + counts["candidate_only"] == sum(c for c, _ in outcomes)
    assert counts["both"] + counts["reference_only"] == sum(r for _, r in outcomes)


def test_scores_are_in_thousandths_with_intervals() -> None:
    items = [item(n, '{"a":1,"b":2}') for n in range(4)]
    said = ['{"a":1,"b":2}', '{"a":1,"b":3}', "no", '{"a":1,"b":2}']
    report = scored(
        "json_fields",
        items,
        [judge("json_fields", i.completion, s) for i, s in zip(items, said, strict=True)],
        0,
    )
    assert (report["correct_milli"], report["valid_milli"]) == (500, 750)
    assert report["fields_milli"] == {"a": 750, "b": 500}
    assert report["all_fields_milli"] == 625
    assert report["low_milli"] < 500 < report["high_milli"]
    labels = [item(n, label) for n, label in enumerate(["x", "x", "y"])]
    judged = [judge("classification", i.completion, "x", frozenset({"x", "y"})) for i in labels]
    assert scored("classification", labels, judged, 0)["macro_f1_milli"] == 400


def test_the_choice_of_items_does_not_depend_on_their_order() -> None:
    rows = [item(n, "x") for n in range(50)]
    assert chosen(rows, 10, 1) == chosen(rows[::-1], 10, 1)
    assert chosen(rows, 10, 1) != chosen(rows, 10, 2)
    assert len(chosen(rows, 100, 1)) == 50
