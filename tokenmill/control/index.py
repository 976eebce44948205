"""What the core looks up often, derived from the state and kept beside it: free room, queues, timers.

``index_state`` derives it from scratch (after a start, a new spec, a node that came or went);
``control.draft`` keeps it up to date in between. Both must agree after every event, which the simulation
checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from immutables import Map

from tokenmill.domain.factory import Deployment, Factory, Line, Node, Resources, Tenant
from tokenmill.domain.work import Job, JobStatus, Lease, NodeState, Replica, ReplicaStatus, Run, Tuning
from tokenmill.policy.place import Room
from tokenmill.policy.share import NOTHING, Holding

Timer = tuple[int, str, str]  # (at_us, "job" | "lease" | "replica", id)
Waiting = tuple[int, str]  # (submitted_us, job)
QueueKey = tuple[int, str, Resources, int]  # (priority, tenant, resources, workers)


@dataclass(frozen=True, slots=True)
class Index:
    """``rooms`` and ``total`` are of live nodes; tuples are sorted. Stopped replicas are left out."""

    deployments: Map[str, Deployment] = Map()
    lines: Map[str, Line] = Map()
    tenants: Map[str, Tenant] = Map()
    rooms: Map[str, Room] = Map()  # by node
    total: Holding = Holding()
    held: Map[str, Holding] = Map()  # by tenant
    leases_of: Map[str, tuple[str, ...]] = Map()  # by owner
    replicas_of: Map[str, tuple[str, ...]] = Map()  # by deployment
    unplaced: Map[str, int] = Map()  # deployment -> replicas that wait for room
    queues: Map[QueueKey, tuple[Waiting, ...]] = Map()
    timers: tuple[Timer, ...] = ()
    open_runs: tuple[str, ...] = ()


NO_INDEX = Index()


def id_order(name: str) -> tuple[int, str]:
    """Sort key that keeps ids we number in order also when they grow a digit."""
    return len(name), name


HELD_US = 1 << 62
"""The back-off of a paused job: it ends when somebody says so."""


def job_timer(job: Job) -> Timer | None:
    """When a job next needs attention: its timeout while it runs, its retry while it backs off."""
    if job.status in (JobStatus.STARTING, JobStatus.RUNNING):
        return (job.started_us + job.spec.timeout_us, "job", job.id) if job.spec.timeout_us > 0 else None
    if job.status is JobStatus.PENDING and 0 < job.retry_us < HELD_US:
        return job.retry_us, "job", job.id
    return None


def replica_timer(replica: Replica) -> Timer | None:
    """When a failed replica may start again."""
    if replica.status is ReplicaStatus.FAILED:
        return replica.retry_us, "replica", replica.id
    return None


def lease_timer(lease: Lease) -> Timer | None:
    """When a tenant's lease ends."""
    return (lease.until_us, "lease", lease.id) if lease.until_us > 0 else None


def queued(job: Job) -> bool:
    """Whether a job waits for room now."""
    return job.status is JobStatus.PENDING and job.retry_us == 0


def queue_key(job: Job, tenants: Map[str, Tenant]) -> QueueKey:
    """The queue a job waits in. A tenant's priority and the job's own add up."""
    spec = job.spec
    tenant = tenants.get(spec.tenant)
    return (tenant.priority if tenant else 0) + spec.priority, spec.tenant, spec.resources, spec.workers


def room_of(node: Node, jurisdiction: str) -> Room:
    """All that a node has, before any lease."""
    return Room(
        node.id,
        node.site,
        node.rack,
        node.domain,
        jurisdiction,
        node.cpu_millis,
        node.memory_bytes,
        node.accelerators,
    )


def taken(room: Room, lease: Lease) -> Room:
    """The room that is left beside ``lease``."""
    free = room.accelerators
    if lease.accelerators:
        free = tuple(a for a in free if a.id not in lease.accelerators)
    return Room(
        room.node,
        room.site,
        room.rack,
        room.domain,
        room.jurisdiction,
        room.cpu_millis - lease.cpu_millis,
        room.memory_bytes - lease.memory_bytes,
        free,
    )


