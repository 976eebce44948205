"""One supervised process: what to start, how it ended, and the waiting for its end.

Linux only. Starts nothing and kills nothing; that is ``processes``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenmill.domain.work import WorkUsage
from tokenmill.floor import procfs
from tokenmill.floor.clock import since_boot_us
from tokenmill.floor.records import Record

UNKNOWN_CODE = 255
"""Exit code of an adopted process: only a parent may ask the kernel for the real one."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to start and what it may use."""

    id: str
    kind: str
    argv: tuple[str, ...]
    log: Path
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int = 0
    cpu_millis: int = 0
    accelerators: tuple[str, ...] = ()
    nice: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. ``code`` is negative for a signal and ``UNKNOWN_CODE`` for an adopted one."""

    code: int
    reason: str
    usage: WorkUsage


class Process:
    """One living, or just ended, process. Await ``wait`` for its end."""

    def __init__(self, record: Record, child: subprocess.Popen[bytes] | None) -> None:
        self.record = record
        self.child = child  # None when adopted
        self.began_us = record.start_time * procfs.TICK_US if child is None else since_boot_us()
        self.kill_reason = ""
        self.cpu_us = 0
        self.memory_bytes = 0
        self.peak_bytes = 0
        self.kernel_bounds_memory = False
        self.stopping: asyncio.Task[Exit | None] | None = None
        self._exit: Exit | None = None
        self._ended = asyncio.Event()

    @property
    def exit(self) -> Exit | None:
        return self._exit

    def ended_with(self, exit_: Exit) -> None:
        self._exit = exit_
        self._ended.set()

    def age_us(self) -> int:
        """How long ago it was started, whatever was done to the machine's clock since."""
        return max(0, since_boot_us() - self.began_us)

    async def wait(self) -> Exit:
        await self._ended.wait()
        assert self._exit is not None
        return self._exit


async def leader_gone(process: Process) -> None:
    """Wait until the leader has exited, whether or not it is our child."""
    try:
        handle = os.pidfd_open(process.record.pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    try:
        if process.child is None and not process.record.lives():
            return
        loop.add_reader(handle, gone.set)
        await gone.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def reap(process: Process) -> tuple[int, int, int]:
    """Return exit code, CPU time in microseconds and peak bytes; the last two are 0 when not our child."""
    if process.child is None:
        return UNKNOWN_CODE, 0, 0
    _, status, usage = os.wait4(process.child.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    process.child.returncode = code  # or Popen would wait for a pid that may be someone else's by then
    return code, round((usage.ru_utime + usage.ru_stime) * 1_000_000), usage.ru_maxrss * 1024


def describe(code: int) -> str:
    """Say in words what an exit code means."""
    if code == UNKNOWN_CODE:
        return "ended while no controller watched it"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = " (from outside, or the kernel was out of memory)" if code == -signal.SIGKILL else ""
        return f"killed by {name}{hint}"
    return f"exited with code {code}"


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 100_000_000 else f"{size / 1e6:.0f} MB"
