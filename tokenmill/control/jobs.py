"""A job's life: pending, starting, running, ended; retried with a back-off, timed out, cancelled, placed
whole.

Jobs wait in one queue per priority, tenant and demand. ``schedule`` lets ``policy.share`` pick whose turn it
is and ``policy.place`` find room for the whole gang. A job that does not fit is passed over, so that smaller
ones fill the gaps, until it has waited for ``PATIENCE_US``: then nothing behind it starts before it does.
"""

from __future__ import annotations

from dataclasses import replace

from tokenmill.control.draft import Draft
from tokenmill.control.index import HELD_US, QueueKey, job_timer, queue_key
from tokenmill.control.keys import check_tenant
from tokenmill.control.leases import end_all, grant_all
from tokenmill.control.state import State
from tokenmill.domain.effects import StartJob, StopJob
from tokenmill.domain.errors import ConflictError, NotFoundError, RefusedError
from tokenmill.domain.events import JobCancelled, JobExited, JobStarted, JobSubmitted
from tokenmill.domain.work import Job, JobResult, JobSpec, JobStatus
from tokenmill.policy.place import Demand, holds, place
from tokenmill.policy.share import Head, pick

BACKOFF_US = 2_000_000
BACKOFF_MOST_US = 60_000_000
GRACE_US = 10_000_000
PATIENCE_US = 600_000_000
SCAN_MOST = 256
"""Queues that may be passed over in one pass; the rest wait for the next one."""

PENDING_MOST = 100_000
WORKERS_MOST = 100_000

FINAL_CODES = frozenset({2, 3, 4, 9, 10, 12})
"""Exit codes of a station that another attempt cannot change (``domain.errors``): usage, spec, not found, a
missing extra, bad data, a gate's no."""

LIVE = (JobStatus.STARTING, JobStatus.RUNNING, JobStatus.STOPPING)


def check_submitted(state: State, event: JobSubmitted) -> None:
    """Raise unless the job is new and its tenant is known. One that no node can hold waits."""
    check_tenant(state, event.spec.tenant, event.spec.project)
    if event.job in state.jobs:
        raise ConflictError(f"job {event.job} exists already", fix="Submit it under another id.")
    if not 1 <= event.spec.workers <= WORKERS_MOST or event.spec.max_attempts < 1:
        raise RefusedError(
            "a job needs at least one worker and one attempt",
            (f"workers {event.spec.workers}, attempts {event.spec.max_attempts}",),
            fix=f"Ask for 1 to {WORKERS_MOST} workers.",
        )
    if len(state.jobs) >= PENDING_MOST:
        raise RefusedError("too many jobs", (f"limit {PENDING_MOST}",), fix="Wait until some have ended.")


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


def started(draft: Draft, event: JobStarted) -> None:
    """All workers of this attempt run."""
    job = draft.jobs.get(event.job)
    if job is not None and job.status is JobStatus.STARTING and job.attempt == event.attempt:
        draft.put_job(
            Job(
                job.id,
                job.spec,
                JobStatus.RUNNING,
                job.submitted_us,
                job.nodes,
                job.started_us,
                attempt=job.attempt,
            )
        )


def exited(draft: Draft, event: JobExited) -> None:
    """All workers are gone: the leases end, and the job ends or backs off for another attempt."""
    job = draft.jobs.get(event.job)
    if job is None or job.attempt != event.attempt or job.status not in LIVE:
        return
    end_all(draft, job.id, charge_kind(job.spec), charge_model(job.spec), event.usage)
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
    )


def _fail(draft: Draft, job: Job, code: int) -> None:
    final = job.spec.kind == "station" and code in FINAL_CODES
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
        if now_us - job.submitted_us > PATIENCE_US:  # It may have held up others, anywhere.
            draft.freed = True
            draft.freed_nodes = None
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


def schedule(draft: Draft, now_us: int) -> None:
    """Start what fits, in the order of ``policy.share``. Jobs of one queue ask alike, so one miss is all."""
    heads = _hopeful(draft, now_us)
    weights = {tenant.name: tenant.share for tenant in draft.factory.tenants} if len(heads) > 1 else {}
    misses = 0
    while heads and misses < SCAN_MOST:
        if len(heads) == 1:
            key, head = next(iter(heads.items()))
        else:
            head = pick(heads.values(), draft.held, draft.index.total, weights)
            key = queue_key(draft.jobs[head.id], draft.index.tenants)
        demand = _demand(draft, key)
        if _start(draft, draft.jobs[head.id], demand, now_us):
            waiting = draft.queues.get(key)
            if waiting:
                heads[key] = Head(key[0], key[1], waiting[0][0], waiting[0][1])
            else:
                del heads[key]
            continue
        if now_us - head.submitted_us > PATIENCE_US and _could_fit(draft, demand):
            return
        del heads[key]
        misses += 1


def _hopeful(draft: Draft, now_us: int) -> dict[QueueKey, Head]:
    """The first job of every queue that could fit now and did not before.

    Without freed room only new jobs can. With it, a queue that did not fit has hope only where a freed node
    holds at least one of its workers. When a job has lost its patience, or not all queues were tried last
    time, all are tried.
    """
    fresh = draft.fresh_jobs
    late_us = now_us - PATIENCE_US
    everything = (draft.freed and draft.freed_nodes is None) or len(draft.queues) > SCAN_MOST
    if not everything:
        for waiting in draft.queues.values():
            if waiting[0][0] < late_us:
                everything = True
                break
    rooms = [draft.rooms[node] for node in sorted(draft.freed_nodes or ()) if node in draft.rooms]
    heads: dict[QueueKey, Head] = {}
    for key, waiting in draft.queues.items():
        submitted_us, job = waiting[0]
        if everything or job in fresh or any(holds(room, _demand(draft, key)) for room in rooms):
            heads[key] = Head(key[0], key[1], submitted_us, job)
    return heads


def _demand(draft: Draft, key: QueueKey) -> Demand:
    tenant = draft.index.tenants.get(key[1])
    return Demand(key[2], key[3], tenant.jurisdictions if tenant else ())


def _start(draft: Draft, job: Job, demand: Demand, now_us: int) -> bool:
    placement = place(draft.rooms.values(), demand)
    if placement is None:
        return False
    spec = job.spec
    grant_all(draft, job.id, demand, placement, (spec.tenant, spec.project), now_us)
    attempt = job.attempt + 1
    draft.put_job(
        Job(job.id, spec, JobStatus.STARTING, job.submitted_us, placement.nodes, now_us, 0, attempt)
    )
    draft.effects.append(StartJob(job.id, attempt, spec, placement.nodes, placement.accelerators))
    return True


def _could_fit(draft: Draft, demand: Demand) -> bool:
    """Whether the gang would fit if no other job ran. Replicas stay, so what they hold is not counted."""
    return place(draft.rooms_if(lambda lease: lease.owner not in draft.jobs), demand) is not None
