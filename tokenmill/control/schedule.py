"""One pass over what waits: who starts where, who is told to go for whom, and what is kept for whom.

Jobs wait in one queue per priority, tenant and demand, in lanes by length: one miss is all of a queue, or of
its longer lanes where nodes are kept for somebody. ``policy.share`` picks whose turn it is and whether it
may, ``policy.place`` where. A head that does not fit is passed over, so that smaller ones fill the gaps;
when it may and it helps, ``policy.preempt`` names who goes for it; and for who has waited longest,
``PATIENCE_US`` at least, ``policy.backfill`` keeps nodes that only work with an earlier end may still use.
"""

from __future__ import annotations

from collections.abc import Mapping

from tokenmill.control import jobs, replicas
from tokenmill.control.draft import Draft
from tokenmill.control.index import QueueKey, Waiting, priority_of, queue_key, stated_us
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
    PATIENCE_US,
    Head,
    Shares,
    borrowed,
    in_turn,
    length_of,
    pick,
    refusal,
    within_guarantee,
)

SCAN_MOST = 256
"""Queues that may be passed over in one pass; the rest wait for the next one."""

ANY_LENGTH = 1 << 30
"""More than any ``length_of``: no lane of the queue was tried in vain."""

EVICTIONS_MOST = 4
"""Searches for victims in one pass: each looks at all that runs."""

KEEPS_MOST = 4
"""Late jobs for which one pass searches where they will fit first."""


def schedule(draft: Draft, now_us: int) -> None:
    """Start what fits, in the order of ``policy.share``."""
    if draft.reservations:
        drop_stale(draft)
    heads, was_freed = _hopeful(draft, now_us), draft.freed
    draft.freed, draft.freed_nodes = False, set()
    draft.fresh_jobs.clear()
    if not was_freed:  # what comes now takes nothing from who is late; what is freed is no use left idle
        _keep(draft, now_us)
    is_bounded = draft.index.bounded
    memo = Memo(draft.fleet)
    misses = searches = 0
    below: dict[QueueKey, int] = {}  # lanes of that length and longer were tried in vain
    while heads and misses < SCAN_MOST:
        if len(heads) == 1:
            key, head = next(iter(heads.items()))
        else:
            head = pick(heads.values(), shares(draft), now_us)
            key = queue_key(draft.jobs[head.id], draft.index.tenants)
        job, demand = draft.jobs[head.id], demand_of(draft, key)
        barred = is_bounded and _refusal(draft, job, shares(draft))
        if not barred and _start(draft, job, demand, now_us, memo):
            _follow(draft, heads, key, below.get(key, ANY_LENGTH), now_us)
            continue
        misses += 1
        below[key] = length_of(head.run_us) if draft.reservations else 0
        _follow(draft, heads, key, below[key], now_us)
        if not barred and searches < EVICTIONS_MOST and head.id not in draft.reservations:
            searches += _make_room(draft, job, key, demand, now_us)
    _start_owners(draft, now_us, memo)
    if was_freed:
        _keep(draft, now_us)


def _start_owners(draft: Draft, now_us: int, memo: Memo) -> None:
    """Start whom nodes are kept for, wherever it stands in its queue: nobody else may use them."""
    for owner in sorted(draft.reservations):
        job = draft.jobs.get(owner)
        if job is not None and not (draft.index.bounded and _refusal(draft, job, shares(draft))):
            demand = demand_of(draft, queue_key(job, draft.index.tenants))
            _start(draft, job, demand, now_us, memo)


def _follow(draft: Draft, heads: dict[QueueKey, Head], key: QueueKey, below: int, now_us: int) -> None:
    """Let the next one in turn be a queue's head, of its lanes ``below`` a length; without one it is done."""
    lanes = {length: waiting for length, waiting in draft.queues.get(key, {}).items() if length < below}
    if lanes:
        heads[key] = _head(draft, key, lanes, now_us)
    else:
        del heads[key]


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
        return _all_heads(draft, now_us)
    rooms = [draft.rooms[node] for node in sorted(freed) if node in draft.rooms] if freed else []
    heads: dict[QueueKey, Head] = {}
    for key, lanes in draft.queues.items():
        first = [waiting[0] for waiting in lanes.values()]
        if min(first)[0] < late_us:
            return _all_heads(draft, now_us)
        if any(job in fresh for _, job in first) or (rooms and _holds_any(draft, key, rooms)):
            heads[key] = _head(draft, key, lanes, now_us)
    return heads


