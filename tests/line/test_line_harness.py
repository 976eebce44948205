"""What lm-eval task files are taken, and what is said of those that cannot run here. Asks no model."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import yaml

from tokenmill.domain.errors import DataError, MissingExtraError, TokenmillError
from tokenmill.domain.stations import station_problems
from tokenmill.line.harness import Harness
from tokenmill.line.job import StationJob
from tokenmill.line.judging import Subject

TASK: dict[str, Any] = {
    "task": "colours",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "docs.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{a}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}

JobOf = Callable[..., StationJob]


def write_task(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [{"q": f"colour {n}?", "a": "red"} for n in range(6)]
    (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "colours.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (TASK | changes).items() if v is not None}))
    return path


def harness(job_of: JobOf, **params: Any) -> Harness:
    asked = {"metric": "lm_eval", "lm_eval_tasks": ["tasks/colours.yaml"], **params}
    job = job_of("evaluate", asked)
    return Harness(job, job.params)  # type: ignore[arg-type]


def test_the_metric_needs_its_tasks() -> None:
    (problem,) = station_problems("evaluate", {"metric": "lm_eval"})
    assert problem.field == "lm_eval_tasks"
    assert not station_problems("evaluate", {"also": ["lm_eval"], "lm_eval_tasks": ["a.yaml"]})


def test_a_missing_extra_is_said(job_of: JobOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path / "tasks")
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"tokenmill\[lm-eval\]"):
        harness(job_of)


@pytest.mark.filterwarnings("ignore")
class TestWithTheHarness:
    @pytest.fixture(autouse=True)
    def _there(self, require: Callable[[bool, str], None]) -> None:
        require(util.find_spec("lm_eval") is not None, "lm_eval is not installed (extra lm-eval)")

    def test_documents_are_chosen_by_seed_and_paired_by_id(
        self, job_of: JobOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_task(tmp_path / "tasks")
        found = harness(job_of, max_items=4)
        asked: list[str] = []

        def served(model: Any, subject: Subject, ask: Any) -> Any:
            def generate(requests: Any, **more: Any) -> list[str]:
                asked.append(subject.name)
                right = {"candidate": 4, "base": 1}[subject.name]
                return ["red" if at < right else "blue" for at in range(len(requests))]

            return generate

        monkeypatch.setattr(found, "_served", served)
        base, candidate = Subject("base", "w", ""), Subject("candidate", "w", "lora")
        one, other = found.documents(candidate), found.documents(base)
        assert [(d.task, d.id, d.digest) for d in one] == [(d.task, d.id, d.digest) for d in other]
        assert len({d.id for d in one}) == 4
        assert sum(d.milli for d in one) == 4000
        assert sum(d.milli for d in other) == 1000
        assert found.report(base) == {
            "lm_eval_milli": 250,
            "lm_eval_documents": 4,
            "lm_eval_colours_milli": 250,
        }
        assert found.documents(Subject("champion", "w", "")) is other
        assert asked == ["candidate", "base"], "the champion has the base's weights and was asked twice"
        (line, *_) = found.lines([base, candidate])
        assert line["wanted"] == line["candidate"]["said"] == "red"
        assert set(found.digests(base)) == {"lm_eval", "lm_eval_tasks", "lm_eval_documents"}

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"task": None}, "no single lm-eval task"),
            ({"output_type": "multiple_choice"}, "log-likelihoods"),
            ({"dataset_path": "openai/gsm8k", "dataset_kwargs": None}, "from the internet"),
            ({"dataset_kwargs": {"data_files": "https://example.org/x.jsonl"}}, "would fetch"),
            ({"dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}}, r"gone\.jsonl"),
            ({"test_split": "nope"}, "lm-eval"),
            (
                {"metric_list": [{"metric": "ter", "aggregation": "ter", "higher_is_better": False}]},
                "more is",
            ),
        ],
    )
    def test_a_task_that_cannot_run_here_is_refused(
        self, job_of: JobOf, tmp_path: Path, changes: dict[str, Any], said: str
    ) -> None:
        path = write_task(tmp_path / "tasks", **changes)
        with pytest.raises(DataError, match=said) as caught:
            harness(job_of)
        assert str(path) in caught.value.problem.where

    def test_a_broken_or_absent_file_is_refused(self, job_of: JobOf, tmp_path: Path) -> None:
        path = write_task(tmp_path / "tasks")
        for text in ("{", "- a list", "doc_to_text: !function gone.f"):
            path.write_text(text)
            with pytest.raises(TokenmillError, match="cannot be read"):
                harness(job_of)
        path.unlink()
        with pytest.raises(DataError, match="no such lm-eval task file"):
            harness(job_of)

    def test_a_metric_that_is_not_the_tasks_is_refused(self, job_of: JobOf, tmp_path: Path) -> None:
        write_task(tmp_path / "tasks")
        with pytest.raises(DataError, match="no metric 'bleu'"):
            harness(job_of, lm_eval_metric="bleu")
