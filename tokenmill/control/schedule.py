"""One pass over what waits: who starts where, who is told to go for whom, and what is kept for whom.

Jobs wait in one queue per priority, tenant and demand, so one miss is all of a queue. ``policy.share`` picks
whose turn it is and whether it may, ``policy.place`` where. A head that does not fit is passed over, so
that smaller ones fill the gaps; when it may and it helps, ``policy.preempt`` names who goes for it; and
when it has waited for ``PATIENCE_US``, ``policy.backfill`` keeps nodes for it that only work with an
earlier end may still use.
"""

from __future__ import annotations

from tokenmill.control import jobs, replicas
from tokenmill.control.draft import Draft
from tokenmill.control.index import QueueKey, priority_of, queue_key
from tokenmill.control.leases import grant_all
from tokenmill.control.placing import find, is_too_steep
from tokenmill.control.reservations import (
    FAR_US,
    RESERVATIONS_MOST,
    drop,
    drop_stale,
    end_us,
    endings,
    held_of,
    open_fleet,
    reserve,
)
from tokenmill.domain.effects import StartJob
from tokenmill.domain.value import replace
from tokenmill.domain.work import Job, JobStatus, Replica, ReplicaStatus, Reservation
from tokenmill.policy.backfill import foresee
from tokenmill.policy.fleet import Room
from tokenmill.policy.memo import Memo
from tokenmill.policy.place import Demand, holds
from tokenmill.policy.preempt import Victim, evict, job_cost_us, replica_cost_us
from tokenmill.policy.share import (
    LONGEST_US,
    PATIENCE_US,
    Head,
    Shares,
    borrowed,
    pick,
    refusal,
    within_guarantee,
)

SCAN_MOST = 256
"""Queues that may be passed over in one pass; the rest wait for the next one."""

LOOK_BEHIND = 64
"""How far into a queue is looked for short work."""

EVICTIONS_MOST = 4
"""Searches for victims in one pass: each looks at all that runs."""


def schedule(draft: Draft, now_us: int) -> None:
    """Start what fits, in the order of ``policy.share``."""
    if draft.reservations:
        drop_stale(draft)
    heads = _hopeful(draft, now_us)
    draft.freed, draft.freed_nodes = False, set()
    draft.fresh_jobs.clear()
    is_bounded = draft.index.bounded
    memo = Memo(draft.fleet)
    misses = searches = 0
    while heads and misses < SCAN_MOST:
        if len(heads) == 1:
            key, head = next(iter(heads.items()))
        else:
            head = pick(heads.values(), shares(draft), now_us)
            key = queue_key(draft.jobs[head.id], draft.index.tenants)
        job, demand = draft.jobs[head.id], demand_of(draft, key)
        barred = is_bounded and _refusal(draft, job, shares(draft))
        if not barred and (
            _start(draft, job, demand, now_us, memo) or _start_short(draft, key, demand, now_us, memo)
        ):
            waiting = draft.queues.get(key)
            if waiting:
                heads[key] = _head(draft, key)
            else:
                del heads[key]
            continue
        del heads[key]
        misses += 1
        if not barred and searches < EVICTIONS_MOST and head.id not in draft.reservations:
            searches += _wait(draft, job, key, demand, now_us)


def shares(draft: Draft) -> Shares:
    """What ``policy.share`` looks at, as it is now."""
    return Shares(draft.held, draft.usage, draft.index.total, draft.index.tenants)


def _refusal(draft: Draft, job: Job, view: Shares) -> str:
    return refusal(
        job.spec.tenant, job.spec.resources.accelerators * job.spec.workers, draft.fleet.free, view
    )


