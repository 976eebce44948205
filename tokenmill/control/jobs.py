"""A job's life: pending, starting, running, ended; retried with a back-off, timed out, cancelled, placed
whole.

A job that was preempted waits again, at once and without having used up an attempt. Who starts when and where
is ``control.schedule``'s to say.
"""

from __future__ import annotations

from collections.abc import Mapping

from tokenmill.control.draft import Draft
from tokenmill.control.index import HELD_US, Index, job_timer
from tokenmill.control.job_bounds import out_of_bounds
from tokenmill.control.keys import check_tenant
from tokenmill.control.leases import end_all
from tokenmill.control.reservations import drop
from tokenmill.control.state import State, with_jobs
from tokenmill.domain.effects import PaceJob, StopJob
from tokenmill.domain.errors import ConflictError, NotFoundError, RefusedError
from tokenmill.domain.events import JobCancelled, JobExited, JobSaved, JobStarted, JobSubmitted
from tokenmill.domain.value import replace
from tokenmill.domain.work import Checkpoints, Job, JobResult, JobSpec, JobStatus
from tokenmill.policy.checkpoint import pace
from tokenmill.policy.idle import could_hold, largest_gang
from tokenmill.policy.lacks import explain, would_hold
from tokenmill.policy.place import Demand, place
from tokenmill.policy.share import line_of

BACKOFF_US = 2_000_000
BACKOFF_MOST_US = 60_000_000
GRACE_US = 10_000_000
PENDING_MOST = 100_000

FINAL_CODES = frozenset({2, 3, 4, 9, 10, 12})
"""Exit codes of a station that another attempt cannot change (``domain.errors``): usage, spec, not found, a
missing extra, bad data, a gate's no."""

NO_PROGRAM = frozenset({126, 127})
"""What a shell says of a command that is no program, or is not there (POSIX, 2.8.2). It is no other time."""

LIVE = (JobStatus.STARTING, JobStatus.RUNNING, JobStatus.STOPPING)


def check_submitted(state: State, event: JobSubmitted) -> None:
    """Raise unless the job is new, its tenant is known and the floor, all of it free, could hold it."""
    check_tenant(state, event.spec.tenant, event.spec.project)
    if event.job in state.jobs:
        raise ConflictError(f"job {event.job} exists already", fix="Submit it under another id.")
    wrong = out_of_bounds(event.spec)
    if wrong:
        raise RefusedError("no job can be like this", wrong, fix="Correct these fields.")
    if len(state.jobs) >= PENDING_MOST:
        raise RefusedError("too many jobs", (f"limit {PENDING_MOST}",), fix="Wait until some have ended.")
    _check_fits(state, event.spec)


def _check_fits(state: State, spec: JobSpec) -> None:
    """Raise when not even an idle floor, its lost nodes back, would hold the gang; say what it would hold."""
    index = state.index
    tenant = index.tenants.get(spec.tenant)
    demand = Demand(spec.resources, spec.workers, tenant.jurisdictions if tenant else ())
    if index.bounded:
        _check_limit(index, spec)
    if not state.nodes or could_hold(index.shapes, demand) or place(index.idle, demand) is not None:
        return
    most = largest_gang(index.idle, demand)
    rooms = [room for _, block in sorted(index.idle.blocks.items()) for room in block.rooms]
    fix = f"Ask for at most {most} such workers." if most else would_hold(rooms, demand)
    reasons = [f"{node}: {reason}" for node, fits, reason in explain(rooms, demand) if not fits or not most]
    raise RefusedError(
        "the job can never start: no floor of these nodes holds it, even with nothing else on them",
        (*reasons[:20], f"an idle floor holds {most} of {spec.workers} workers"),
        fix=fix,
    )


def _check_limit(index: Index, spec: JobSpec) -> None:
    limits = [one.limit for one in line_of(spec.tenant, index.tenants) if one.limit is not None]
    asked = spec.resources.accelerators * spec.workers
    if limits and asked > min(limits):
        raise RefusedError(
            f"the job asks for {asked} accelerators, its tenant may hold {min(limits)}",
            (f"tenant {spec.tenant}: limit {min(limits)}",),
            fix=f"Ask for at most {min(limits)} accelerators, or raise the tenant's limit.",
        )


def check_cancelled(state: State, event: JobCancelled) -> None:
    """Raise unless the job exists and has not ended."""
    job = state.jobs.get(event.job)
    if job is None:
        raise NotFoundError(f"there is no job {event.job!r}", fix="See `tokenmill jobs`.")
    if job.status.ended or job.stop == "cancelled":
        raise ConflictError(f"job {job.id} is {job.status} already")


