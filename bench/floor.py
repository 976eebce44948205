"""How fast a floor starts what was decided, and replaces what was lost.

    python bench/floor.py [--floor local|ray] [--jobs 20] [--kills 5] [--json]

Makes a factory in an empty folder. ``submit_to_start`` is from the journalled submission of a job to the
start of its process, all of it our own share (journal, decision, files, spawn); the command's own start
comes after it. ``kill_to_start`` is from ``kill -9`` of an engine to the start of the process that replaces
it; its loading comes after that, and belongs to the engine. Targets: 50 ms and 1 s.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMMAND = [str(Path(sys.executable).with_name("tokenmill"))]


def call(folder: Path, *words: str, floor: str = "") -> Any:
    """Run one verb with ``--json`` and return what it printed."""
    environ = {**os.environ, "TOKENMILL_PORT": "0"}
    environ |= {"TOKENMILL_FLOOR": floor} if floor else {}
    done = subprocess.run([*COMMAND, *words], cwd=folder, env=environ, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout or b"{}")


def submit_to_start_ms(folder: Path) -> float:
    """Milliseconds from the submission of a job, as journalled, to the start of its process."""
    made = call(folder, "jobs", "submit", "--json", "--cpu", "0.05", "--", "/bin/sleep", "2")
    job = made["job"]
    until = time.monotonic() + 30
    while time.monotonic() < until:
        for row in call(folder, "ps", "--json"):
            if row["id"] == job:
                return (row["since_us"] - submitted_us(folder, job)) / 1000
    raise SystemExit(f"{job} did not start")


def submitted_us(folder: Path, job: str) -> int:
    return int(
        next(row for row in call(folder, "jobs", "list", "--json") if row["id"] == job)["submitted_us"]
    )


def kill_to_start_ms(folder: Path) -> float:
    """Milliseconds from the kill of an engine to the start of the next one."""
    wait_ready(folder)
    before = {row["id"]: row for row in call(folder, "ps", "--json") if row["kind"] == "engine"}
    victim = before[min(before)]
    killed_us = time.time_ns() // 1000
    os.kill(victim["pid"], signal.SIGKILL)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for row in call(folder, "ps", "--json"):
            if row["kind"] == "engine" and row["id"] not in before:
                return (row["since_us"] - killed_us) / 1000
    raise SystemExit("the engine was not replaced")


def wait_ready(folder: Path) -> None:
    until = time.monotonic() + 60
    while not call(folder, "status", "--json")["ready"] and time.monotonic() < until:
        time.sleep(0.2)


def measure(floor: str, jobs: int, kills: int) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([*COMMAND, "init"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        call(folder, "up", "--json", "--timeout", "120", floor=floor)
        try:
            return {
                "submit_to_start": [submit_to_start_ms(folder) for _ in range(jobs)],
                "kill_to_start": [kill_to_start_ms(folder) for _ in range(kills)],
            }
        finally:
            call(folder, "down", "--json")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--floor", default="local", help="local, ray, or a Ray cluster's address")
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.floor, options.jobs, options.kills)
    if options.json:
        print(json.dumps({"floor": options.floor, "ms": found}))
        return
    print(f"{options.floor + ' (ms)':24}{'min':>9}{'median':>9}{'max':>9}")
    for name, values in found.items():
        print(f"{name:24}{min(values):9.1f}{statistics.median(values):9.1f}{max(values):9.1f}")


if __name__ == "__main__":
    main()