def _hopeful(draft: Draft, now_us: int) -> dict[QueueKey, Head]:
    """The first job of every queue that could fit now and did not before.

    Without freed room only new jobs can. With it, a queue that did not fit has hope only where a freed node
    holds at least one of its workers. When a job has lost its patience, or not all queues were tried last
    time, all are tried.
    """
    fresh, freed = draft.fresh_jobs, draft.freed_nodes
    late_us = now_us - PATIENCE_US
    if (draft.freed and freed is None) or len(draft.queues) > SCAN_MOST:
        return _all_heads(draft)
    if draft.reservations:  # short work may go where its queue's head may not
        tenants = draft.index.tenants
        short = {queue_key(draft.jobs[name], tenants) for name in fresh}
        fresh = [*fresh, *(draft.queues[key][0][1] for key in draft.queues if key in short)]
    rooms = [draft.rooms[node] for node in sorted(freed) if node in draft.rooms] if freed else []
    heads: dict[QueueKey, Head] = {}
    for key, waiting in draft.queues.items():
        submitted_us, job = waiting[0]
        if submitted_us < late_us:
            return _all_heads(draft)
        if job in fresh or (rooms and _holds_any(draft, key, rooms)):
            heads[key] = _head(draft, key)
    return heads


def _all_heads(draft: Draft) -> dict[QueueKey, Head]:
    return {key: _head(draft, key) for key in draft.queues}


def _head(draft: Draft, key: QueueKey) -> Head:
    submitted_us, name = draft.queues[key][0]
    spec = draft.jobs[name].spec
    return Head(key[0], key[1], submitted_us, name, spec.runtime_us or spec.timeout_us or LONGEST_US)


def _holds_any(draft: Draft, key: QueueKey, rooms: list[Room]) -> bool:
    tenant = draft.index.tenants.get(key[1])
    laws = tenant.jurisdictions if tenant else ()
    return any(holds(room, key[2], laws) for room in rooms)


def demand_of(draft: Draft, key: QueueKey) -> Demand:
    """What each job of a queue asks, bound to where its tenant's data may be."""
    tenant = draft.index.tenants.get(key[1])
    return Demand(key[2], key[3], tenant.jurisdictions if tenant else ())


def _start(draft: Draft, job: Job, demand: Demand, now_us: int, memo: Memo) -> bool:
    """Place the gang, hold its leases and have it started, all in this step, or do nothing."""
    spec = job.spec
    placement = find(draft, job.id, end_us(spec, now_us), demand, memo)
    if placement is None:
        return False
    before = draft.fleet
    grant_all(draft, job.id, demand, placement, (spec.tenant, spec.project), now_us)
    memo.follow(before, draft.fleet, placement.nodes)
    attempt = job.attempt + 1
    begun = Job(
        job.id,
        spec,
        JobStatus.STARTING,
        job.submitted_us,
        placement.nodes,
        now_us,
        attempt=attempt,
        checkpoints=job.checkpoints,
    )
    if job.checkpoints.save_us:
        begun = jobs.paced(draft, begun, now_us)
    draft.put_job(replace(begun, reason=f"before: {job.reason}") if job.reason else begun)
    if draft.reservations:
        drop(draft, job.id)
    pace_us = begun.checkpoints.interval_us
    draft.effects.append(StartJob(job.id, attempt, spec, placement.nodes, placement.accelerators, pace_us))
    return True


def _start_short(draft: Draft, key: QueueKey, demand: Demand, now_us: int, memo: Memo) -> bool:
    """Start the first job behind a queue's head that says that it ends before what is kept is needed."""
    ends = [kept.at_us for kept in draft.reservations.values() if kept.kind == "backfill"]
    if not ends:
        return False
    for _, name in draft.queues[key][1:LOOK_BEHIND]:
        job = draft.jobs[name]
        if end_us(job.spec, now_us) <= max(ends) and name not in draft.reservations:
            return _start(draft, job, demand, now_us, memo)
    return False


# What does not fit.


def _wait(draft: Draft, job: Job, key: QueueKey, demand: Demand, now_us: int) -> int:
    """Make room by preemption, or keep nodes for who waited long. Says whether all that runs was searched."""
    if len(draft.reservations) >= RESERVATIONS_MOST:
        return 0
    asked = demand.resources.accelerators * demand.workers
    view = shares(draft)
    reclaims = bool(asked) and within_guarantee(job.spec.tenant, asked, view)
    outranks = bool(draft.ranks) and key[0] > min(draft.ranks)
    if reclaims or outranks:
        victims = _victims(draft, key[0], job.spec.tenant if reclaims else "", now_us)
        if preempt(draft, job.id, demand, victims, now_us):
            return 1
    if now_us - job.submitted_us > PATIENCE_US:
        return _keep(draft, job, key, demand, now_us)
    return int(reclaims or outranks)


