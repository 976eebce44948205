"""What a supervised process may use at most.

With a writable cgroup v2 the kernel holds memory and CPU; else memory is watched (``processes`` kills what
grew past its limit) and CPU is only a priority. RLIMIT_AS is not used: PyTorch and CUDA reserve far more
address space than they touch.
"""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

OPEN_FILES = 65_536


class Cgroups:
    """A folder ``tokenmill-<factory mark>`` below our own cgroup, or nothing when that cannot be had."""

    def __init__(self, factory_mark: str, root: Path = Path("/sys/fs/cgroup")) -> None:
        self.folder = _delegated(root, factory_mark)

    @property
    def usable(self) -> bool:
        return self.folder is not None

    def enter(self, process_id: str, pid: int, memory_bytes: int, cpu_millis: int) -> bool:
        """Put a new process into a group of its own. Returns whether the kernel now holds its memory."""
        if self.folder is None:
            return False
        group = self.folder / process_id
        try:
            group.mkdir(exist_ok=True)
            if memory_bytes:
                (group / "memory.max").write_text(str(memory_bytes))
            if cpu_millis:
                (group / "cpu.weight").write_text(str(max(1, min(10_000, cpu_millis // 10))))
            (group / "cgroup.procs").write_text(str(pid))
        except OSError:
            return False
        return True

    def leave(self, process_id: str) -> None:
        """Remove the group of a process that is gone."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                (self.folder / process_id).rmdir()


def _delegated(root: Path, factory_mark: str) -> Path | None:
    try:
        controllers = (root / "cgroup.controllers").read_text().split()
        if not {"memory", "cpu"} <= set(controllers):
            return None
        own = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        folder = root / own / f"tokenmill-{factory_mark}"
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.subtree_control").write_text("+memory +cpu")
    except OSError:
        return None
    return folder


def restrict(pid: int, nice: int) -> None:
    """Bound open files, forbid core dumps (they hold prompts) and set the priority of ``pid``'s group."""
    with contextlib.suppress(OSError, ValueError):
        hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        ceiling = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (ceiling, hard))
    with contextlib.suppress(OSError, ValueError):
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
    if nice:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PGRP, pid, nice)
