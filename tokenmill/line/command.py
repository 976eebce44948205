"""A station that is a plain command: it finds its inputs as paths, and writes its outputs where it is told.

The command runs without a shell, in the station's work folder, with the job's environment and limits. Its
output goes to the job's log; ``progress DONE TOTAL MESSAGE`` on a line of its own moves the station's
progress.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tokenmill.domain.errors import DataError, EngineError
from tokenmill.domain.stations import CommandParams
from tokenmill.domain.work import JobResult
from tokenmill.line.job import StationJob

_PLACE = re.compile(r"\{(?:(in|out):([\w.-]+)|(work)|(factory))\}")
_PROGRESS = re.compile(r"progress (\d+) (\d+) ?(.*)")
LINE_BYTES = 65_536


def run(job: StationJob) -> JobResult:
    """Run the command. Raises ``EngineError`` when it fails, ``DataError`` for a missing input or output."""
    params = job.params
    assert isinstance(params, CommandParams)
    out = job.work / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    argv = [_filled(part, job, params.outputs, out) for part in params.command]
    job.report(0, 1, "steps", Path(argv[0]).name)
    try:
        process = subprocess.Popen(argv, cwd=job.work, stdout=subprocess.PIPE)
    except OSError as error:
        raise EngineError(
            f"the command of station {job.station!r} does not start: {error}",
            fix="Name a program that is on the job's PATH.",
        ) from error
    with process:
        assert process.stdout is not None
        while line := process.stdout.readline(LINE_BYTES):
            _said(job, line.decode("utf-8", "replace").rstrip("\n"))
    if process.returncode:
        raise EngineError(
            f"the command of station {job.station!r} ended with {process.returncode}",
            expected="exit code 0",
            fix="See the job's log.",
        )
    return JobResult(stored(job, {name: out / name for name in params.outputs}), {"exit_code": 0})


def stored(job: StationJob, outputs: dict[str, Path]) -> dict[str, str]:
    """Put files and folders among the artifacts. Raises ``DataError`` for one that is not there."""
    digests = {}
    for name, path in sorted(outputs.items()):
        if path.is_dir():
            digests[name] = job.artifacts.put_tree(path)
        elif path.is_file():
            digests[name] = job.artifacts.put_file(path)
        else:
            raise DataError(
                f"station {job.station!r} did not write its output {name!r}",
                where=str(path),
                expected="a file",
            )
    return digests


def _filled(part: str, job: StationJob, outputs: tuple[str, ...], out: Path) -> str:
    def path(found: re.Match[str]) -> str:
        if found.group(3):
            return str(job.work)
        if found.group(4):
            return str(job.factory_dir)
        side, name = found.group(1), found.group(2)
        if side == "in":
            return str(job.input_path(name))
        if name not in outputs:
            raise DataError(
                f"the command names the output {name!r}, which is not among outputs",
                expected=f"one of {', '.join(outputs) or 'none'}",
            )
        return str(out / name)

    return _PLACE.sub(path, part)


def _said(job: StationJob, line: str) -> None:
    found = _PROGRESS.fullmatch(line)
    if found:
        job.report(int(found.group(1)), int(found.group(2)), "steps", found.group(3)[:200])
    else:
        print(line, file=sys.stderr)  # noqa: T201 - standard error is the job's log
