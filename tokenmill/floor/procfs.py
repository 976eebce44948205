"""Readings of /proc: who lives, since when, in which session, with which mark, how large and how busy.

Linux only. A process is named by its pid and its start time together, because pids are used again.
Nothing here changes a process except ``kill``, which goes through a pidfd so that it can never hit a
process that took over the pid.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "TOKENMILL_PROCESS"
"""Environment variable ``<process id>:<factory hash>``; children inherit it, so nothing escapes it."""

TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")
_MARK_PREFIX = f"{MARK}=".encode()


@dataclass(frozen=True, slots=True)
class Stat:
    """One line of /proc/<pid>/stat. ``cpu_us`` includes children that were waited for."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    start_time: int  # clock ticks since boot
    cpu_us: int

    @property
    def alive(self) -> bool:
        return self.state not in ("Z", "X")


def boot_id() -> str:
    """Return the kernel's id of this boot: start times are only comparable within one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def stat(pid: int) -> Stat | None:
    """Read one process, or return None when there is none. A zombie is returned, with ``alive`` false."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the command may hold spaces and brackets
    return Stat(
        pid=pid,
        state=fields[0],
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        start_time=int(fields[19]),
        cpu_us=sum(int(f) for f in fields[11:15]) * TICK_US,
    )


def everyone() -> Iterator[Stat]:
    """Read every process of this machine that lives."""
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            found = stat(int(path.name))
            if found is not None and found.alive:
                yield found


def mark_of(pid: int) -> str:
    """Return the value of the mark in a process's environment, or "" when it has none or is not ours."""
    try:
        block = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return ""
    for entry in block.split(b"\0"):
        if entry.startswith(_MARK_PREFIX):
            return entry[len(_MARK_PREFIX) :].decode(errors="replace")
    return ""


def marked(factory_mark: str) -> dict[int, str]:
    """Return pid -> process id of every living process that carries this factory's mark."""
    found: dict[int, str] = {}
    for process in everyone():
        name, _, factory = mark_of(process.pid).rpartition(":")
        if factory == factory_mark and name:
            found[process.pid] = name
    return found


def memory_bytes(pids: list[int]) -> int:
    """Return the resident memory of processes that belong together.

    Private and shared-memory pages add up; file pages (mapped weights, libraries) are shared between
    the processes of a group, so only the largest count is taken.
    """
    private = 0
    files = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        kilobytes = {
            line.split(":", 1)[0]: int(line.split()[1])
            for line in text.splitlines()
            if line.startswith(("RssAnon", "RssFile", "RssShmem"))
        }
        private += kilobytes.get("RssAnon", 0) + kilobytes.get("RssShmem", 0)
        files = max(files, kilobytes.get("RssFile", 0))
    return (private + files) * 1024


def kill(pid: int, wanted: Callable[[Stat], bool], signal_number: int = signal.SIGKILL) -> bool:
    """Send a signal to ``pid`` if it still is the ``wanted`` process. Returns whether it was sent."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        found = stat(pid)
        if found is None or not found.alive or not wanted(found):
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal_number)
            return True
        return False
    finally:
        os.close(handle)