def preempt(draft: Draft, owner: str, demand: Demand, victims: list[Victim], now_us: int) -> bool:
    """Tell the cheapest sufficient victims to go and keep their nodes for ``owner``. Nobody goes in vain."""
    found = evict(open_fleet(draft, owner, FAR_US), demand, victims) if victims else None
    if found is None or is_too_steep(draft, found.placement, demand):
        return False
    names = tuple(sorted(v.id for v in found.victims))
    nodes = tuple(sorted(dict.fromkeys(found.placement.nodes)))
    reserve(draft, Reservation(owner, nodes, now_us + jobs.GRACE_US, "preempt", now_us, names))
    for name in names:
        if name in draft.jobs:
            jobs.stop(draft, draft.jobs[name], "preempted", f"preempted for {owner}")
        else:
            replicas.retire(draft, draft.replicas[name], now_us, f"preempted for {owner}")
    return True


def _victims(draft: Draft, priority: int, reclaims_for: str, now_us: int) -> list[Victim]:
    """Who may be told to go: work of a lower priority, and borrowers' work for one that reclaims."""
    view = shares(draft)
    spare: dict[str, int] = {}
    found: list[Victim] = []
    for owner in sorted(draft.leases_of):
        job, replica = draft.jobs.get(owner), draft.replicas.get(owner)
        if job is not None and _may_go(draft, job, now_us):
            below = priority_of(job.spec, draft.index.tenants) < priority
            tenant = job.spec.tenant
            asked = job.spec.resources.accelerators * job.spec.workers
            if not below and reclaims_for and tenant != reclaims_for and asked:
                if tenant not in spare:
                    spare[tenant] = borrowed(tenant, view)
                below = spare[tenant] >= asked
                spare[tenant] -= asked if below else 0
            if below:
                cost = job_cost_us(asked, job.started_us, job.saved_us, now_us)
                found.append(Victim(owner, cost, held_of(draft, owner)))
        elif replica is not None and _surplus(draft, replica, priority):
            count = replica.spec.resources.accelerators if replica.spec else 0
            found.append(Victim(owner, replica_cost_us(count), held_of(draft, owner)))
    return found


def _may_go(draft: Draft, job: Job, now_us: int) -> bool:
    return (
        job.spec.preemptible
        and job.status in (JobStatus.STARTING, JobStatus.RUNNING)
        and now_us - job.started_us >= job.spec.min_run_us
    )


def _surplus(draft: Draft, replica: Replica, priority: int) -> bool:
    """Whether a replica is one that its deployment can do without, of a lower priority than what asks."""
    spec = replica.spec
    if spec is None or spec.priority >= priority or replica.status is not ReplicaStatus.READY:
        return False
    ids = draft.replicas_of.get(replica.deployment, ())
    ready = sorted(name for name in ids if draft.replicas[name].status is ReplicaStatus.READY)
    return replica.id in ready[max(1, spec.replicas) :]


def preempt_for_replica(draft: Draft, replica: Replica, demand: Demand, now_us: int) -> bool:
    """Make room for a replica by telling jobs of a lower priority to go."""
    spec = replica.spec
    if spec is None or replica.id in draft.reservations or len(draft.reservations) >= RESERVATIONS_MOST:
        return False
    if not draft.ranks or min(draft.ranks) >= spec.priority:
        return False
    return preempt(draft, replica.id, demand, _victims(draft, spec.priority, "", now_us), now_us)


def _keep(draft: Draft, job: Job, key: QueueKey, demand: Demand, now_us: int) -> int:
    """Reserve where the gang will fit first. One job at a time has such a reservation, the first in rank."""
    others = [owner for owner, kept in sorted(draft.reservations.items()) if kept.kind == "backfill"]
    if any(priority_of(draft.jobs[owner].spec, draft.index.tenants) >= key[0] for owner in others):
        return 0
    found = foresee(open_fleet(draft, job.id, FAR_US), demand, endings(draft))
    if found is not None and not is_too_steep(draft, found[1], demand):
        at_us, placement = found
        for owner in others:
            drop(draft, owner)
        nodes = tuple(sorted(dict.fromkeys(placement.nodes)))
        reserve(draft, Reservation(job.id, nodes, at_us, "backfill", now_us))
    return 1