def given_back(room: Room, lease: Lease, node: Node) -> Room:
    """The room when ``lease`` has ended, its accelerators in the node's order."""
    free = room.accelerators
    if lease.accelerators:
        ids = {a.id for a in free}.union(lease.accelerators)
        free = tuple(a for a in node.accelerators if a.id in ids)
    return Room(
        room.node,
        room.site,
        room.rack,
        room.domain,
        room.jurisdiction,
        room.cpu_millis + lease.cpu_millis,
        room.memory_bytes + lease.memory_bytes,
        free,
    )


_NO_TUNINGS: Map[str, Tuning] = Map()


def index_state(
    factory: Factory,
    nodes: Mapping[str, NodeState],
    leases: Mapping[str, Lease],
    replicas: Mapping[str, Replica],
    jobs: Mapping[str, Job],
    runs: Mapping[str, Run],
    tunings: Mapping[str, Tuning] = _NO_TUNINGS,
) -> Index:
    """Derive the index from scratch. Lines and deployments are the factory file's and the tenants' own."""
    own = [tuning for _, tuning in sorted(tunings.items())]
    deployments = (*factory.deployments, *(t.deployment for t in own if not t.dropped))
    lines = (*factory.lines, *(tuning.line for tuning in own))
    tenants = Map({tenant.name: tenant for tenant in factory.tenants})
    rooms, total = _rooms(factory, nodes)
    leases_of: dict[str, tuple[str, ...]] = {}
    held: dict[str, Holding] = {}
    for lease in sorted(leases.values(), key=lambda lease: id_order(lease.id)):
        if lease.node in rooms:
            rooms[lease.node] = taken(rooms[lease.node], lease)
        leases_of[lease.owner] = (*leases_of.get(lease.owner, ()), lease.id)
        held[lease.tenant] = held.get(lease.tenant, Holding()).plus(
            lease.cpu_millis, lease.memory_bytes, len(lease.accelerators)
        )
    replicas_of: dict[str, tuple[str, ...]] = {}
    unplaced: dict[str, int] = {}
    for replica in sorted(replicas.values(), key=lambda replica: id_order(replica.id)):
        if replica.status is not ReplicaStatus.STOPPED:
            name = replica.deployment
            replicas_of[name] = (*replicas_of.get(name, ()), replica.id)
            if replica.status is ReplicaStatus.PENDING:
                unplaced[name] = unplaced.get(name, 0) + 1
    queues: dict[QueueKey, list[Waiting]] = {}
    for job in jobs.values():
        if queued(job):
            queues.setdefault(queue_key(job, tenants), []).append((job.submitted_us, job.id))
    return Index(
        deployments=Map({deployment.name: deployment for deployment in deployments}),
        lines=Map({line.name: line for line in lines}),
        tenants=tenants,
        rooms=Map(rooms),
        total=total,
        held=Map({name: holding for name, holding in held.items() if holding != NOTHING}),
        leases_of=Map(leases_of),
        replicas_of=Map(replicas_of),
        unplaced=Map(unplaced),
        queues=Map({key: tuple(sorted(waiting)) for key, waiting in queues.items()}),
        timers=_timers(leases.values(), replicas.values(), jobs.values()),
        open_runs=tuple(sorted(run.id for run in runs.values() if not run.status.ended)),
    )


def _rooms(factory: Factory, nodes: Mapping[str, NodeState]) -> tuple[dict[str, Room], Holding]:
    law = {site.name: site.jurisdiction for site in factory.sites}
    rooms: dict[str, Room] = {}
    total = Holding()
    for state in nodes.values():
        node = state.node
        if not state.lost:
            rooms[node.id] = room_of(node, law.get(node.site, ""))
            total = total.plus(node.cpu_millis, node.memory_bytes, len(node.accelerators))
    return rooms, total


def _timers(leases: Iterable[Lease], replicas: Iterable[Replica], jobs: Iterable[Job]) -> tuple[Timer, ...]:
    timers = [lease_timer(lease) for lease in leases]
    timers += [replica_timer(replica) for replica in replicas]
    timers += [job_timer(job) for job in jobs]
    return tuple(sorted(timer for timer in timers if timer is not None))
