"""What the page of a run says of its training, from a result and from progress still being written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenmill.console.charts import loss_curve
from tokenmill.console.training import Training, training_of
from tokenmill.spec.paths import Paths


def run_of(**station: Any) -> dict[str, Any]:
    empty = {"kind": "tune", "status": "done", "job": "j-1", "metrics": {}, "usage": {}, "progress": {}}
    return {"stations": [{**empty, "kind": "intake"}, {**empty, **station}]}


def test_a_finished_training_has_speed_mfu_energy_memory_and_loss(tmp_path: Path) -> None:
    metrics = {
        "loss_curve": [[1, 2.0], [2, 1.0]],
        "tokens": 1000,
        "tokens_per_s": 50.0,
        "mfu": 0.4,
        "energy_mj": 0,
        "peak_memory_bytes": 1 << 30,
    }
    usage = {"energy_mj": 4000, "energy_source": "model", "peak_memory_bytes": 2 << 30}
    found = training_of(run_of(metrics=metrics, usage=usage), Paths(tmp_path))
    assert found.points == ((1.0, 2.0), (2.0, 1.0))
    said = {figure.name: (figure.value, figure.note) for figure in found.figures}
    assert said["Speed"][0] == "50 tokens/s"
    assert said["Model FLOPs used"][0] == "40.0 %"
    assert said["Energy"] == ("4.0 J", "4 J for 1,000 tokens · model")
    assert said["Peak memory"][0] == "2.0 GiB"
    unknown = training_of(run_of(metrics=metrics | {"mfu": 0, "device": "cpu"}), Paths(tmp_path))
    assert "peak of cpu is not known" in {f.name: f.note for f in unknown.figures}["Model FLOPs used"]


def test_a_running_training_is_read_from_its_progress(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    progress = paths.job_progress("j-1")
    progress.parent.mkdir(parents=True)
    lines = ['{"done": 1, "metrics": {"loss": 2.5}}', '{"done": 2, "metrics": {}}', '{"done": 3, "met']
    progress.write_text("\n".join(lines))
    now = {"metrics": {"loss": 2.5, "tokens": 10, "tokens_per_s": 5.0}}
    found = training_of(run_of(status="running", progress=now), paths)
    assert found.points == ((1.0, 2.5),)
    assert found.figures[0].value == "5 tokens/s"
    assert training_of(run_of(status="waiting"), paths) == Training()


def test_the_curve_has_round_ticks_and_its_last_step() -> None:
    drawn = str(loss_curve([(1.0, 2.7), (56.0, 0.6), (111.0, 0.45)]))
    assert ">40</text>" in drawn
    assert ">111 steps</text>" in drawn
    assert str(loss_curve([(1.0, 0.5)])).count("<circle") == 1
