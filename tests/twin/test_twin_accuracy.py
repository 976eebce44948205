"""Training steps, tuned rates and power: what they must hold, and the bars on rows that no fit had seen."""

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tokenmill.domain.errors import DataError
from tokenmill.spec.catalogue import catalogue
from tokenmill.twin.power_model import busy_share, server_w
from tokenmill.twin.training_step import FITTED, DataParallel, TrainingWork, step_s
from tokenmill.twin.tuned import Load, best_rate

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("TOKENMILL_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
LLAMA_405B = TrainingWork(405e9, 126, 16384, 8192, 1152, 512, "fp4", micro_batches=72, domain=72)


def test_a_training_step_takes_as_long_as_a_published_one():
    measured = 13.46  # of 405B on 512 GB300, evaluation included (MLPerf Training v5.1)
    assert step_s(LLAMA_405B, catalogue().accelerators["b300-gb300"]) == pytest.approx(measured, rel=0.15)


def test_a_training_step_shortens_with_accelerators_and_grows_with_the_batch():
    kind = catalogue().accelerators["b200-sxm"]
    work = replace(LLAMA_405B, precision="fp8", domain=8)
    assert step_s(replace(work, accelerators=1024), kind) < step_s(work, kind)
    assert step_s(replace(work, batch=2304), kind) > step_s(work, kind)
    assert step_s(replace(work, micro_batches=16), kind) > step_s(work, kind)  # more of the pipeline waits
    assert step_s(replace(work, adapters=True), kind) < step_s(work, kind)
    assert step_s(work, kind, replace(FITTED, compute=FITTED.compute / 2)) > step_s(work, kind)


def test_training_in_what_an_accelerator_lacks_is_refused():
    with pytest.raises(DataError, match="does not train in 'fp4'"):
        step_s(LLAMA_405B, catalogue().accelerators["h100-sxm"])
    with pytest.raises(DataError, match="at least 1"):
        step_s(replace(LLAMA_405B, batch=0), catalogue().accelerators["b300-gb300"])


def test_data_parallel_steps_synchronise_only_between_replicas():
    job = DataParallel(0.1, 0.01, 0.02, 0.001, 0.2, 0.01, 1.0)
    assert job.step_s(10, 1, 1) == pytest.approx(0.2)
    assert job.step_s(10, 2, 1) == pytest.approx(0.22)
    assert job.step_s(10, 4, 2) == pytest.approx(0.2 + 0.22)


def test_a_tuned_engine_serves_less_under_a_limit_and_more_with_more_memory():
    model, kinds = catalogue().models["deepseek-r1"], catalogue().accelerators
    offline, server = Load(800, 3716, 20000), Load(800, 3716, 20000, tpot_s=0.08)
    free = best_rate(model, kinds["b200-gb200"], "fp4", 72, offline).tokens_s
    assert 0 < best_rate(model, kinds["b200-gb200"], "fp4", 72, server).tokens_s < free
    assert best_rate(model, kinds["b300-gb300"], "fp4", 8, offline).tokens_s > free
    with pytest.raises(DataError, match="does not fit"):
        best_rate(model, kinds["h100-sxm"], "fp8", 1, offline)


def test_power_goes_from_a_running_accelerators_to_its_maximum():
    assert 0.5 < busy_share(0, 0) < busy_share(0.5, 0) < busy_share(0.5, 0.2) < busy_share(1, 1) == 1
    assert server_w(8 * 1000) == pytest.approx(10_720, rel=0.05)  # eight B200 at their limit


@pytest.mark.parametrize(("table", "axis", "bar"), [("power", "server power, MLPerf 8 x B200", 7.0)])
def test_the_bars_hold_on_rows_that_the_fit_had_not_seen(table, axis, bar):
    if not (DATA / "power_mlperf_server").is_dir():
        pytest.skip("the shared data is not here; TOKENMILL_SHARED_DATA names it")
    lacking = [name for name in ("pandas", "pyarrow", "scipy") if importlib.util.find_spec(name) is None]
    if lacking:
        pytest.skip(f"bench/accuracy.py needs {' and '.join(lacking)}")
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "accuracy.py"), str(DATA), "--only", table],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    line = next(line for line in done.stdout.splitlines() if line.startswith(axis))
    mean = float(re.findall(r"([\d.]+)%", line.removeprefix(axis))[0])
    assert mean <= bar, done.stdout