def submitted(draft: Draft, event: JobSubmitted) -> None:
    """A job joins its queue."""
    submit(draft, event.job, event.spec, event.at_us)


def submit(draft: Draft, job_id: str, spec: JobSpec, now_us: int) -> None:
    """Queue a new job."""
    draft.put_job(Job(job_id, spec, JobStatus.PENDING, now_us))


def started(state: State, event: JobStarted) -> State:
    """All workers of this attempt run. Queue, timer and leases are as before, so only the record changes."""
    job = state.jobs.get(event.job)
    if job is None or job.status is not JobStatus.STARTING or job.attempt != event.attempt:
        return state
    running = Job(
        job.id,
        job.spec,
        JobStatus.RUNNING,
        job.submitted_us,
        job.nodes,
        job.started_us,
        attempt=job.attempt,
        ripe=job.ripe,
        reason=job.reason,
        checkpoints=job.checkpoints,
    )
    return with_jobs(state, state.jobs.set(job.id, running))


def saved(draft: Draft, event: JobSaved) -> None:
    """A checkpoint was made: less is lost from now on, and what it cost says when to make the next one."""
    job = draft.jobs.get(event.job)
    if job is None or job.attempt != event.attempt or job.status is not JobStatus.RUNNING:
        return
    if event.at_us <= max(job.saved_us, job.started_us) or event.save_us <= 0:
        return
    seen = job.checkpoints
    save_us = (seen.save_us + event.save_us) // 2 if seen.save_us else event.save_us
    kept = replace(job, saved_us=event.at_us, checkpoints=replace(seen, save_us=max(1, save_us)))
    kept = paced(draft, kept, event.at_us)
    if kept.checkpoints.interval_us != seen.interval_us:
        draft.effects.append(PaceJob(job.id, kept.checkpoints.interval_us))
    draft.put_job(kept)


def paced(draft: Draft, job: Job, now_us: int) -> Job:
    """The job with the interval that its trainer is to be told. A change of less than a tenth is none."""
    nodes = len(dict.fromkeys(job.nodes))
    found = pace(nodes, job.checkpoints, now_us - job.started_us, draft.uptime, now_us)
    told_us = job.checkpoints.interval_us
    if found is None or is_pace_fixed(job.spec) or abs(found.interval_us - told_us) * 10 < told_us:
        return job
    return replace(job, checkpoints=replace(job.checkpoints, interval_us=found.interval_us))


def is_pace_fixed(spec: JobSpec) -> bool:
    """Whether the file says how often this job keeps a checkpoint."""
    params = spec.params.get("params")
    return isinstance(params, Mapping) and bool(params.get("checkpoint_seconds"))


def exited(draft: Draft, event: JobExited) -> None:
    """All workers are gone: the leases end, and the job ends or backs off for another attempt."""
    job = draft.jobs.get(event.job)
    if job is None or job.attempt != event.attempt or job.status not in LIVE:
        return
    end_all(draft, job.id, charge_kind(job.spec), charge_model(job.spec), event.usage, event.at_us)
    complete = event.code == 0 and (event.result is not None or job.spec.kind != "station")
    if job.stop == "cancelled":
        _end(draft, _ended(job, event, JobStatus.CANCELLED, "cancelled"))
    elif job.stop == "timed_out":
        reason = f"it ran longer than {job.spec.timeout_us // 1_000_000} s"
        _end(draft, _ended(job, event, JobStatus.FAILED, reason))
    elif complete:
        _end(draft, _ended(job, event, JobStatus.SUCCEEDED, event.reason, event.result))
    elif job.stop in ("paused", "resumed"):
        ended = _ended(job, event, JobStatus.PENDING, "paused" if job.stop == "paused" else "")
        _hold(draft, ended, HELD_US if job.stop == "paused" else 0)
    elif job.stop == "preempted":
        _hold(draft, _ended(job, event, JobStatus.PENDING, job.reason), 0)
    else:
        reason = event.reason or (
            "it left no result" if event.code == 0 else f"it ended with exit code {event.code}"
        )
        if job.stop == "node_lost":
            reason = job.reason
        _fail(draft, _ended(job, event, JobStatus.FAILED, reason), event.code)


