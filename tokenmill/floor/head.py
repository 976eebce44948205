"""What a factory has once, however many nodes it has: the gateway, imports of models, the published table.

All of it runs beside the controller. Engines and jobs are ``node``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from tokenmill.domain.codec import from_plain, to_plain
from tokenmill.domain.effects import Effect, ImportModel, PaceJob, PublishTable
from tokenmill.domain.errors import DataError, invariant
from tokenmill.domain.table import Table
from tokenmill.floor.edge import Edge
from tokenmill.floor.imports import Imports
from tokenmill.floor.node import PROGRESS_EVERY_S
from tokenmill.floor.ports import Clock, Report
from tokenmill.floor.processes import Supervisor
from tokenmill.floor.workers import write_pace
from tokenmill.spec.files import write_atomically
from tokenmill.spec.paths import Paths
from tokenmill.spec.settings import Settings

log = logging.getLogger(__name__)


class Head:
    """Gateway, imports and table, under the supervisor of the controller's machine."""

    def __init__(
        self, supervisor: Supervisor, paths: Paths, settings: Settings, factory_dir: Path, now_us: Clock
    ) -> None:
        self._supervisor = supervisor
        self._paths = paths
        self._factory_dir = factory_dir
        self._now_us = now_us
        self.edge = Edge(supervisor, paths, settings)
        self._table_version = -1
        self._imports: Imports | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def imports(self) -> Imports:
        invariant(self._imports is not None, "the head was started")
        assert self._imports is not None
        return self._imports

    def start(self, report: Report) -> None:
        self._imports = Imports(self._supervisor, self._paths, self._factory_dir, report, self._now_us)
        self._watching = asyncio.create_task(self._watch_progress(), name="imports")

    async def adopt(self) -> None:
        """Take over the gateway or start one. An import that outlived its controller is killed: ``resume``
        asks for it again."""
        records = self._supervisor.records.read()
        await asyncio.to_thread(self._end_imports)
        self.edge.start([record for record in records if record.kind == "gateway"])

    def _end_imports(self) -> None:
        for record in self._supervisor.records.read():
            if "import" in record.facts:
                self._supervisor.bury(record)
                self._supervisor.records.remove(record.id)

    async def carry_out(self, effect: Effect) -> bool:
        """Begin to do ``effect``; False when it is not the head's."""
        match effect:
            case ImportModel(model):
                self.imports.start(model)
            case PublishTable(table):
                await self._publish(table)
            case PaceJob(job, checkpoint_us):
                with contextlib.suppress(OSError):  # told again after the job's next checkpoint
                    await asyncio.to_thread(write_pace, self._paths, job, checkpoint_us)
            case _:
                return False
        return True

    async def _publish(self, table: Table) -> None:
        if self._table_version < 0:
            self._table_version = await asyncio.to_thread(table_version, self._paths.table)
        if table.version < self._table_version:
            return
        body = msgspec.json.encode(to_plain(table))
        while True:
            try:
                await asyncio.to_thread(write_atomically, self._paths.table, body)
            except OSError as error:
                log.error("the table cannot be written: %s", error)
                await asyncio.sleep(1.0)
            else:
                break
        self._table_version = table.version

    def progress(self) -> Mapping[str, Mapping[str, Any]]:
        return self.imports.progress()

    async def close(self, stop_all: bool) -> None:
        """Stop watching; with ``stop_all`` the imports end, and the gateway when its open requests have."""
        if stop_all:
            await asyncio.gather(self.edge.close(), self.imports.close())
        else:
            await self.edge.cancel()
            self.imports.cancel()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def _watch_progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            await asyncio.to_thread(self.imports.read_progress)


def table_version(path: Path) -> int:
    """Return the version of the table that gateways have now; 0 when there is none."""
    try:
        return from_plain(msgspec.json.decode(path.read_bytes()), Table).version
    except (OSError, msgspec.DecodeError, DataError):
        return 0
