"""The factory's processes with their CPU and memory, from the floor's records and the kernel's counters.

Reads only; starting and ending processes is the floor's business. CPU use is a difference between two looks,
so the first one shows the mean since the process began.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tokenmill.console.context import ApiContext, read_json
from tokenmill.floor import procfs

ORDER = {"control": 0, "ray": 1, "gateway": 1, "engine": 2, "job": 3}
SHORTEST_LOOK_US = 500_000  # a shorter difference says little; the figure of the look before is shown


class ProcessTable:
    """Remembers the last look of each process."""

    def __init__(self, context: ApiContext) -> None:
        self.context = context
        self._before: dict[str, tuple[int, int, int, float]] = {}  # id -> start, time, cpu_us, percent
        self._lock = threading.Lock()

    def rows(self) -> list[dict[str, Any]]:
        """Every live process: the controller, the gateway, engines, jobs. Blocks for some milliseconds."""
        context = self.context
        own = {"id": "control", "kind": "control", "pid": context.pid, "started_us": context.started_us}
        folders = (context.paths.processes, *(context.paths.run.glob("nodes/*/processes")))
        records = [own, *(read_json(path) for folder in folders for path in sorted(folder.glob("*.json")))]
        with self._lock:
            everyone = {found.pid: found for found in procfs.everyone()}
            sessions: dict[int, list[procfs.Stat]] = defaultdict(list)
            for found in everyone.values():
                sessions[found.session].append(found)
            rows = [
                self._row(record, self._members(record, everyone, sessions))
                for record in records
                if _lives(record, everyone)
            ]
        return sorted(rows, key=lambda row: (ORDER.get(row["kind"], 9), row["id"]))

    def _members(
        self,
        record: Mapping[str, Any],
        everyone: Mapping[int, procfs.Stat],
        sessions: Mapping[int, Sequence[procfs.Stat]],
    ) -> list[procfs.Stat]:
        """The process and all that it started. What the controller started has rows of its own."""
        leader = everyone[int(record["pid"])]
        if record.get("kind") == "control" or leader.session != leader.pid:
            return [leader]
        return [leader, *(found for found in sessions[leader.pid] if found.pid != leader.pid)]

    def _row(self, record: Mapping[str, Any], members: Sequence[procfs.Stat]) -> dict[str, Any]:
        name, started_us = str(record["id"]), int(record.get("started_us", 0))
        cpu_us = sum(found.cpu_us for found in members)
        return {
            "id": name,
            "kind": record.get("kind", ""),
            "pid": members[0].pid,
            "cpu_percent": round(self._percent(name, members[0].start_time, started_us, cpu_us), 1),
            "memory_bytes": procfs.memory_bytes([found.pid for found in members]),
            "since_us": started_us,
            "status": self._status(name),
            "address": self._address(name),
        }

    def _percent(self, name: str, start_time: int, started_us: int, cpu_us: int) -> float:
        """Of one core: 100 is one core busy all the time."""
        now_us = self.context.now_us()
        before = self._before.get(name)
        if before is None or before[0] != start_time:
            before = (start_time, started_us, 0, 0.0)
        _, before_us, before_cpu_us, percent = before
        if now_us - before_us < SHORTEST_LOOK_US:
            return percent
        percent = 100 * max(0, cpu_us - before_cpu_us) / (now_us - before_us)
        self._before[name] = (start_time, now_us, cpu_us, percent)
        return percent

    def _status(self, name: str) -> str:
        state = self.context.state
        if name in state.replicas:
            return state.replicas[name].status.value
        if name in state.jobs:
            return state.jobs[name].status.value
        return "running"

    def _address(self, name: str) -> str:
        if name == "control":
            return self.context.paths.control_socket.name
        if name.startswith("gateway"):
            return self.context.url
        replica = self.context.state.replicas.get(name)
        return replica.address if replica else ""


def _lives(record: Mapping[str, Any], everyone: Mapping[int, procfs.Stat]) -> bool:
    """Whether the recorded process is there, and is not another one that was given its pid."""
    found = everyone.get(int(record.get("pid", 0)))
    return found is not None and record.get("start_time", found.start_time) == found.start_time
