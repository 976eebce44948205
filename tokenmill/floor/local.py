"""The floor of this machine: engines, jobs, imports and the gateway as processes of our own.

It does what effects ask for and reports what happened; it decides nothing. Everything it starts is found
again by the next controller (``adopt``) or ended (``close``).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from tokenmill.control.state import State
from tokenmill.domain.codec import from_plain, to_plain
from tokenmill.domain.effects import (
    Effect,
    ImportModel,
    PublishTable,
    StartJob,
    StartReplica,
    StopJob,
    StopReplica,
)
from tokenmill.domain.errors import DataError, invariant
from tokenmill.domain.factory import Factory, Node
from tokenmill.domain.table import Table
from tokenmill.floor import machine
from tokenmill.floor.accounts import EnergyAccounts
from tokenmill.floor.edge import Edge
from tokenmill.floor.energy import CpuModel, EnergyMeter, find_rapl
from tokenmill.floor.gangs import Gangs
from tokenmill.floor.imports import Imports, Verifier
from tokenmill.floor.ports import Clock, Current, EnergyAccount, Report
from tokenmill.floor.processes import Supervisor
from tokenmill.floor.records import Records, write_atomically
from tokenmill.floor.replicas import Replicas
from tokenmill.spec.settings import Paths, Settings
from tokenmill.store.artifacts import Artifacts

log = logging.getLogger(__name__)

PROGRESS_EVERY_S = 1.0
SWEEP_EVERY_S = 30.0


class LocalFloor:
    """Implements ``ports.Floor`` with processes. ``factory_dir`` is where the factory file lies."""

    def __init__(self, paths: Paths, settings: Settings, factory_dir: Path, now_us: Clock) -> None:
        self._paths = paths
        self._settings = settings
        self._factory_dir = factory_dir
        self._now_us = now_us
        self.mark = factory_mark(paths)
        meter = energy_meter(settings)
        self.accounts = EnergyAccounts(paths.run / "energy.json", meter, now_us)
        self.supervisor = Supervisor(
            Records(paths.processes),
            self.mark,
            meter,
            now_us,
            log_limit_bytes=settings.log_rotate_bytes,
            on_sample=self.accounts.sampled,
        )
        self.accounts.refresh = self.supervisor.sample_energy
        self.edge = Edge(self.supervisor, paths, settings, now_us)
        self._verifier = Verifier(Artifacts(paths.artifacts))
        self._tasks: list[asyncio.Task[None]] = []
        self._table_version = -1
        self._parts: tuple[Replicas, Gangs, Imports] | None = None

    async def start(self, report: Report, current: Current) -> None:
        paths, now_us = self._paths, self._now_us
        self._parts = (
            Replicas(
                self.supervisor,
                paths,
                self._verifier,
                self.accounts,
                report,
                current,
                now_us,
                self._settings.start_timeout_us,
            ),
            Gangs(self.supervisor, paths, self._factory_dir, report, now_us),
            Imports(self.supervisor, paths, self._factory_dir, report, now_us),
        )
        self.accounts.load()
        self._tasks = [
            asyncio.create_task(self.supervisor.sample_forever(), name="samples"),
            asyncio.create_task(self._watch_progress(), name="progress"),
            asyncio.create_task(self._sweep(), name="strays"),
        ]

    @property
    def parts(self) -> tuple[Replicas, Gangs, Imports]:
        invariant(self._parts is not None, "the floor was started")
        assert self._parts is not None
        return self._parts

    async def adopt(self, state: State) -> None:
        replicas, gangs, _ = self.parts
        records = self.supervisor.records.read()
        self.accounts.drop(record.id for record in records)
        await asyncio.to_thread(self._end_imports)
        gateway = next((r for r in records if r.kind == "gateway"), None)
        replicas.adopt(tuple(r for r in records if r.kind == "engine"), state)
        gangs.adopt(tuple(r for r in records if "job" in r.facts), state)
        self.edge.start(gateway)
        await asyncio.to_thread(self.supervisor.kill_strays)

    def _end_imports(self) -> None:
        """An import that outlived its controller is killed: ``resume`` asks for it again."""
        for record in self.supervisor.records.read():
            if "import" in record.facts:
                self.supervisor.bury(record)
                self.supervisor.records.remove(record.id)

    async def carry_out(self, effect: Effect) -> None:
        replicas, gangs, imports = self.parts
        match effect:
            case ImportModel(model):
                imports.start(model)
            case StartReplica():
                replicas.start(effect)
            case StopReplica(replica, grace_us):
                replicas.stop(replica, grace_us)
            case StartJob():
                gangs.start(effect)
            case StopJob(job, grace_us):
                gangs.stop(job, grace_us)
            case PublishTable(table):
                await self._publish(table)
            case _:
                log.error("a floor cannot carry out %s", type(effect).__name__)

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

    def inventory(self, factory: Factory) -> Node:
        return machine.local_node(factory)

    def energy(self) -> EnergyAccount:
        return self.accounts

    def progress(self) -> Mapping[str, Mapping[str, Any]]:
        _, gangs, imports = self.parts
        return {**gangs.progress(), **imports.progress()}

    async def close(self, stop_all: bool) -> None:
        """Stop watching. With ``stop_all`` the gateway ends first, so that open requests finish on living
        engines; then jobs and engines; then whatever still bears our mark."""
        replicas, gangs, imports = self.parts
        if stop_all:
            await self.edge.close()
            await asyncio.gather(gangs.close(), imports.close(), replicas.close())
        else:
            await self.edge.cancel()
            gangs.cancel()
            imports.cancel()
            await replicas.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.supervisor.close()
        if stop_all:
            await asyncio.to_thread(self.supervisor.kill_strays, everything=True)

    async def _watch_progress(self) -> None:
        _, gangs, imports = self.parts
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            await asyncio.to_thread(gangs.read_progress)
            await asyncio.to_thread(imports.read_progress)

    async def _sweep(self) -> None:
        """Now and then look for processes that bear our mark but belong to nothing that we know."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            await asyncio.to_thread(self.supervisor.kill_strays)


def factory_mark(paths: Paths) -> str:
    """Return what tells this data directory's processes from those of every other one."""
    return hashlib.sha256(os.fsencode(paths.root.resolve())).hexdigest()[:16]


def energy_meter(settings: Settings) -> EnergyMeter:
    node = machine.measure(machine.LOCAL_NODE, "")
    model = CpuModel(
        settings.cpu_active_watts_per_core, settings.cpu_idle_watts, max(1, node.cpu_millis // 1000)
    )
    return EnergyMeter(model, find_rapl(), machine.accelerator_counters(node))


def table_version(path: Path) -> int:
    """Return the version of the table that gateways have now; 0 when there is none."""
    try:
        return from_plain(msgspec.json.decode(path.read_bytes()), Table).version
    except (OSError, msgspec.DecodeError, DataError):
        return 0
