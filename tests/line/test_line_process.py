"""The process around a station: what it leaves behind when all is well, when not, and when it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenmill.domain.codec import from_plain
from tokenmill.domain.errors import DataError
from tokenmill.domain.work import JobResult
from tokenmill.line.job import StationJob, read_job
from tokenmill.line.process import attempt

ROW = json.dumps({"prompt": "hello", "completion": "greeting"}) + "\n"

JobOf = Callable[..., StationJob]


def left(job: StationJob, name: str) -> dict[str, object]:
    body: dict[str, object] = json.loads((job.directory / name).read_text())
    return body


def test_a_result_is_left_with_progress_and_trail(tmp_path: Path, job_of: JobOf) -> None:
    (tmp_path / "rows.jsonl").write_text(ROW)
    job = job_of("intake", {"path": "rows.jsonl"})
    assert attempt(job.directory) == 0
    result = from_plain(left(job, "result.json"), JobResult)
    assert job.artifacts.path(result.outputs["rows"]).is_file()
    (entry,) = result.evidence["trail"]
    assert (entry["station"], entry["kind"], entry["settings"]) == (
        "intake",
        "intake",
        {"path": "rows.jsonl"},
    )
    last = json.loads((job.directory / "progress.jsonl").read_text().splitlines()[-1])
    assert last["done"] == last["total"] == 1
    assert not (job.directory / "error.json").exists()


def test_a_data_error_leaves_its_words_and_its_exit_code(job_of: JobOf) -> None:
    job = job_of("intake", {"path": "absent.jsonl"})
    assert attempt(job.directory) == DataError.exit_code
    error = left(job, "error.json")
    assert error["kind"] == "data"
    assert error["where"] == str(job.factory_dir / "absent.jsonl")
    assert error["fix"]


def test_a_full_disk_is_a_resource_error(tmp_path: Path, job_of: JobOf) -> None:
    (tmp_path / "rows.jsonl").write_text(ROW)
    job = job_of("intake", {"path": "rows.jsonl"})
    (job.work / "rows.jsonl").symlink_to("/dev/full")
    assert attempt(job.directory) == 13
    error = left(job, "error.json")
    assert error["kind"] == "resource"
    assert "disk is full" in str(error["message"])


@pytest.mark.live
def test_a_disk_without_a_byte_left_still_gives_the_reason_and_the_code(
    tmp_path: Path, job_of: JobOf
) -> None:
    """Only a real process has a log; here it is on the full device, as the station's rows are."""
    (tmp_path / "rows.jsonl").write_text(ROW)
    job = job_of("intake", {"path": "rows.jsonl"})
    (job.work / "rows.jsonl").symlink_to("/dev/full")
    with open("/dev/full", "w") as full:
        argv = [sys.executable, "-m", "tokenmill.line", str(job.directory)]
        done = subprocess.run(argv, stdout=full, stderr=full, timeout=60, check=False)
    assert done.returncode == 13
    assert "disk is full" in str(left(job, "error.json")["message"])
    assert not list(job.directory.glob(".reserve*"))
    (job.work / "rows.jsonl").unlink()
    assert attempt(job.directory) == 0  # there is room again


def test_a_job_that_cannot_be_read_is_a_data_error(tmp_path: Path, job_of: JobOf) -> None:
    assert attempt(tmp_path) == DataError.exit_code
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        read_job(tmp_path)
    with pytest.raises(DataError, match=r"tune.rankk: unknown parameter"):
        job_of("tune", {"rankk": 1})


def test_stations_that_lack_an_input_name_it(job_of: JobOf) -> None:
    with pytest.raises(DataError, match="needs 'rows', which none of its inputs has"):
        job_of("curate", {}).input_path("rows")
    two = {"one": JobResult({"rows": "sha256:a"}), "two": JobResult({"rows": "sha256:b"})}
    with pytest.raises(DataError, match="2 inputs named 'rows'"):
        job_of("curate", {}, two).input_path("rows")


def test_progress_is_limited_and_keeps_the_last_line(job_of: JobOf) -> None:
    job = job_of("curate", {})
    for done in range(1000):
        job.report(done, 999, "rows", "counting")
    lines = (job.directory / "progress.jsonl").read_text().splitlines()
    assert len(lines) < 100
    assert json.loads(lines[-1])["done"] == 999


@pytest.mark.live
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_station_that_is_told_to_stop_ends_quickly(
    tmp_path: Path, job_of: JobOf, number: signal.Signals
) -> None:
    """Only a real process has signal handlers and an exit status."""
    (tmp_path / "rows.jsonl").write_bytes(ROW.encode() * 1_000_000)
    job = job_of("intake", {"path": "rows.jsonl"})
    process = subprocess.Popen(
        [sys.executable, "-m", "tokenmill.line", str(job.directory)], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 30
    while not (job.directory / "progress.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number, said
    assert left(job, "error.json")["kind"] == "stopped"
    assert not (job.directory / "result.json").exists()
