"""Jobs as gangs of processes: all of a gang's workers start, or none goes on.

One failed worker ends the others. The job is over when every worker and all that it started are gone; then
its result is read and reported, and only then are its records removed. Which job runs where, how often
it is retried and what it may cost is decided by ``control``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tokenmill.control.state import State
from tokenmill.domain.codec import from_plain
from tokenmill.domain.effects import StartJob
from tokenmill.domain.errors import DataError, Problem, TokenmillError
from tokenmill.domain.events import JobExited, JobStarted
from tokenmill.domain.work import Job, JobResult, JobStatus, WorkUsage
from tokenmill.floor import logs, workers
from tokenmill.floor.ports import Clock, Report
from tokenmill.floor.process import UNKNOWN_CODE, Exit, Process, describe
from tokenmill.floor.processes import Supervisor
from tokenmill.floor.records import Record
from tokenmill.spec.paths import Paths

log = logging.getLogger(__name__)

PROGRESS_TAIL_BYTES = 65_536
LOST_CODE = -1
HELD = (JobStatus.STARTING, JobStatus.RUNNING, JobStatus.STOPPING)


@dataclass(slots=True)
class Gang:
    """The processes of one attempt on this node, from rank ``first`` on.

    ``stopping`` says why they were asked to end.
    """

    job: str
    attempt: int
    station: bool
    first: int = 0
    processes: list[Process] = field(default_factory=list)
    buried: list[Exit] = field(default_factory=list)
    stopping: str = ""
    grace_us: int = 10_000_000


class Gangs:
    """All jobs of this floor."""

    def __init__(
        self, supervisor: Supervisor, paths: Paths, factory_dir: Path, report: Report, now_us: Clock
    ) -> None:
        self._supervisor = supervisor
        self._paths = paths
        self._factory_dir = factory_dir
        self._report = report
        self._now_us = now_us
        self._gangs: dict[str, Gang] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._progress: dict[str, Mapping[str, Any]] = {}
        self._closing = False

    def start(self, effect: StartJob, share: workers.Share | None = None) -> None:
        """Begin an attempt, or this node's share of it; nothing happens when that one already runs.

        Where an earlier attempt is told of but not put away yet, this one begins as soon as it is.
        """
        known = self._gangs.get(effect.job)
        if known is not None and known.attempt >= effect.attempt:
            return
        share = share or workers.Share(tuple(range(effect.spec.workers)))
        gang = Gang(effect.job, effect.attempt, effect.spec.kind == "station", share.ranks[0])
        self._gangs[effect.job] = gang
        self._follow(gang, self._run(gang, effect, share, self._tasks.get(effect.job)))

    def stop(self, job: str, grace_us: int, reason: str = "stopped") -> None:
        """Ask a job to end; it is killed after ``grace_us``."""
        gang = self._gangs.get(job)
        if gang is None or gang.stopping:
            return
        gang.stopping = reason
        gang.grace_us = grace_us
        for process in gang.processes:
            self._end(process, grace_us)

    def adopt(self, records: tuple[Record, ...], state: State) -> None:
        """Take over what lives, report what ended, and end what ``state`` does not want."""
        by_job: dict[str, list[Record]] = {}
        for record in records:
            by_job.setdefault(str(record.facts["job"]), []).append(record)
        for job_id, own in sorted(by_job.items()):
            gang = self._adopted(job_id, own, state.jobs.get(job_id))
            self._gangs[job_id] = gang
            self._follow(gang, self._go_on(gang, state.jobs.get(job_id)))
        for job_id, job in sorted(state.jobs.items()):
            # One that should run is asked for again by ``resume``; one that was to end has done so.
            if job.status is JobStatus.STOPPING and job_id not in by_job:
                self._follow(Gang(job_id, job.attempt, False), self._lost(job))

    async def close(self) -> None:
        """End all jobs. Their exits are not told: the next controller goes on with the same attempts, from
        what they left in their folders."""
        self._closing = True
        for job in list(self._gangs):
            self.stop(job, 10_000_000, "the factory was stopped")
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def cancel(self) -> None:
        """Stop watching; the jobs go on."""
        for task in self._tasks.values():
            task.cancel()

    def progress(self) -> Mapping[str, Mapping[str, Any]]:
        return self._progress

    def read_progress(self) -> None:
        """Read the last progress line of each living job. Blocks for a moment; runs in a thread."""
        found = {}
        for job in list(self._gangs):
            line = last_line(self._paths.job_progress(job))
            if line:
                found[job] = line
        self._progress = found

    def _follow(self, gang: Gang, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(
            self._told_whatever(gang, work), name=f"job {gang.job}"
        )
        self._tasks[gang.job] = task
        task.add_done_callback(lambda _: self._drop(gang, task))

    def _drop(self, gang: Gang, task: asyncio.Task[None]) -> None:
        """Put away what ended, unless the next attempt has taken its place."""
        if self._tasks.get(gang.job) is task:
            del self._tasks[gang.job]
        if self._gangs.get(gang.job) is gang:
            del self._gangs[gang.job]

    async def _told_whatever(self, gang: Gang, work: Any) -> None:
        """A job whose own files fail, say because the disk is full, ends too: a run waits for it."""
        try:
            await work
        except (TokenmillError, OSError, ValueError) as error:
            await self._abandon(gang, error)

    async def _run(
        self, gang: Gang, effect: StartJob, share: workers.Share, before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)
        orders = await asyncio.to_thread(
            workers.prepare, self._paths, self._factory_dir, effect, self._now_us(), share
        )
        for order in orders:
            gang.processes.append(await self._supervisor.spawn(order))
            if gang.stopping:
                break
        if gang.stopping:  # asked to end while it started
            for process in gang.processes:
                self._end(process, gang.grace_us)
        await self._report(JobStarted(self._now_us(), gang.job, gang.attempt))
        await self._finish(gang)

    async def _abandon(self, gang: Gang, error: Exception) -> None:
        """Not every worker could be started or followed, so none goes on."""
        for process in gang.processes:
            await self._supervisor.stop(process.record.id, 0)
        usage = workers.total([(await p.wait()).usage for p in gang.processes])
        code = error.exit_code if isinstance(error, TokenmillError) else 13
        await self._report(JobExited(self._now_us(), gang.job, gang.attempt, code, None, str(error), usage))
        self._forget(gang)

    def _adopted(self, job_id: str, records: list[Record], job: Job | None) -> Gang:
        records = sorted(records, key=lambda r: int(r.facts["rank"]))
        facts = records[0].facts
        gang = Gang(job_id, int(facts["attempt"]), bool(facts["station"]), int(facts["rank"]))
        for record in records:
            process = self._supervisor.adopt(record)
            if process is not None:
                gang.processes.append(process)
                continue
            code, ended_us = workers.exit_of(record)
            buried = self._supervisor.bury(record, ended_us)
            reason = buried.reason if code == UNKNOWN_CODE else describe(code)
            gang.buried.append(Exit(code, reason, buried.usage))
            self._supervisor.records.remove(record.id) if job is None else None
        unwanted = job is None or job.status not in HELD or job.attempt != gang.attempt
        partial = len(records) < int(facts["workers"])
        if unwanted or partial:
            gang.stopping = "no one wants it any more" if unwanted else "its gang never was whole"
        return gang

    async def _go_on(self, gang: Gang, job: Job | None) -> None:
        if gang.stopping:
            for process in gang.processes:
                self._end(process, gang.grace_us)
        elif job is not None and job.status is JobStatus.STARTING:
            await self._report(JobStarted(self._now_us(), gang.job, gang.attempt))
        await self._finish(gang)

    async def _lost(self, job: Job) -> None:
        reason = "its processes were gone when the controller came back"
        await self._report(JobExited(self._now_us(), job.id, job.attempt, LOST_CODE, None, reason))

    async def _finish(self, gang: Gang) -> None:
        """Wait for all workers; the first that fails ends the others. Then report how it went."""
        waiting = {asyncio.create_task(p.wait()) for p in gang.processes}
        exits: list[Exit] = list(gang.buried)
        failed = next((e for e in exits if e.code != 0), None)
        if failed is not None:
            self._end_all(gang)
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                found = self._told(gang, task.result())
                exits.append(found)
                if found.code != 0 and failed is None:
                    failed = found
                    self._end_all(gang)
        usage = await asyncio.to_thread(
            workers.add_used,
            self._paths,
            gang.job,
            gang.attempt,
            gang.first,
            workers.total(e.usage for e in exits),
        )
        if not self._closing or failed is None:
            await self._report(await asyncio.to_thread(self._outcome, gang, failed, usage))
        self._forget(gang)

    def _told(self, gang: Gang, found: Exit) -> Exit:
        """Replace a code that the kernel would not tell us by the one that the worker's shell wrote down."""
        if found.code != UNKNOWN_CODE:
            return Exit(workers.signal_code(found.code), found.reason, found.usage)
        codes = [workers.exit_of(p.record)[0] for p in gang.processes if p.exit is found]
        code = codes[0] if codes else UNKNOWN_CODE
        return found if code == UNKNOWN_CODE else Exit(code, describe(code), found.usage)

    def _end_all(self, gang: Gang) -> None:
        for process in gang.processes:
            self._end(process, gang.grace_us)

    def _end(self, process: Process, grace_us: int) -> None:
        if process.exit is None:
            task = asyncio.create_task(self._supervisor.stop(process.record.id, grace_us))
            process.stopping = task  # held, so that it is not collected while it runs

    def _outcome(self, gang: Gang, failed: Exit | None, usage: WorkUsage) -> JobExited:
        at_us = self._now_us()
        if failed is None and gang.first:
            return JobExited(
                at_us, gang.job, gang.attempt, 0, None, "", usage
            )  # rank 0's node has the result
        if failed is None:
            try:
                result = read_result(self._paths.job_result(gang.job), required=gang.station)
            except DataError as error:
                return JobExited(at_us, gang.job, gang.attempt, error.exit_code, None, str(error), usage)
            return JobExited(at_us, gang.job, gang.attempt, 0, result, "", usage)
        reason = failed.reason
        error_file = read_error(self._paths.job_error(gang.job))
        if gang.stopping:
            reason = gang.stopping
        elif error_file:
            reason = error_file
        elif failed.code > 0:
            last = logs.last_words(self._paths.log(gang.job))
            reason = f"{reason}: {last}" if last else reason
        return JobExited(at_us, gang.job, gang.attempt, failed.code, None, reason, usage)

    def _forget(self, gang: Gang) -> None:
        for record in self._supervisor.records.read():
            if record.kind == "job" and record.facts.get("job") == gang.job:
                self._supervisor.forget(record.id)


def read_result(path: Path, *, required: bool) -> JobResult:
    """Read ``result.json``. Raises ``DataError`` when it is broken, or missing though it is ``required``."""
    try:
        return from_plain(msgspec.json.decode(path.read_bytes()), JobResult)
    except FileNotFoundError:
        if not required:
            return JobResult()
        raise DataError("the job ended well but left no result.json", where=str(path)) from None
    except msgspec.DecodeError as error:
        raise DataError(f"the job's result cannot be read: {error}", where=str(path)) from error


def read_error(path: Path) -> str:
    """Return what ``error.json`` says, as one line; "" when there is none."""
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return ""
    if not isinstance(found, dict):
        return ""
    parts = {name: str(found.get(name, "")) for name in ("message", "where", "expected", "fix")}
    return str(Problem(**parts))


def last_line(path: Path) -> Mapping[str, Any]:
    """Return the last whole JSON line of a progress file; empty when there is none."""
    for line in reversed(logs.tail(path, 3, PROGRESS_TAIL_BYTES).splitlines()):
        try:
            found = msgspec.json.decode(line)
        except msgspec.DecodeError:
            continue
        if isinstance(found, dict):
            return found
    return {}
