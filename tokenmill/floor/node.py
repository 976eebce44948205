"""The workers of one node: engines and jobs as supervised processes, found again by whoever leads next.

The floor of one machine has one of these; on a Ray cluster each node's agent has one. It does what effects
ask for and reports what happened; it decides nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenmill.control.state import State
from tokenmill.domain.effects import Effect, StartJob, StartReplica, StopJob, StopReplica
from tokenmill.domain.errors import invariant
from tokenmill.floor import machine
from tokenmill.floor.accounts import EnergyAccounts
from tokenmill.floor.energy import CpuModel, EnergyMeter, find_rapl
from tokenmill.floor.gangs import Gangs
from tokenmill.floor.imports import Verifier
from tokenmill.floor.ports import Clock, Current, Report
from tokenmill.floor.processes import Supervisor
from tokenmill.floor.records import Records
from tokenmill.floor.replicas import Replicas
from tokenmill.floor.workers import Share
from tokenmill.spec.paths import Paths
from tokenmill.spec.settings import Settings
from tokenmill.store.artifacts import Artifacts
from tokenmill.store.signing import Signatures

PROGRESS_EVERY_S = 1.0
SWEEP_EVERY_S = 30.0


class NodeWorkers:
    """Replicas and gangs of this machine under one supervisor, with their energy."""

    def __init__(
        self, paths: Paths, settings: Settings, factory_dir: Path, now_us: Clock, host: str = "127.0.0.1"
    ) -> None:
        self._paths = paths
        self._settings = settings
        self._factory_dir = factory_dir
        self._now_us = now_us
        self._host = host
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
        self._tasks: list[asyncio.Task[None]] = []
        self._parts: tuple[Replicas, Gangs] | None = None

    async def start(self, report: Report, current: Current) -> None:
        paths, now_us = self._paths, self._now_us
        self._parts = (
            Replicas(
                self.supervisor,
                paths,
                Verifier(Artifacts(paths.artifacts), signatures_of(paths)),
                self.accounts,
                report,
                current,
                now_us,
                self._settings.start_timeout_us,
                self._host,
            ),
            Gangs(self.supervisor, paths, self._factory_dir, report, now_us),
        )
        self.accounts.load()
        self._tasks = [
            asyncio.create_task(self.supervisor.sample_forever(), name="samples"),
            asyncio.create_task(self._watch_progress(), name="progress"),
            asyncio.create_task(self._sweep(), name="strays"),
        ]

    @property
    def parts(self) -> tuple[Replicas, Gangs]:
        invariant(self._parts is not None, "the node was started")
        assert self._parts is not None
        return self._parts

    async def adopt(self, state: State) -> None:
        """Take over what lives, report what ended, end what ``state`` does not want."""
        replicas, gangs = self.parts
        records = self.supervisor.records.read()
        self.accounts.drop(record.id for record in records)
        replicas.adopt(tuple(r for r in records if r.kind == "engine"), state)
        gangs.adopt(tuple(r for r in records if "job" in r.facts), state)

    def carry_out(self, effect: Effect, share: Share | None = None) -> bool:
        """Begin to do ``effect``; False when it is nothing that workers do.

        ``share`` is this node's part of a gang; None is all of it.
        """
        replicas, gangs = self.parts
        match effect:
            case StartReplica():
                replicas.start(effect)
            case StopReplica(replica, grace_us):
                replicas.stop(replica, grace_us, drain=True)
            case StartJob():
                gangs.start(effect, share)
            case StopJob(job, grace_us):
                gangs.stop(job, grace_us)
            case _:
                return False
        return True

    def progress(self) -> Mapping[str, Mapping[str, Any]]:
        return self.parts[1].progress()

    async def end(self) -> None:
        """End all jobs and engines, and return when every exit is told."""
        replicas, gangs = self.parts
        await asyncio.gather(gangs.close(), replicas.close())

    async def leave(self) -> None:
        """Stop watching engines and jobs; they go on."""
        replicas, gangs = self.parts
        gangs.cancel()
        await replicas.cancel()

    async def close(self, stop_all: bool) -> None:
        """Stop the node's own tasks; with ``stop_all`` kill whatever still bears our mark."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.supervisor.close()
        if stop_all:
            await asyncio.to_thread(self.supervisor.kill_strays, everything=True)

    async def _watch_progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            await asyncio.to_thread(self.parts[1].read_progress)

    async def _sweep(self) -> None:
        """Now and then look for processes that bear our mark but belong to nothing that we know."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            await asyncio.to_thread(self.supervisor.kill_strays)


def signatures_of(paths: Paths) -> Signatures:
    """The signatures of a data directory's releases."""
    return Signatures(paths.keys, paths.artifacts / "signatures")


def factory_mark(paths: Paths) -> str:
    """Return what tells the processes of this data directory, or of one node of it, from all others."""
    return hashlib.sha256(os.fsencode(paths.run.resolve())).hexdigest()[:16]


def energy_meter(settings: Settings) -> EnergyMeter:
    node = machine.measure(machine.LOCAL_NODE, "")
    model = CpuModel(
        settings.cpu_active_watts_per_core, settings.cpu_idle_watts, max(1, node.cpu_millis // 1000)
    )
    return EnergyMeter(model, find_rapl(), machine.accelerator_counters(node))