def _ended(
    job: Job, event: JobExited, status: JobStatus, reason: str, result: JobResult | None = None
) -> Job:
    return Job(
        job.id,
        job.spec,
        status,
        job.submitted_us,
        started_us=job.started_us,
        ended_us=event.at_us,
        attempt=job.attempt,
        result=result,
        usage=event.usage,
        reason=reason,
        stop=job.stop if status is JobStatus.CANCELLED else "",
        checkpoints=job.checkpoints if event.code == 0 else _interrupted(job, event.at_us),
    )


def _interrupted(job: Job, at_us: int) -> Checkpoints:
    seen = job.checkpoints
    ran_us = seen.ran_us + max(0, at_us - job.started_us)
    return replace(seen, interrupted=seen.interrupted + 1, ran_us=ran_us)


def _fail(draft: Draft, job: Job, code: int) -> None:
    final = code in (FINAL_CODES if job.spec.kind == "station" else NO_PROGRAM)
    if final or job.attempt >= job.spec.max_attempts:
        _end(draft, job)
        return
    wait_us = min(BACKOFF_US << min(job.attempt - 1, 5), BACKOFF_MOST_US)
    now_us = job.ended_us
    draft.put_job(replace(job, status=JobStatus.PENDING, retry_us=now_us + wait_us, ended_us=0, started_us=0))


def _end(draft: Draft, job: Job) -> None:
    draft.put_job(job)
    if job.spec.run:
        draft.touched_runs.add(job.spec.run)


def cancelled(draft: Draft, event: JobCancelled) -> None:
    """Someone wants it no more."""
    cancel(draft, event.job, event.at_us)


def cancel(draft: Draft, job_id: str, now_us: int) -> None:
    """End a job that waits, or stop one that runs; its leases end when its processes have."""
    job = draft.jobs[job_id]
    if job.status is JobStatus.PENDING:
        drop(draft, job_id)
        ended = replace(job, status=JobStatus.CANCELLED, ended_us=now_us, retry_us=0, reason="cancelled")
        _end(draft, ended)
    elif job.status in LIVE:
        stop(draft, job, "cancelled", "cancelled")


def pause(draft: Draft, job: Job) -> None:
    """Keep a job from running until ``resume``. The attempt that is stopped for it is not counted."""
    if job.status is JobStatus.PENDING:
        draft.put_job(replace(job, retry_us=HELD_US))
    elif job.status in LIVE and not job.stop:
        stop(draft, job, "paused", "paused")


def resume(draft: Draft, job: Job) -> None:
    """A paused job waits for room again; one whose processes are still ending will when they have."""
    if job.status is JobStatus.PENDING:
        draft.put_job(replace(job, retry_us=0))
    elif job.stop == "paused":
        draft.put_job(replace(job, stop="resumed"))


def _hold(draft: Draft, job: Job, retry_us: int) -> None:
    spec = replace(job.spec, max_attempts=job.spec.max_attempts + 1)
    draft.put_job(
        replace(
            job, spec=spec, status=JobStatus.PENDING, retry_us=retry_us, ended_us=0, started_us=0, stop=""
        )
    )


def stop(draft: Draft, job: Job, kind: str, reason: str) -> None:
    """Ask the floor to stop a job. ``kind`` says what becomes of it when it has."""
    if job.status is not JobStatus.STOPPING:
        draft.effects.append(StopJob(job.id, GRACE_US))
    draft.put_job(replace(job, status=JobStatus.STOPPING, stop=kind, reason=reason))


def due(draft: Draft, job_id: str) -> None:
    """A job's timer went off: its back-off is over, or it ran too long."""
    job = draft.jobs[job_id]
    if job.status is JobStatus.PENDING:
        draft.put_job(replace(job, retry_us=0))
    elif job.spec.min_run_us and not job.ripe:
        draft.put_job(replace(job, ripe=True))
        draft.freed, draft.freed_nodes = True, None  # it may be told to go for others now
    elif job_timer(job) is not None:
        stop(draft, job, "timed_out", "it ran too long")


def demand_of(draft: Draft, spec: JobSpec) -> Demand:
    """What a job's gang asks, bound to where its tenant's data may be."""
    tenant = draft.index.tenants.get(spec.tenant)
    return Demand(spec.resources, spec.workers, tenant.jurisdictions if tenant else ())


def charge_kind(spec: JobSpec) -> str:
    """The ledger's word for a job: train, evaluate or command."""
    if spec.kind != "station":
        return "command"
    return "evaluate" if spec.params.get("kind") == "evaluate" else "train"


def charge_model(spec: JobSpec) -> str:
    """The model that a station works on, whose price applies; ``*`` for a command."""
    base = spec.params.get("base")
    return str(base.get("model", "*")) if isinstance(base, dict) else "*"
