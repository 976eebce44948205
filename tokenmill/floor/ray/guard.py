"""Ends a node's processes when its raylet has died and no other agent has taken them over within the grace.

``python -m tokenmill.floor.ray.guard RUN_DIR RAYLET_PID RAYLET_START GRACE_S MARK``. One lives per node; a
newer one, for a newer raylet, replaces it. Without it a raylet that dies on a living machine would leave
engines behind while the factory replaces them elsewhere.
"""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path

from tokenmill.floor import procfs

LEADER = "guard"


def main(run: Path, pid: int, start_time: int, grace_s: float, mark: str) -> None:
    """Wait for the raylet's end, then for the grace; then kill unless another guard has come."""
    lead = run / LEADER
    run.mkdir(parents=True, exist_ok=True)
    lead.write_text(str(os.getpid()))
    if not _wait_for_end(pid, start_time, lead):
        return
    until = time.monotonic() + grace_s
    while time.monotonic() < until:
        time.sleep(min(0.2, grace_s))
        if not _leads(lead):
            return
    for _ in range(5):
        for victim in procfs.marked(mark):
            procfs.kill(victim, lambda found: procfs.mark_of(found.pid).endswith(f":{mark}"))


def _wait_for_end(pid: int, start_time: int, lead: Path) -> bool:
    """Return whether the raylet ended while this guard was the one that counts."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    found = procfs.stat(pid)
    if found is None or found.start_time != start_time:
        return True
    while not select.select([handle], [], [], 1.0)[0]:
        if not _leads(lead):
            return False
    return True


def _leads(lead: Path) -> bool:
    try:
        return lead.read_text() == str(os.getpid())
    except OSError:
        return False  # the data directory is gone, and with it everything to guard


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5])
