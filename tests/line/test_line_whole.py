"""A whole line, station by station in processes of their own, with a real model, kills and a resumption."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tokenmill.domain.codec import from_plain, to_plain
from tokenmill.domain.work import JobResult
from tokenmill.policy.gate import judge
from tokenmill.store.artifacts import Artifacts

pytestmark = [pytest.mark.live, pytest.mark.model, pytest.mark.timeout(400, func_only=True)]

COLOURS = ("red", "green", "blue", "black", "white")
THINGS = ("car", "boat", "house", "hat", "door", "cup", "lamp", "coat")


class Line:
    """Runs stations as the floor does, and hands each the results of those before it."""

    def __init__(self, directory: Path, weights: Path) -> None:
        self.directory = directory
        self.artifacts = Artifacts(directory / "artifacts")
        self.base = {"model": "smollm2", "weights": self.artifacts.put_file(weights), "format": "gguf"}
        self.results: dict[str, JobResult] = {}
        self.last: subprocess.Popen[bytes] | None = None

    def start(
        self,
        kind: str,
        params: Mapping[str, Any],
        attempt: int = 1,
        champion: Mapping[str, Any] | None = None,
    ) -> subprocess.Popen[bytes]:
        job = self.directory / "jobs" / kind
        job.mkdir(parents=True, exist_ok=True)
        station = {
            "station": kind,
            "kind": kind,
            "line": "colours",
            "run": "run-000001",
            "params": dict(params),
            "base": self.base,
            "champion": champion,
            "inputs": {name: to_plain(result) for name, result in self.results.items()},
            "factory_dir": str(self.directory),
        }
        body = {
            "job": f"j-{kind}",
            "attempt": attempt,
            "spec": {"kind": "station", "params": station},
            "artifacts": str(self.artifacts.root),
            "dir": str(job),
        }
        (job / "job.json").write_text(json.dumps(body))
        log = (job / "log").open("ab")
        with log:
            argv = [sys.executable, "-m", "tokenmill.line", str(job)]
            self.last = subprocess.Popen(argv, stderr=log, stdout=log)
        return self.last

    def finish(self, kind: str, process: subprocess.Popen[bytes]) -> JobResult:
        code = process.wait(timeout=200)
        job = self.directory / "jobs" / kind
        assert code == 0, (job / "log").read_text()[-3000:]
        self.results[kind] = from_plain(json.loads((job / "result.json").read_bytes()), JobResult)
        return self.results[kind]

    def run(self, kind: str, params: Mapping[str, Any], **more: Any) -> JobResult:
        return self.finish(kind, self.start(kind, params, **more))

    def steps(self, kind: str) -> int:
        path = self.directory / "jobs" / kind / "progress.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        said = [json.loads(line) for line in lines if line.endswith("}")]
        return max((p["done"] for p in said if p["unit"] == "steps"), default=0)


def checkpointed(line: Line) -> bool:
    """Whether a checkpoint of the tune station lies whole on disk and a later step was made."""
    work = line.directory / "jobs" / "tune" / "work" / "checkpoints"
    return any(work.rglob("checkpoint-*/tokenmill.json")) and line.steps("tune") >= 2


def wait_for(condition: Any, process: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    assert condition()


@pytest.fixture
def line(tmp_path: Path, chat_gguf: Path, converted: Callable[[Path], None]) -> Iterator[Line]:
    converted(tmp_path)
    made = Line(tmp_path, chat_gguf)
    yield made
    if made.last is not None and made.last.poll() is None:  # the test failed while it ran
        made.last.kill()
        made.last.wait()


def test_a_line_from_data_to_release_through_kill_and_resume(line: Line, tmp_path: Path) -> None:
    """Nothing cheaper shows that checkpoints survive kill -9 and that the engine takes the tuned adapter."""
    draw = random.Random(3)
    seen = sorted(
        {f"a {a} {t} and a {b} {u}" for a in COLOURS for t in THINGS for b in COLOURS for u in THINGS}
    )
    said = draw.sample(seen, 60)
    rows = [json.dumps({"prompt": p, "completion": p.split()[1].upper()}) for p in said]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, "{broken"]) + "\n")

    # 1. Data.
    intake = line.run("intake", {"path": "rows.jsonl", "system": "First colour?"})
    assert (intake.metrics["rows"], intake.metrics["quarantined"]) == (60, 1)
    split = {"train": 0.7, "validation": 0.1, "test": 0.2}
    curate = line.run("curate", {"answer": "label", "near_duplicates": "keep", "split": split})

    # 2. Tune: killed without warning, told to stop, then left to finish.
    params = {"rank": 4, "alpha": 8, "epochs": 1, "batch": 4, "lr": 0.002, "checkpoint_seconds": 1}
    process = line.start("tune", params)
    wait_for(lambda: checkpointed(line), process, 150)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process = line.start("tune", params, attempt=2)
    before = line.steps("tune")
    wait_for(lambda: line.steps("tune") > before or process.poll() is not None, process, 150)
    asked = time.monotonic()
    process.terminate()
    assert process.wait(timeout=30) != 0
    assert time.monotonic() - asked < 30
    tune = line.run("tune", params, attempt=3)
    assert tune.metrics["resumed_from"] >= 1
    assert tune.metrics["steps"] == tune.metrics["total_steps"]
    assert tune.metrics["loss_last"] < tune.metrics["loss_first"]

    # 3. Judge, release.
    champion = {"id": "rel-000001", "weights": line.base["weights"], "adapter": "", "digest": "sha256:0"}
    judged = {"metric": "classification", "max_items": 6, "max_tokens": 6, "slots": 2}
    evaluate = line.run("evaluate", judged, champion=champion)
    evidence = evaluate.evidence
    assert evidence["n"] == min(6, curate.metrics["test_rows"])
    assert sum(evidence["pairs"]["base"].values()) == evidence["n"]
    assert evidence["subjects"]["champion"]["reused"], (
        "the champion has the base's weights and was asked twice"
    )
    assert evidence["subjects"]["candidate"]["output_tokens"] > 0
    assert judge(evidence, {"min_items": 2}, champion=True).n == evidence["n"]
    pack = line.run("pack", {})
    release = line.artifacts.path(pack.outputs["release"])
    manifest = json.loads((release / "manifest.json").read_text())
    assert manifest["adapter"]["gguf"] == tune.outputs["adapter_gguf"]
    assert list(manifest["settings"]) == ["curate", "evaluate", "intake", "tune"]
    assert line.run("evaluate", judged, champion=champion).evidence["subjects"]["base"]["reused"]
