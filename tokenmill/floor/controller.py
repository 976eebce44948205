"""The controller's process from outside: start it, wait until it answers, end it and all that it started.

Builds nothing: ``compose`` does, in that process. What the next controller shall apply first is left for it
in a file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tokenmill.domain.codec import from_plain, to_plain
from tokenmill.domain.errors import ResourceError
from tokenmill.domain.events import Event, SpecApplied
from tokenmill.domain.factory import Factory
from tokenmill.floor import logs, procfs
from tokenmill.floor.lock import ControllerFile, already_running, held, read_controller
from tokenmill.floor.node import factory_mark
from tokenmill.floor.records import Records
from tokenmill.spec.files import write_atomically
from tokenmill.spec.node_paths import NodePaths, node_names
from tokenmill.spec.paths import Paths
from tokenmill.spec.settings import Settings

KILLED_S = 10.0  # within which the kernel lets go of what a killed process held
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Desired:
    """``run/desired.json``: a factory file that the next controller applies once, when it starts."""

    factory: Factory
    base_version: int
    by: str = "up"


def desired_file(paths: Paths) -> Path:
    return paths.run / "desired.json"


def left_for_us(paths: Paths, now_us: int) -> tuple[Event, ...]:
    """Return the factory file that ``up`` left for us. One that is stale by now is ignored by the core."""
    try:
        desired = from_plain(msgspec.json.decode(desired_file(paths).read_bytes()), Desired)
    except FileNotFoundError:
        return ()
    return (SpecApplied(now_us, desired.base_version, desired.factory, desired.by),)


def start_controller(
    paths: Paths,
    settings: Settings,
    factory_file: Path,
    factory: Factory | None = None,
    base_version: int = 0,
) -> int:
    """Start a controller in the background and return its pid. It applies ``factory`` first, if given.

    Raises ``ConflictError`` when one runs already. ``settings`` are not passed on: the controller reads the
    same environment; only the data directory is given.
    """
    del settings
    if held(paths):
        raise already_running(paths)
    if factory is not None:
        desired = Desired(factory, base_version)
        write_atomically(desired_file(paths), msgspec.json.encode(to_plain(desired)))
    output = logs.open_log(paths.log("control"))
    try:
        child = subprocess.Popen(
            (
                *(sys.executable, "-m", "tokenmill.compose", "control"),
                *("--dir", str(paths.root), "--factory", str(factory_file)),
            ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=factory_file.parent,
            start_new_session=True,
        )
    finally:
        os.close(output)
    child.returncode = 0  # it outlives us on purpose, so that is nothing to warn of
    return child.pid


def wait_ready(paths: Paths, pid: int, timeout_s: float = 120.0) -> ControllerFile:
    """Return when the controller leads and its API answers; models may still be on their way.

    Raises ``ResourceError``, with the end of its log, when it ended or took too long.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = read_controller(paths)
        if found is not None and found.pid == pid and found.url and paths.control_socket.exists():
            return found
        state = procfs.stat(pid)
        if state is None or not state.alive:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            break
        time.sleep(POLL_S)
    ended = (
        "ended"
        if (state := procfs.stat(pid)) is None or not state.alive
        else f"is not ready after {timeout_s:g} s"
    )
    raise ResourceError(
        f"the controller (pid {pid}) {ended}: {logs.last_words(paths.log('control'))}",
        expected="a controller that answers",
        fix=f"Read {paths.log('control')}.",
    )


def stop(paths: Paths, timeout_s: float = 90.0) -> bool:
    """End the factory cleanly and return when nothing is left; False when none was running.

    A controller that does not end in time is killed, and then everything that it had started.
    """
    found = read_controller(paths)
    if found is None or not found.lives():
        return clean_stop_without_controller(paths) > 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(found.pid, signal.SIGTERM)
    if not _ended(paths, found, timeout_s):
        procfs.kill(found.pid, lambda s: s.start_time == found.start_time)
        _ended(paths, found, KILLED_S)
    clean_stop_without_controller(paths)
    return True


def _ended(paths: Paths, found: ControllerFile, timeout_s: float) -> bool:
    """Wait until a controller is gone with all its threads: Ray's end later than the first one, after which
    the process counts as dead, and hold the directory's lock until then.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not found.lives():
            now = read_controller(paths)
            if not held(paths) or (now is not None and now.pid != found.pid):
                return True
        time.sleep(POLL_S)
    return False


def clean_stop_without_controller(paths: Paths) -> int:
    """End every process that a dead controller left, the gateway first; return how many there were.

    Raises ``ConflictError`` while a controller runs: that one would start them again.
    """
    if held(paths):
        raise already_running(paths)
    return sum(
        _end_marked(each) for each in (paths, *(NodePaths(paths.root, node) for node in node_names(paths)))
    )


def _end_marked(paths: Paths, grace_s: float = 10.0) -> int:
    """End the processes of this machine that belong to one data directory, or to one node of it."""
    mark = factory_mark(paths)
    left = procfs.marked(mark)
    gateways = {r.id for r in Records(paths.processes).read() if r.kind == "gateway"}
    first = {pid for pid, name in left.items() if name in gateways}
    for pids, wait_s in ((first, grace_s), (set(left) - first, grace_s)):
        for pid in pids:
            procfs.kill(pid, lambda s: procfs.mark_of(s.pid).endswith(f":{mark}"), signal.SIGTERM)
        deadline = time.monotonic() + wait_s
        while pids & set(procfs.marked(mark)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
    for pid in procfs.marked(mark):
        procfs.kill(pid, lambda s: procfs.mark_of(s.pid).endswith(f":{mark}"))
    return len(left)
