"""Stations of one's own: a plain command and a Python function, with inputs and outputs by digest."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenmill.domain.errors import DataError, EngineError
from tokenmill.domain.work import JobResult
from tokenmill.line.job import StationJob
from tokenmill.line.process import run_station

JobOf = Callable[..., StationJob]

SCRIPT = """
import sys, pathlib
print("progress 2 2 all the way")
print("hello")
pathlib.Path(sys.argv[2]).write_text(pathlib.Path(sys.argv[1]).read_text().upper())
"""


def test_a_command_reads_inputs_and_writes_outputs(
    tmp_path: Path, job_of: JobOf, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.txt").write_text("some rows")
    (tmp_path / "shout.py").write_text(SCRIPT)
    first = job_of("command", {"command": ["true"]})
    rows = first.artifacts.put_file(tmp_path / "rows.txt")
    command = [sys.executable, "{factory}/shout.py", "{in:rows}", "{out:loud}"]
    job = job_of("command", {"command": command, "outputs": ["loud"]}, {"intake": JobResult({"rows": rows})})
    result = run_station(job)
    assert job.artifacts.path(result.outputs["loud"]).read_text() == "SOME ROWS"
    assert result.evidence["trail"][-1]["inputs"] == {"rows": rows}
    assert "all the way" in (job.directory / "progress.jsonl").read_text()
    assert "hello" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"command": ["false"]}, EngineError, "ended with 1"),
        ({"command": ["no-such-program-here"]}, EngineError, "does not start"),
        ({"command": ["true"], "outputs": ["x"]}, DataError, "did not write its output 'x'"),
        ({"command": ["cp", "{in:nothing}", "y"]}, DataError, "needs 'nothing'"),
        ({"command": ["touch", "{out:z}"]}, DataError, "not among outputs"),
    ],
)
def test_a_command_that_fails_says_how(
    job_of: JobOf, params: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_station(job_of("command", params))


def test_a_function_beside_the_factory_file_is_a_station(tmp_path: Path, job_of: JobOf) -> None:
    (tmp_path / "my_station.py").write_text(
        "def count(station):\n"
        "    station.progress(1, 1, 'counting')\n"
        "    path = station.work / 'count.txt'\n"
        "    path.write_text(str(station.settings['by'] * 2))\n"
        "    return {'count': path}\n"
        "def wrong(station):\n"
        "    return 3\n"
    )
    params = {"entry": "my_station:count", "settings": '{"by": 21}'}
    job = job_of("python", params)
    result = run_station(job)
    assert job.artifacts.path(result.outputs["count"]).read_text() == "42"
    with pytest.raises(DataError, match="returned int"):
        run_station(job_of("python", {"entry": "my_station:wrong"}))
    with pytest.raises(DataError, match="there is no my_station:absent"):
        run_station(job_of("python", {"entry": "my_station:absent"}))
    assert str(tmp_path) not in sys.path
