"""The gateway as supervised processes on one port: adopted when they live, started again when they do not.

They serve clients while no controller is there, so an adopted one is left alone as long as it is the program
that would be started now. What they do with requests is none of this module's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenmill.domain.errors import TokenmillError
from tokenmill.floor import logs
from tokenmill.floor.load import url_of
from tokenmill.floor.process import Order, Process
from tokenmill.floor.processes import Supervisor
from tokenmill.floor.records import Record
from tokenmill.floor.workers import free_port
from tokenmill.spec.files import write_atomically
from tokenmill.spec.paths import Paths
from tokenmill.spec.settings import GATEWAYS_MOST, Settings

log = logging.getLogger(__name__)

BACK_OFF_S = (0.2, 30.0)
STEADY_S = 60.0  # one that lived so long starts its back-off anew


def name_of(index: int) -> str:
    """What the process with this index is called, in records and logs."""
    return f"gateway-{index}" if index else "gateway"


def process_count(paths: Paths, settings: Settings) -> int:
    """How many processes share the port: what the setting says, else as the last time, else one."""
    file = paths.run / "gateways"
    count = settings.gateways
    if not count:
        with contextlib.suppress(OSError, ValueError):
            count = int(file.read_text(encoding="ascii"))
    count = max(1, min(count, GATEWAYS_MOST))
    write_atomically(file, b"%d" % count)
    return count


@dataclass(slots=True)
class Edge:
    """Keeps the gateway's processes running."""

    supervisor: Supervisor
    paths: Paths
    settings: Settings
    _keepers: list[_Keeper] = field(default_factory=list)
    _leaving: list[asyncio.Task[None]] = field(default_factory=list)
    _port: int = 0

    def start(self, records: Sequence[Record]) -> None:
        """Adopt the recorded processes, or start what is missing; then keep as many as are wanted running."""
        known = {record.id: record for record in records}
        if not self.settings.port:
            self._port = next((int(port) for r in records if (port := r.facts.get("port"))), 0)
        count = process_count(self.paths, self.settings)
        for index in range(count):
            keeper = _Keeper(self.supervisor, self.paths, self.settings, self._order(index, count))
            keeper.start(known.pop(name_of(index), None))
            self._keepers.append(keeper)
        for record in known.values():
            self._leaving.append(asyncio.create_task(self._dismiss(record), name=f"{record.id} leaves"))

    async def _dismiss(self, record: Record) -> None:
        """One of more processes than are wanted now: it finishes what is open."""
        if self.supervisor.adopt(record) is None:
            self.supervisor.bury(record)
            self.supervisor.records.remove(record.id)
            return
        await self.supervisor.stop(record.id, self.settings.drain_us + self.settings.stop_grace_us)
        self.supervisor.forget(record.id)

    async def close(self) -> None:
        """End the gateway: it stops admitting, finishes what is open, and syncs its spools."""
        await asyncio.gather(*(keeper.close() for keeper in self._keepers), *self._leaving)

    async def cancel(self) -> None:
        """Stop watching; the gateway goes on."""
        await asyncio.gather(*(keeper.cancel() for keeper in self._keepers))
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)

    def url(self) -> str:
        """Where clients reach the gateway."""
        return url_of(self.settings.host, self._chosen_port(), tls=self._tls)

    @property
    def _tls(self) -> bool:
        return bool(self.settings.tls_cert or self.settings.tls_key)

    def _chosen_port(self) -> int:
        """A port that the system chose once is kept, because clients know it."""
        if not self._port:
            self._port = self.settings.port or free_port()
        return self._port

    def _order(self, index: int, count: int) -> Order:
        """What would be started now."""
        paths, settings, port = self.paths, self.settings, self._chosen_port()
        return Order(
            id=name_of(index),
            kind="gateway",
            argv=(
                *(sys.executable, "-m", "tokenmill.gateway"),
                *("--table", str(paths.table)),
                *("--spool", str(paths.spool_file(0, index))),
                *("--control", str(paths.control_socket)),
                *("--state", str(paths.gateway_file(index))),
                *("--host", settings.host),
                *("--port", str(port)),
                *("--drain-seconds", f"{settings.drain_us / 1e6:g}"),
                *("--head-seconds", f"{settings.header_timeout_us / 1e6:g}"),
                *("--connections", str(settings.max_connections)),
                *("--body-bytes", str(settings.max_body_bytes)),
                *("--buffered-bytes", str(settings.max_bodies_bytes)),
                *("--spool-bytes", str(settings.spool_rotate_bytes)),
                *(("--tls-cert", settings.tls_cert, "--tls-key", settings.tls_key) if self._tls else ()),
                *(("--allowed-origins", settings.allowed_origins) if settings.allowed_origins else ()),
                *(("--insecure-bind",) if settings.insecure_bind == "yes" else ()),
                *(("--index", str(index), "--processes", str(count)) if count > 1 else ()),
            ),
            log=paths.log(name_of(index)),
            cwd=paths.run,
            facts={"port": port},
        )


@dataclass(slots=True)
class _Keeper:
    """Keeps one process running."""

    supervisor: Supervisor
    paths: Paths
    settings: Settings
    order: Order
    _task: asyncio.Task[None] | None = None
    _stopping: bool = False

    def start(self, record: Record | None) -> None:
        adopted = self.supervisor.adopt(record) if record is not None else None
        if record is not None and adopted is None:
            self.supervisor.bury(record)
            self.supervisor.records.remove(record.id)
        self._task = asyncio.create_task(self._keep(adopted), name=self.order.id)

    async def close(self) -> None:
        self._stopping = True
        await self.supervisor.stop(self.order.id, self.settings.drain_us + self.settings.stop_grace_us)
        await self.cancel()
        self.supervisor.forget(self.order.id)

    async def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _keep(self, process: Process | None) -> None:
        name, wait_s = self.order.id, BACK_OFF_S[0]
        if process is not None and process.record.argv != self.order.argv:
            log.warning("%s runs with other settings and is started again", name)
            await self.supervisor.stop(name, self.settings.drain_us)
        while not self._stopping:
            try:
                if process is None or process.exit is not None:
                    process = await self.supervisor.spawn(self.order)
            except TokenmillError as error:
                log.error("%s cannot be started: %s", name, error)
            else:
                found = await process.wait()
                if self._asked_to_stop():
                    return
                last = logs.last_words(self.paths.log(name))
                log.error("%s %s: %s", name, found.reason, last)
                if found.usage.wall_us > STEADY_S * 1e6:
                    wait_s = BACK_OFF_S[0]
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, BACK_OFF_S[1])

    def _asked_to_stop(self) -> bool:
        return self._stopping
