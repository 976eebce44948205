"""The gateway as a supervised process: adopted when it lives, started again when it does not.

It serves clients while no controller is there, so an adopted one is left alone as long as it is the program
that would be started now. What it does with requests is none of this module's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from dataclasses import dataclass

from tokenmill.domain.errors import TokenmillError
from tokenmill.floor import logs
from tokenmill.floor.ports import Clock
from tokenmill.floor.process import Order, Process
from tokenmill.floor.processes import Supervisor
from tokenmill.floor.records import Record
from tokenmill.floor.workers import free_port
from tokenmill.spec.settings import Paths, Settings

log = logging.getLogger(__name__)

GATEWAY = "gateway"
BACK_OFF_S = (0.2, 30.0)
STEADY_S = 60.0  # one that lived so long starts its back-off anew


@dataclass(slots=True)
class Edge:
    """Keeps one gateway running. ``trouble`` says why there is none at the moment."""

    supervisor: Supervisor
    paths: Paths
    settings: Settings
    now_us: Clock
    restarts: int = 0
    trouble: str = ""
    _task: asyncio.Task[None] | None = None
    _stopping: bool = False
    _port: int = 0

    def start(self, record: Record | None) -> None:
        """Adopt the recorded gateway, or start one; then keep one running."""
        if record is not None and not self.settings.port:
            self._port = int(record.facts.get("port", 0))
        adopted = self.supervisor.adopt(record) if record is not None else None
        if record is not None and adopted is None:
            self.supervisor.bury(record)
            self.supervisor.records.remove(record.id)
        self._task = asyncio.create_task(self._keep(adopted), name=GATEWAY)

    async def close(self) -> None:
        """End the gateway: it stops admitting, finishes what is open, and syncs its spool."""
        self._stopping = True
        await self.supervisor.stop(GATEWAY, self.settings.drain_us + self.settings.stop_grace_us)
        await self.cancel()
        self.supervisor.forget(GATEWAY)

    async def cancel(self) -> None:
        """Stop watching; the gateway goes on."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _keep(self, process: Process | None) -> None:
        wait_s = BACK_OFF_S[0]
        if process is not None and process.record.argv != self.order().argv:
            log.warning("the gateway runs with other settings and is started again")
            await self.supervisor.stop(GATEWAY, self.settings.drain_us)
        while not self._stopping:
            try:
                if process is None or process.exit is not None:
                    process = await self.supervisor.spawn(self.order())
            except TokenmillError as error:
                self.trouble = str(error)
            else:
                self.trouble = ""
                found = await process.wait()
                if self._asked_to_stop():
                    return
                self.restarts += 1
                self.trouble = f"the gateway {found.reason}: {logs.tail(self.paths.log(GATEWAY), 1)[:300]}"
                log.error("%s", self.trouble)
                if found.usage.wall_us > STEADY_S * 1e6:
                    wait_s = BACK_OFF_S[0]
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, BACK_OFF_S[1])

    def url(self) -> str:
        """Where clients reach the gateway."""
        self.order()
        shown = "127.0.0.1" if self.settings.host in ("0.0.0.0", "::") else self.settings.host  # noqa: S104
        return f"http://{shown}:{self._port}"

    def _asked_to_stop(self) -> bool:
        return self._stopping

    def order(self) -> Order:
        """What would be started now. A port that the system chose once is kept, because clients know it."""
        paths, settings = self.paths, self.settings
        if not self._port:
            self._port = settings.port or free_port()
        return Order(
            id=GATEWAY,
            kind="gateway",
            argv=(
                *(sys.executable, "-m", "tokenmill.gateway"),
                *("--table", str(paths.table)),
                *("--spool", str(paths.spool_file(0))),
                *("--control", str(paths.control_socket)),
                *("--state", str(paths.gateway_file)),
                *("--host", settings.host),
                *("--port", str(self._port)),
                *("--drain-seconds", f"{settings.drain_us / 1e6:g}"),
            ),
            log=paths.log(GATEWAY),
            cwd=paths.run,
            facts={"port": self._port},
        )
