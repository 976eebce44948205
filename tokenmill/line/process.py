"""The process around a station: signals, result or error, exit code. Knows no station's insides."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import tokenmill
from tokenmill.domain.errors import ResourceError, TokenmillError
from tokenmill.domain.work import JobResult
from tokenmill.line.job import StationJob, read_job, write_json
from tokenmill.spec.files import DISK_ERRNOS

STATIONS = ("intake", "curate", "tune", "evaluate", "pack", "command", "python")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
RESERVE_BYTES = 64 * 1024


class Stopped(KeyboardInterrupt):
    """The job was told to stop. ``signal`` is how. Libraries let a keyboard interrupt through."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


def run_job(directory: Path) -> NoReturn:
    """Run the job in ``directory`` and end the process: 0, the error's code, or 128 + the signal.

    Ends with ``os._exit``, because engines leave threads behind that would hold an ordinary exit up.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    (directory / "error.json").unlink(missing_ok=True)
    try:
        code = attempt(directory)
    except BaseException:  # noqa: BLE001 - the last line of defence: say it, then end with a failure.
        _say(traceback.format_exc())
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def attempt(directory: Path) -> int:
    """Run the job in ``directory`` once, leave result.json or error.json, and return the exit code."""
    try:
        with _room_for_words(directory):
            job = read_job(directory)
            result = run_station(job)
            if job.rank == 0:
                write_json(directory / "result.json", result)
    except Stopped as stopped:
        name = signal.Signals(stopped.signal).name
        body = {"kind": "stopped", "message": f"stopped by {name}", "expected": "", "fix": "", "where": ""}
        write_json(directory / "error.json", body)
        _say(f"stopped by {name}")
        return 128 + stopped.signal
    except TokenmillError as error:
        return _fail(directory, error)
    except MemoryError as error:
        _say_where(error)
        return _fail(
            directory,
            ResourceError(
                "the station ran out of memory",
                expected="the rows, the model and the batch to fit",
                fix="Lower batch or max_tokens, or give the station more memory.",
            ),
        )
    except OSError as error:
        if error.errno in DISK_ERRNOS:
            return _fail(directory, _disk_full(error))
        _say_where(error)
        return _fail(directory, TokenmillError(f"{type(error).__name__}: {error}"))
    except Exception as error:  # noqa: BLE001 - whatever it was, the floor must learn of it in words.
        if os.strerror(errno.ENOSPC) in str(error):  # what writes safetensors has no errno
            return _fail(directory, _disk_full(error))
        _say_where(error)
        return _fail(directory, TokenmillError(f"{type(error).__name__}: {error}", fix="See the job's log."))
    return 0


def run_station(job: StationJob) -> JobResult:
    """Run the station that ``job`` names and add what it was and did to the evidence ("trail")."""
    if job.kind not in STATIONS:
        raise TokenmillError(f"a station of kind {job.kind!r} has no job", expected=", ".join(STATIONS))
    # Stations are imported one at a time, so that intake does not pay for what only pack needs.
    station = importlib.import_module(f"tokenmill.line.{job.kind}")
    started_us = time.time_ns() // 1000
    result: JobResult = station.run(job)
    entry: dict[str, Any] = {
        "station": job.station,
        "kind": job.kind,
        "job": job.id,
        "attempt": job.attempt,
        "settings": dict(job.settings),
        "inputs": dict(sorted(job.seen.items())),
        "outputs": dict(result.outputs),
        "metrics": {k: v for k, v in result.metrics.items() if not isinstance(v, list | tuple)},
        "version": tokenmill.__version__,
        "started_us": started_us,
        "ended_us": time.time_ns() // 1000,
    }
    if "first_reasons" in result.metrics:
        entry["metrics"]["first_reasons"] = result.metrics["first_reasons"]
    trail = [*job.trail(), entry]
    return JobResult(result.outputs, result.metrics, {**result.evidence, "trail": trail})


def _stop(number: int, frame: FrameType | None) -> None:
    # A second signal must not interrupt the writing of the reason.
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


def _disk_full(error: Exception) -> ResourceError:
    return ResourceError(
        f"the disk is full: {error}",
        where=str(getattr(error, "filename", "") or ""),
        expected="room for the station's outputs",
        fix="Free some space, then run the line again; it goes on where it stopped.",
    )


def _fail(directory: Path, error: TokenmillError) -> int:
    problem = error.problem
    body: dict[str, Any] = {
        "kind": error.kind,
        "message": problem.message,
        "expected": problem.expected,
        "fix": problem.fix,
        "where": problem.where,
    }
    with contextlib.suppress(OSError):
        write_json(directory / "error.json", body)
    _say(f"error: {error}")
    return error.exit_code


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the log is on the disk that may be full
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - standard error is the job's log


def _say_where(error: BaseException) -> None:
    _say("".join(traceback.format_exception(error)))


@contextlib.contextmanager
def _room_for_words(directory: Path) -> Iterator[None]:
    """Hold some blocks back while a station works: on a full disk its error still finds room."""
    reserve = directory / f".reserve-{os.environ.get('RANK') or 0}"
    try:
        reserve.write_bytes(bytes(RESERVE_BYTES))
        yield
    finally:
        reserve.unlink(missing_ok=True)
