"""Replicas: engine processes (and remote servers) that are started, watched for health, and taken over.

A replica is started with verified weights on a free loopback port, is ready when its health address says so,
and is killed when that stays silent. Its end, wanted or not, is one ``ReplicaExited``. Whether another
one starts is decided by ``control``; requests go through the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import httpx

from tokenmill.control.state import State
from tokenmill.domain.effects import StartReplica
from tokenmill.domain.errors import EngineError, TokenmillError
from tokenmill.domain.events import Event, ReplicaExited, ReplicaReady, ReplicaStarted
from tokenmill.domain.work import Replica, ReplicaStatus, WorkUsage
from tokenmill.floor import logs
from tokenmill.floor.accounts import EnergyAccounts
from tokenmill.floor.imports import Verifier
from tokenmill.floor.launch import Prepared, prepare, remote
from tokenmill.floor.load import SILENT_US, drained
from tokenmill.floor.ports import Clock, Current, Report
from tokenmill.floor.process import Order, Process
from tokenmill.floor.processes import Supervisor
from tokenmill.floor.records import Record
from tokenmill.floor.workers import device_environment
from tokenmill.spec.paths import Paths

log = logging.getLogger(__name__)

HEALTH_EVERY_S = 5.0
READY_POLL_S = 0.1
DRAIN_POLL_S = 0.2
HEALTH_TIMEOUT_S = 5.0
HEALTH_FAILURES = 3
LIVE = (ReplicaStatus.STARTING, ReplicaStatus.READY, ReplicaStatus.DRAINING)
BILLED_PER_REQUEST = "posted with each request"


@dataclass(slots=True)
class _Running:
    """One replica as the floor knows it."""

    id: str
    address: str = ""
    health: str = ""
    process: Process | None = None  # None for a remote server
    stopping: asyncio.Event | None = None
    grace_us: int = 0
    drain_version: int = -1  # the table that takes it out; -1 is not to wait
    reason: str = ""  # why a remote server is given up


class Replicas:
    """All replicas of this floor."""

    def __init__(
        self,
        supervisor: Supervisor,
        paths: Paths,
        verifier: Verifier,
        accounts: EnergyAccounts,
        report: Report,
        current: Current,
        now_us: Clock,
        start_timeout_us: int,
        host: str = "127.0.0.1",
    ) -> None:
        self._supervisor = supervisor
        self._paths = paths
        self._verifier = verifier
        self._accounts = accounts
        self._report = report
        self._current = current
        self._now_us = now_us
        self._start_timeout_us = start_timeout_us
        self._host = host  # where engines listen
        self._running: dict[str, _Running] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        # Health checks go to this machine and to what the operator named: never through a proxy.
        self._client = httpx.AsyncClient(timeout=HEALTH_TIMEOUT_S, trust_env=False)

    def start(self, effect: StartReplica) -> None:
        """Begin a replica; nothing happens when it is there."""
        if effect.replica not in self._tasks:
            running = _Running(effect.replica)
            self._follow(running, lambda: self._run(running, effect))

    def stop(self, replica: str, grace_us: int, *, drain: bool = False) -> None:
        """Ask a replica to end; it is killed after ``grace_us``. Unknown ones are gone already.

        With ``drain`` it is asked only when the gateway has no open request on it any more: engines end
        their streams when they are asked to end. What is still open after ``grace_us`` is cut.
        """
        running = self._running.get(replica)
        if running is not None and running.stopping is not None:
            running.grace_us = grace_us
            running.drain_version = self._current().table_version if drain else -1
            running.stopping.set()

    def adopt(self, records: tuple[Record, ...], state: State) -> None:
        """Take over what lives and is wanted, end what is not, report what is gone."""
        recorded = {record.id: record for record in records}
        for record in records:
            replica = state.replicas.get(record.id)
            running = _Running(record.id, str(record.facts["address"]), str(record.facts["health"]))
            running.process = self._supervisor.adopt(record)
            self._accounts.open(record.id)
            if running.process is None:
                usage = self._supervisor.bury(record).usage
                self._follow(running, lambda r=running, u=usage: self._gone(r, u))  # type: ignore[misc]
            else:
                wanted = replica if replica is not None and replica.status in LIVE else None
                self._follow(running, lambda r=running, w=wanted: self._go_on(r, w))  # type: ignore[misc]
        for name, replica in sorted(state.replicas.items()):
            if name not in recorded and replica.status in (ReplicaStatus.READY, ReplicaStatus.DRAINING):
                running = _Running(name, replica.address)
                elsewhere = _remote_health(replica)
                if elsewhere:
                    running.health = elsewhere
                    self._follow(running, lambda r=running, w=replica: self._go_on(r, w))  # type: ignore[misc]
                    continue
                self._follow(running, lambda r=running: self._gone(r, WorkUsage()))  # type: ignore[misc]

    async def close(self) -> None:
        """End all replicas and return when every exit is journalled."""
        for replica in list(self._running):
            self.stop(replica, 10_000_000)
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._client.aclose()

    async def cancel(self) -> None:
        """Stop watching; the engines go on."""
        for task in self._tasks.values():
            task.cancel()
        await self._client.aclose()

    def _follow(self, running: _Running, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        running.stopping = asyncio.Event()
        self._running[running.id] = running
        task = asyncio.create_task(work(), name=f"replica {running.id}")
        self._tasks[running.id] = task
        task.add_done_callback(lambda _: self._drop(running.id))

    def _drop(self, replica: str) -> None:
        self._tasks.pop(replica, None)
        self._running.pop(replica, None)

    async def _run(self, running: _Running, effect: StartReplica) -> None:
        try:
            await self._launch(running, effect)
        except (TokenmillError, OSError) as error:
            log.error("replica %s could not start: %s", running.id, error)
            await self._exited(running, str(error), WorkUsage())
            return
        await self._report(ReplicaStarted(self._now_us(), running.id, running.address))
        await self._until_ready(running)
        await self._watch(running)

    async def _launch(self, running: _Running, effect: StartReplica) -> None:
        """Verify the weights and start the engine. Raises what says why that cannot be."""
        prepared = await asyncio.to_thread(
            prepare, effect, self._current().factory, self._verifier, self._host
        )
        running.address, running.health = prepared.address, prepared.health
        if not prepared.argv:
            return
        running.process = await self._supervisor.spawn(self._order(effect, prepared))
        self._accounts.open(running.id)

    def _order(self, effect: StartReplica, prepared: Prepared) -> Order:
        resources = effect.deployment.resources
        return Order(
            id=effect.replica,
            kind="engine",
            argv=prepared.argv,
            log=self._paths.log(effect.replica),
            cwd=self._paths.run,
            env={**prepared.env, **device_environment(effect.accelerators, resources.cpu_millis)},
            memory_bytes=resources.memory_bytes,
            cpu_millis=resources.cpu_millis,
            accelerators=effect.accelerators,
            facts={
                "deployment": effect.deployment.name,
                "release": effect.release.id,
                "address": prepared.address,
                "health": prepared.health,
            },
        )

    async def _go_on(self, running: _Running, wanted: Replica | None) -> None:
        """Watch an adopted engine; one that nobody wants is asked to end."""
        if wanted is None:
            self.stop(running.id, 10_000_000)
        elif wanted.status is ReplicaStatus.STARTING:
            await self._report(ReplicaStarted(self._now_us(), running.id, running.address))
            await self._until_ready(running)
        await self._watch(running)

    async def _gone(self, running: _Running, usage: WorkUsage) -> None:
        await self._exited(running, "its process was gone when the controller came back", usage)

    async def _until_ready(self, running: _Running) -> None:
        """Poll health until it is good, the process is gone, or the start took too long."""
        deadline_us = self._now_us() + self._start_timeout_us
        while not self._over(running):
            if await self._healthy(running):
                await self._report(ReplicaReady(self._now_us(), running.id))
                return
            if self._now_us() > deadline_us:
                reason = f"was not ready within {self._start_timeout_us / 1e6:g} s"
                await self._end(running, reason, 0)
                return
            await self._pause(running, READY_POLL_S)

    async def _watch(self, running: _Running) -> None:
        """Check health until the replica is gone or asked to end; then report its end."""
        failures = 0
        while not self._over(running):
            await self._pause(running, HEALTH_EVERY_S)
            if self._over(running):
                break
            failures = 0 if await self._healthy(running) else failures + 1
            if failures >= HEALTH_FAILURES:
                await self._end(running, f"did not answer {failures} health checks", 0)
        if running.process is None:
            await self._exited(running, running.reason or "stopped", WorkUsage())
            return
        if running.process.exit is None and running.drain_version >= 0:
            await self._drain(running, running.process)
        if running.process.exit is None:
            await self._end(running, "stopped", running.grace_us)
        found = await running.process.wait()
        reason = found.reason
        if not running.process.kill_reason and found.code > 0:
            last = logs.last_words(self._paths.log(running.id))
            reason = f"{reason}: {last}" if last else reason
        await self._exited(running, reason, found.usage)

    async def _drain(self, running: _Running, process: Process) -> None:
        """Return when the gateway has nothing open on it, its time is over, or no gateway says anything."""
        asked_us = self._now_us()
        while process.exit is None and self._now_us() - asked_us < running.grace_us:
            found = await asyncio.to_thread(
                drained, self._paths.run, running.id, running.drain_version, self._now_us()
            )
            silent = found is None and self._now_us() - asked_us > SILENT_US
            if found or silent or running.drain_version < 0:
                return
            ended = asyncio.ensure_future(process.wait())
            await asyncio.wait((ended,), timeout=DRAIN_POLL_S)
            ended.cancel()

    async def _end(self, running: _Running, reason: str, grace_us: int) -> None:
        assert running.stopping is not None
        if running.process is None:
            running.reason = reason
            running.stopping.set()
        elif running.process.exit is None:
            running.process.kill_reason = running.process.kill_reason or reason
            await self._supervisor.stop(running.id, grace_us)

    async def _exited(self, running: _Running, reason: str, usage: WorkUsage) -> None:
        """Report the end. Energy is left out: every request, and idling, pays for its own share of it."""
        self._accounts.close(running.id, usage.energy_mj)
        event: Event = ReplicaExited(
            self._now_us(),
            running.id,
            reason,
            replace(usage, energy_mj=0, energy_source=BILLED_PER_REQUEST),
        )
        await self._report(event)
        self._supervisor.forget(running.id)

    def _over(self, running: _Running) -> bool:
        return _stopping(running) or (running.process is not None and running.process.exit is not None)

    async def _pause(self, running: _Running, seconds: float) -> None:
        """Wait, but no longer than the replica lives and is wanted."""
        assert running.stopping is not None
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(running.stopping.wait())]
        if running.process is not None:
            waits.append(asyncio.ensure_future(running.process.wait()))
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _healthy(self, running: _Running) -> bool:
        with contextlib.suppress(httpx.HTTPError, EngineError):
            answer = await self._client.get(running.health)
            return answer.status_code == 200
        return False


def _stopping(running: _Running) -> bool:
    return running.stopping is not None and running.stopping.is_set()


def _remote_health(replica: Replica) -> str:
    """Return the health address of a server that is not ours; "" for engines of this machine."""
    url = replica.spec.url if replica.spec is not None else ""
    return remote(url).health if url else ""