def _all_heads(draft: Draft, now_us: int) -> dict[QueueKey, Head]:
    return {key: _head(draft, key, lanes, now_us) for key, lanes in draft.queues.items()}


def _head(draft: Draft, key: QueueKey, lanes: Mapping[int, tuple[Waiting, ...]], now_us: int) -> Head:
    """Whose turn it is of the first ones of these lanes: ``share.pick`` would say the same."""
    heads = [_first(draft, key, waiting) for waiting in lanes.values()]
    return heads[0] if len(heads) == 1 else min(heads, key=lambda head: in_turn(head, now_us))


def _first(draft: Draft, key: QueueKey, waiting: tuple[Waiting, ...]) -> Head:
    submitted_us, name = waiting[0]
    return Head(key[0], key[1], submitted_us, name, stated_us(draft.jobs[name].spec))


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


# What does not fit.


def _make_room(draft: Draft, job: Job, key: QueueKey, demand: Demand, now_us: int) -> bool:
    """Make room by preemption, where that may be. Says whether all that runs was searched."""
    if len(draft.reservations) >= RESERVATIONS_MOST:
        return False
    asked = demand.resources.accelerators * demand.workers
    view = shares(draft)
    reclaims = bool(asked) and within_guarantee(job.spec.tenant, asked, view)
    outranks = bool(draft.ranks) and key[0] > min(draft.ranks)
    if not reclaims and not outranks:
        return False
    victims = _victims(draft, key[0], job.spec.tenant if reclaims else "", now_us)
    preempt(draft, job.id, demand, victims, now_us)
    return True


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


def _keep(draft: Draft, now_us: int) -> None:
    """Keep nodes, where it will fit first, for who waited longest of the tenant whose turn it is.

    For the first in turn it would be no promise: a long job stays behind short ones that come after it. One
    job at a time has nodes kept, and gives them up for one of a higher priority.
    """
    kept = [owner for owner, found in sorted(draft.reservations.items()) if found.kind == "backfill"]
    ranks = [priority_of(draft.jobs[owner].spec, draft.index.tenants) for owner in kept]
    late = _late(draft, max(ranks, default=None), now_us)
    tries = 0
    while late and tries < KEEPS_MOST and len(draft.reservations) < RESERVATIONS_MOST:
        turn = pick(late, shares(draft), now_us)
        own = [head for head in late if (head.priority, head.tenant) == (turn.priority, turn.tenant)]
        head = min(own, key=lambda head: (head.submitted_us, head.id))
        late.remove(head)
        job = draft.jobs[head.id]
        if draft.index.bounded and _refusal(draft, job, shares(draft)):
            continue
        tries += 1
        demand = demand_of(draft, queue_key(job, draft.index.tenants))
        found = foresee(open_fleet(draft, head.id, FAR_US), demand, endings(draft))
        if found is not None and not is_too_steep(draft, found[1], demand):
            for owner in kept:
                drop(draft, owner)
            nodes = tuple(sorted(dict.fromkeys(found[1].nodes)))
            reserve(draft, Reservation(head.id, nodes, found[0], "backfill", now_us))
            return


def _late(draft: Draft, above: int | None, now_us: int) -> list[Head]:
    """The first of each lane ``above`` a priority that is out of patience and has nothing kept."""
    late_us = now_us - PATIENCE_US
    return [
        _first(draft, key, waiting)
        for key, lanes in draft.queues.items()
        for waiting in lanes.values()
        if (above is None or key[0] > above)
        and waiting[0][0] < late_us
        and waiting[0][1] not in draft.reservations
    ]
