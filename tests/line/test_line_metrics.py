"""Metrics beyond right and wrong: F1, patterns, schemas, a judge, and the safety probes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tokenmill.domain.errors import DataError, EngineError
from tokenmill.domain.station_params import EvaluateParams
from tokenmill.line.answers import Judgement, Rules, judge, token_f1
from tokenmill.line.evaluate import scored
from tokenmill.line.judge import grades
from tokenmill.line.judging import differences, graded_report
from tokenmill.line.rows import row_of
from tokenmill.line.safety import PROBES, checked


def test_f1_counts_the_words_that_both_have() -> None:
    assert token_f1("the red card", "Card, red!") == pytest.approx(2 * 2 / 5)
    assert token_f1("", "") == 1.0
    assert token_f1("a", "") == 0.0
    found = judge("f1", "the red card", "red card")
    assert (found.correct, found.milli) == (False, 800)
    assert differences([found], [judge("f1", "the red card", "blue")]) == [800]


def test_the_last_match_of_a_pattern_is_the_answer() -> None:
    rules = Rules(pattern=r"#### (-?\d+)")
    assert judge("regex", "2 + 2 = 4\n#### 4", "first #### 5, no: #### 4", rules).correct
    assert not judge("regex", "#### 4", "#### 14", rules).correct
    assert not judge("regex", "#### 4", "four", rules).valid


def test_an_answer_keeps_a_schema_or_not() -> None:
    rules = Rules(schema={"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}})
    assert judge("json_schema", "", '{"a": 1}', rules).correct
    assert judge("json_schema", "", '{"a": "x"}', rules) == Judgement(False, True, '{"a": "x"}')
    assert not judge("json_schema", "", "a: 1", rules).valid


def test_graded_figures_are_means_with_intervals() -> None:
    rows = [row_of(n, n, [{"role": "assistant", "content": "x"}], {}) for n in range(4)]
    judged = [Judgement(False, True, "", milli=m) for m in (0, 500, 1000, 500)]
    report = scored("f1", rows, judged, 0)
    assert report["score_milli"] == 500
    assert report["low_milli"] <= 500 <= report["high_milli"]
    assert graded_report("f1", judged) == {"f1_milli": 500}
    assert graded_report("exact_match", [Judgement(True, True, ""), Judgement(False, True, "")]) == {
        "exact_match_milli": 500
    }


def answering(text: str, status: int = 200) -> httpx.MockTransport:
    def reply(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        assert request.url.path == "/v1/chat/completions"
        assert request.headers["authorization"] == "Bearer sk-1"
        assert body["model"] == "big"
        assert "Given answer:\nParis" in body["messages"][0]["content"]
        return httpx.Response(status, json={"choices": [{"message": {"content": text}}]})

    return httpx.MockTransport(reply)


JUDGED = EvaluateParams(
    metric="judge", judge_model="big", judge_url="http://judge/v1", judge_key="secret://env/JUDGE"
)
ASKED = [("Capital of France?", "Paris", "Paris")]


def test_a_judge_grades_or_the_answer_stays_ungraded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE", "sk-1")
    assert grades(JUDGED, ASKED, transport=answering(" 8.")) == [800]
    for said in (
        "Great answer!",
        "11",
        "-1",
        "7 or 8",
        '{"grade": 11}',
        '{"grade": true}',
        "[8]",
        "[" * 9999,
    ):
        assert grades(JUDGED, ASKED, transport=answering(said)) == [None]
    with pytest.raises(EngineError, match="does not answer"):
        grades(JUDGED, ASKED, transport=answering("8", 500))
    with pytest.raises(DataError, match="no address"):
        grades(EvaluateParams(judge_model="big"), ASKED)
    monkeypatch.delenv("JUDGE")
    with pytest.raises(DataError, match="key is not there"):
        grades(JUDGED, ASKED)


@pytest.mark.parametrize("takes_schema", [True, False])
def test_a_judge_that_gave_no_grade_is_asked_once_more(
    monkeypatch: pytest.MonkeyPatch, takes_schema: bool
) -> None:
    monkeypatch.setenv("JUDGE", "sk-1")
    seen: list[dict[str, Any]] = []

    def reply(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        if "response_format" in seen[-1] and not takes_schema:
            return httpx.Response(400, json={"error": {"message": "unknown field response_format"}})
        text = "I like it" if len(seen) == 1 else '{"grade": 10}'
        return httpx.Response(200, json={"choices": [{"message": {"content": text}}]})

    assert grades(JUDGED, ASKED, transport=httpx.MockTransport(reply)) == [1000]
    assert ["response_format" in body for body in seen] == [False, True, *([] if takes_schema else [False])]
    assert all("nothing but this JSON object" in body["messages"][0]["content"] for body in seen[1:])


def test_what_is_not_graded_is_compared_with_nothing_and_counted() -> None:
    missing = Judgement(False, False, "", milli=0, graded=False)
    good, half = Judgement(True, True, "", milli=1000), Judgement(False, True, "", milli=500)
    assert differences([good, missing, good, half], [half, good, missing, half]) == [500, 0]
    rows = [row_of(n, n, [{"role": "assistant", "content": "x"}], {}) for n in range(3)]
    report = scored("judge", rows, [good, half, missing], 0)
    assert (report["score_milli"], report["judge_ungraded"], report["judge_ungraded_milli"]) == (750, 1, 334)
    assert graded_report("judge", [missing]) == {"judge_ungraded": 1, "judge_ungraded_milli": 1000}


def test_probes_find_what_must_not_be_said() -> None:
    fine = ["I cannot help with that."] * len(PROBES)
    assert checked(fine) == (len(PROBES), ())
    bad = list(fine)
    bad[0] = "The code is maple-7731."
    bad[4] = "HACKED-42."
    bad[7] = "Use 4111 1111 1111 1111."
    bad[8] = "It rains and it rains on us. " * 9
    passed, failed = checked(bad)
    assert passed == len(PROBES) - 4
    assert failed == tuple(PROBES[at].name for at in (0, 4, 7, 8))


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")
def test_a_tuned_model_finds_its_answers_likelier(toy: Path, tmp_path: Path) -> None:
    from tokenmill.engine.likelihood import mean_log_likelihoods
    from tokenmill.engine.trainer import train
    from tokenmill.engine.tuning import TrainRequest

    messages = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "Marta"}]
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps({'messages': messages})}\n" * 16)
    request = TrainRequest(
        toy, tmp_path / "rows.jsonl", tmp_path / "out", tmp_path / "work", batch=4, lr=1e-2, epochs=3
    )
    outcome = train(request)
    (before,) = mean_log_likelihoods(toy, None, [messages])
    (after,) = mean_log_likelihoods(toy, outcome.adapter_dir, [messages])
    assert -20 < before < after - 0.3 < 0
