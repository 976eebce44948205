"""Starts, pins and measures processes: our two C programs, the gateway and whatever stands beside it.

CPU time is that of a process and all its descendants, in nanoseconds of the scheduler's own account.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
CORES = sorted(os.sched_getaffinity(0))
TESTED = {CORES[0]}
"""The core of what is measured; generator and engine share the next one, where there is one."""
DRIVERS = {CORES[1 % len(CORES)]}


def compile_c(folder: Path, *names: str) -> None:
    """Build ``<name>.c`` of this folder into ``folder``."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise SystemExit("no C compiler: install one (Debian: apt-get install gcc libc6-dev)")
    for name in names:
        command = [compiler, "-O2", "-Wall", "-std=gnu11", "-o", str(folder / name), str(HERE / f"{name}.c")]
        subprocess.run(command, check=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(
    argv: Sequence[str],
    cores: set[int] | None = None,
    log: Path | None = None,
    env: dict[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A child in its own session, on ``cores`` with all its children, ended at the end."""
    before = os.sched_getaffinity(0)
    out = open(log, "wb") if log else subprocess.DEVNULL  # noqa: SIM115 - the child keeps it
    try:
        if cores:
            os.sched_setaffinity(0, cores)
        child = subprocess.Popen(
            argv, stdout=out, stderr=out, start_new_session=True, env={**os.environ, **(env or {})}
        )
    finally:
        os.sched_setaffinity(0, before)
    try:
        yield child
    finally:
        end(child)


def end(child: subprocess.Popen[bytes]) -> None:
    """End a child and its children."""
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(child.pid).children(recursive=True)
    child.terminate()
    try:
        child.wait(15)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def answers(
    port: int, path: str = "/health", limit_s: float = 60, alive: subprocess.Popen[bytes] | None = None
) -> bool:
    """Wait until the server at ``port`` answers 200; False when it does not within ``limit_s`` or dies."""
    limit = time.monotonic() + limit_s
    while time.monotonic() < limit and (alive is None or alive.poll() is None):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as link:
            link.settimeout(5)
            link.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            if b" 200 " in link.recv(64):
                return True
        time.sleep(0.1)
    return False


def family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


def cpu_ns(pid: int) -> int:
    """CPU time of ``pid`` and its descendants, all threads, so far."""
    total = 0
    for member in family(pid):
        for task in Path(f"/proc/{member.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(task.read_text().split()[0])
    return total


def memory_mb(pid: int) -> float:
    """Resident memory of ``pid`` and its descendants."""
    total = 0
    for member in family(pid):
        with contextlib.suppress(psutil.Error):
            total += member.memory_info().rss
    return total / 2**20


@dataclass(frozen=True, slots=True)
class Load:
    """One round of the generator. ``tokens`` odd: paced by the engine, even: as fast as it goes."""

    streams: int
    tokens: int
    stream: bool
    warm_s: float
    seconds: float
    think_us: int = 0


def drive(folder: Path, port: int, key: str, load: Load, pids: Sequence[int], path: str) -> dict[str, Any]:
    """Run one round; adds ``cpu_us`` and ``memory_mb`` of ``pids`` over the counted part."""
    argv = [
        *(str(folder / "load"), str(port), path, key, str(load.streams), str(load.tokens)),
        *(str(load.warm_s), str(load.seconds), str(int(load.stream)), str(load.think_us)),
    ]
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, DRIVERS)
    try:
        child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        os.sched_setaffinity(0, before)
    assert child.stdout is not None
    child.stdout.readline()
    begun = sum(cpu_ns(pid) for pid in pids)
    time.sleep(max(0.0, load.seconds - 0.1))
    memory = sum(memory_mb(pid) for pid in pids)
    out, errors = child.communicate(timeout=60)
    spent = sum(cpu_ns(pid) for pid in pids) - begun
    if child.returncode:
        raise RuntimeError(f"the generator failed: {errors.decode()[-300:]}")
    found: dict[str, Any] = json.loads(out)
    return {**found, "cpu_us": spent / 1e3, "memory_mb": memory, "said": errors.decode()[:300]}
