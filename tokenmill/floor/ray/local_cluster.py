"""A Ray cluster of this machine alone, started with the factory and ended with it.

``ray start --head --block`` runs as a supervised process: it outlives a controller, and the next one finds it
by its record. More nodes may join it at the address that ``run/ray-address`` holds.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tokenmill.domain.errors import ResourceError
from tokenmill.floor import logs
from tokenmill.floor.process import Order
from tokenmill.floor.processes import Supervisor
from tokenmill.floor.workers import free_ports
from tokenmill.spec.paths import Paths

RAY = "ray-head"
START_S = 60.0
OBJECT_STORE_BYTES = 80 * 2**20  # the smallest that Ray takes: no data goes through it


class LocalCluster:
    """Keeps the head node. Loopback only, without dashboard and usage reports."""

    def __init__(self, supervisor: Supervisor, paths: Paths) -> None:
        self._supervisor = supervisor
        self._paths = paths

    async def start(self) -> str:
        """Adopt the cluster or start one; return its address when it answers. Raises ``ResourceError``."""
        record = next((r for r in self._supervisor.records.read() if r.id == RAY), None)
        if record is not None and self._supervisor.adopt(record) is not None:
            return str(record.facts["address"])
        if record is not None:
            self._supervisor.bury(record)
            self._supervisor.records.remove(RAY)
        port, agent = free_ports(2)
        address = f"127.0.0.1:{port}"
        (self._paths.run / "ray-address").write_text(address + "\n")
        process = await self._supervisor.spawn(self._order(port, agent))
        ready = "Ray runtime started"
        log = self._paths.log(RAY)
        for _ in range(int(START_S / 0.1)):
            if ready in logs.tail(log, 200):
                return address
            if process.exit is not None:
                break
            await asyncio.sleep(0.1)
        raise ResourceError(
            f"Ray did not start: {logs.last_words(log)}",
            expected="ray start --head to answer",
            fix=f"Read {log}.",
        )

    async def stop(self) -> None:
        await self._supervisor.stop(RAY, 10_000_000)
        self._supervisor.forget(RAY)

    def _order(self, port: int, agent: int) -> Order:
        """``agent``: the port of Ray's dashboard agent, which would else be a fixed one and may be taken."""
        log = self._paths.log(RAY)
        log.unlink(missing_ok=True)  # the line that says it is ready must be of this start
        return Order(
            id=RAY,
            kind="ray",
            argv=(
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *("--node-ip-address", "127.0.0.1", "--port", str(port), "--include-dashboard", "false"),
                *("--dashboard-agent-listen-port", str(agent)),
                *("--disable-usage-stats", "--object-store-memory", str(OBJECT_STORE_BYTES)),
            ),
            log=log,
            cwd=Path(self._paths.run),
            env={"RAY_USAGE_STATS_ENABLED": "0", "RAY_kill_child_processes_on_worker_exit": "false"},
            facts={"address": f"127.0.0.1:{port}"},
        )
