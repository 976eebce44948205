"""Supervised processes: started, watched, bounded, stopped, adopted, and never orphaned.

Each runs in a session of its own with a mark in its environment. When its leader is gone the rest of the
session, and whatever carries the mark, is killed before the exit is told to anyone. The supervisor can die
at any moment: the processes go on, and the next supervisor takes them over by pid, start time and boot.

It knows nothing of engines, jobs or gateways, and restarts nothing by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from tokenmill.domain.errors import ConflictError, ResourceError
from tokenmill.domain.work import WorkUsage
from tokenmill.floor import logs, procfs
from tokenmill.floor.energy import EnergyMeter, Reading
from tokenmill.floor.limits import Cgroups, restrict
from tokenmill.floor.ports import Clock
from tokenmill.floor.process import (
    UNKNOWN_CODE,
    Exit,
    Order,
    Process,
    describe,
    gigabytes,
    leader_gone,
    reap,
)
from tokenmill.floor.records import Record, Records

log = logging.getLogger(__name__)

SAMPLE_S = 1.0


class Supervisor:
    """All supervised processes of one factory on this machine.

    ``factory_mark`` is a hash of the data directory, so that two factories on a machine keep apart.
    """

    def __init__(
        self,
        records: Records,
        factory_mark: str,
        meter: EnergyMeter,
        now_us: Clock,
        cgroups: Cgroups | None = None,
        log_limit_bytes: int = logs.LOG_LIMIT_BYTES,
        on_sample: Callable[[], None] = lambda: None,
    ) -> None:
        self.records = records
        self.factory_mark = factory_mark
        self.meter = meter
        self.processes: dict[str, Process] = {}
        self._now_us = now_us
        self._cgroups = cgroups or Cgroups(factory_mark)
        self._log_limit = log_limit_bytes
        self._on_sample = on_sample
        self._starting: set[str] = set()
        self._watchers: set[asyncio.Task[None]] = set()

    async def spawn(self, order: Order) -> Process:
        """Start a process and write its record. Raises ``ResourceError`` when the system cannot start it
        and ``ConflictError`` when one with this id lives."""
        current = self.processes.get(order.id)
        if current is not None and current.exit is None:
            raise ConflictError(f"process {order.id} already runs as pid {current.record.pid}")
        self._starting.add(order.id)
        try:
            process = self._spawn(order)
        finally:
            self._starting.discard(order.id)
        try:
            await asyncio.to_thread(self.records.write, process.record)
        except OSError as error:
            await self.stop(order.id, 0)
            raise ResourceError(f"cannot record process {order.id}: {error}") from error
        return process

    def _spawn(self, order: Order) -> Process:
        child = self._start(order)
        found = procfs.stat(child.pid)
        record = Record(
            id=order.id,
            kind=order.kind,
            pid=child.pid,
            start_time=found.start_time if found else 0,
            boot=procfs.boot_id(),
            argv=order.argv,
            log=str(order.log),
            started_us=self._now_us(),
            memory_bytes=order.memory_bytes,
            cpu_millis=order.cpu_millis,
            accelerators=order.accelerators,
            facts=order.facts,
        )
        process = Process(record, child)
        restrict(child.pid, order.nice)
        process.kernel_bounds_memory = self._cgroups.enter(
            order.id, child.pid, order.memory_bytes, order.cpu_millis
        )
        self._watch(process)
        return process

    def _start(self, order: Order) -> subprocess.Popen[bytes]:
        # Our own settings hold secrets (the store's URL); a worker gets only what its order names.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TOKENMILL_")}
        environment = {**inherited, **order.env, procfs.MARK: f"{order.id}:{self.factory_mark}"}
        try:
            order.cwd.mkdir(parents=True, exist_ok=True)
            output = logs.open_log(order.log)
            try:
                return subprocess.Popen(
                    order.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=order.cwd,
                    env=environment,
                    start_new_session=True,
                )
            finally:
                os.close(output)
        except OSError as error:
            raise ResourceError(
                f"cannot start {order.id}: {error}",
                expected=f"to run {order.argv[0]!r} in {order.cwd}",
                fix="Check that the command exists and that the machine has processes, files and disk left.",
            ) from error

    def adopt(self, record: Record) -> Process | None:
        """Take over a process that an earlier controller started; None when it lives no more."""
        if not record.lives():
            return None
        process = Process(record, None)
        process.kernel_bounds_memory = self._cgroups.usable
        self._watch(process)
        return process

    def bury(self, record: Record, ended_us: int = 0) -> Exit:
        """Tell how a process ended that died while no controller watched it, and kill what it left.

        ``ended_us`` is when, if somebody knows; its use is that of the last sample that was saved.
        """
        self._kill_members(record)
        self._cgroups.leave(record.id)
        last = self.meter.last(record.id)
        wall_us = max(last.wall_us, ended_us - record.started_us)
        usage = WorkUsage(
            wall_us=wall_us,
            cpu_us=last.cpu_us,
            accelerator_us=wall_us * len(record.accelerators),
            energy_mj=self.meter.finish(record.id, last.cpu_us, wall_us),
            energy_source=self.meter.source,
        )
        return Exit(UNKNOWN_CODE, describe(UNKNOWN_CODE), usage)

    def _watch(self, process: Process) -> None:
        self.meter.open(process.record.id)
        self.processes[process.record.id] = process
        task = asyncio.create_task(self._until_exit(process), name=f"watch {process.record.id}")
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def _until_exit(self, process: Process) -> None:
        await leader_gone(process)
        code, cpu_us, peak_bytes = reap(process)
        await asyncio.to_thread(self._kill_members, process.record)
        self._cgroups.leave(process.record.id)
        record = process.record
        wall_us = process.age_us()
        usage = WorkUsage(
            wall_us=wall_us,
            cpu_us=max(cpu_us, process.cpu_us),
            peak_memory_bytes=max(peak_bytes, process.peak_bytes),
            accelerator_us=wall_us * len(record.accelerators),
            energy_mj=self.meter.finish(record.id, max(cpu_us, process.cpu_us), wall_us),
            energy_source=self.meter.source,
        )
        reason = process.kill_reason or describe(code)
        log.info("process %s (pid %d) ended: %s", record.id, record.pid, reason)
        process.ended_with(Exit(code, reason, usage))

    async def stop(self, process_id: str, grace_us: int) -> Exit | None:
        """Ask a process's whole group to end, kill it after ``grace_us``, and return how it ended."""
        process = self.processes.get(process_id)
        if process is None:
            return None
        if process.exit is None and grace_us > 0:
            self._signal_group(process.record, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_us / 1e6):
                    return await process.wait()
        if process.exit is None:
            await asyncio.to_thread(self._kill_members, process.record)
        return await process.wait()

    def forget(self, process_id: str) -> None:
        """Drop a process that ended, once whoever owns it has said so to the journal."""
        self.processes.pop(process_id, None)
        self.records.remove(process_id)

    def _signal_group(self, record: Record, number: signal.Signals) -> None:
        if record.lives():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(record.pid, number)

    def _kill_members(self, record: Record) -> int:
        """Kill everything that belongs to a process. Repeats, because a dying group may still fork."""
        killed = 0
        for _ in range(5):
            members = self.members(record)
            if not members:
                break
            for member in members:
                killed += procfs.kill(member.pid, lambda s, m=member: s.start_time == m.start_time)  # type: ignore[misc]
        return killed

    def members(self, record: Record) -> list[procfs.Stat]:
        """Return the living processes of the record's session, and those which left it but bear its mark."""
        mark = f"{record.id}:{self.factory_mark}"
        return [
            process
            for process in procfs.everyone()
            if (process.session == record.pid and process.start_time >= record.start_time)
            or procfs.mark_of(process.pid) == mark
        ]

    def kill_strays(self, *, everything: bool = False) -> int:
        """Kill processes with our mark that belong to nothing we know, or ``everything``. Returns how many.

        Looks first and compares afterwards: what starts in between is known by then. Runs in a thread.
        """
        killed = 0
        for pid, process_id in sorted(procfs.marked(self.factory_mark).items()):
            known = process_id in self.processes or process_id in self._starting
            if pid == os.getpid() or (known and not everything):
                continue
            log.warning("killing stray process %d of %s", pid, process_id)
            mark = f"{process_id}:{self.factory_mark}"
            killed += procfs.kill(pid, lambda s, m=mark: procfs.mark_of(s.pid) == m)  # type: ignore[misc]
        return killed

    async def sample_forever(self) -> None:
        """Read usage once a second, kill what outgrew its memory, bound logs, feed the energy meter."""
        while True:
            await asyncio.sleep(SAMPLE_S)
            for process in await asyncio.to_thread(self._sample):
                await asyncio.to_thread(self._kill_members, process.record)

    def _sample(self) -> list[Process]:
        sessions: dict[int, list[procfs.Stat]] = {}
        for found in procfs.everyone():
            sessions.setdefault(found.session, []).append(found)
        outgrown: list[Process] = []
        readings: dict[str, Reading] = {}
        for process in list(self.processes.values()):
            if process.exit is not None:
                continue
            record = process.record
            members = sessions.get(record.pid, [])
            process.cpu_us = max(process.cpu_us, sum(m.cpu_us for m in members))
            process.memory_bytes = procfs.memory_bytes([m.pid for m in members])
            process.peak_bytes = max(process.peak_bytes, process.memory_bytes)
            readings[record.id] = Reading(
                cpu_us=process.cpu_us,
                wall_us=process.age_us(),
                cpu_millis=record.cpu_millis,
                accelerators=record.accelerators,
            )
            logs.bound(Path(record.log), self._log_limit)
            if record.memory_bytes and process.memory_bytes > record.memory_bytes:
                process.kill_reason = (
                    f"used {gigabytes(process.memory_bytes)} of {gigabytes(record.memory_bytes)} of memory"
                )
                outgrown.append(process)
        self.meter.sample(readings)
        self._on_sample()
        return outgrown

    def sample_energy(self) -> None:
        """Bring the meter up to this moment, by what the leaders used: a request is about to be billed."""
        readings = {}
        for process in list(self.processes.values()):
            record, found = process.record, procfs.stat(process.record.pid)
            if process.exit is None and found is not None and record.is_of(found):
                cpu_us = max(process.cpu_us, found.cpu_us)
                readings[record.id] = Reading(
                    cpu_us, process.age_us(), record.cpu_millis, record.accelerators
                )
        self.meter.sample(readings)

    async def close(self) -> None:
        """Stop watching. Processes go on."""
        watchers = list(self._watchers)
        for task in watchers:
            task.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        for process in self.processes.values():
            if process.child is not None and process.exit is None:
                process.child.returncode = 0  # left alone on purpose: nothing to warn of
