"""What the core looks up often, derived from the state and kept beside it: free room, queues, timers.

``index_state`` derives it from scratch (after a start, a new spec, a node that came or went);
``control.draft`` keeps it up to date in between. Both must agree after every event, which the simulation
checks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping

from immutables import Map

from tokenmill.domain.factory import Deployment, Factory, Line, Node, Resources, Tenant
from tokenmill.domain.value import value
from tokenmill.domain.work import (
    Job,
    JobSpec,
    JobStatus,
    Lease,
    NodeState,
    Replica,
    ReplicaStatus,
    Run,
    Tuning,
)
from tokenmill.policy.fleet import Block, Fleet, Room, fleet_of, with_free
from tokenmill.policy.fragment import Kind, kind_of
from tokenmill.policy.power import History, Ramp, bounded_places, ramps_of, unknown_draw
from tokenmill.policy.share import LONGEST_US, NOTHING, Holding, bounded, length_of

Timer = tuple[int, str, str]  # (at_us, "job" | "lease" | "replica" | "ramp", id)
Waiting = tuple[int, str]  # (submitted_us, job)
QueueKey = tuple[int, str, Resources, int]  # (priority, tenant, resources, workers)
Lanes = Map[int, tuple[Waiting, ...]]
"""Who waits in one queue, in order, by ``share.length_of`` what each says that it runs."""


@value
class Index:
    """``rooms``, ``total``: of nodes that take work. Tuples are sorted. Stopped replicas are not in it."""

    deployments: Map[str, Deployment] = Map()
    lines: Map[str, Line] = Map()
    tenants: Map[str, Tenant] = Map()
    bounded: bool = False  # whether any tenant has a reserve or a limit
    ramps: Map[str, Ramp] = Map()  # by place
    rooms: Map[str, Room] = Map()  # by node
    fleet: Fleet = Fleet()  # the same rooms, by block
    idle: Fleet = Fleet()  # as it would be with nothing held and no node lost
    shapes: tuple[Block, ...] = ()  # one idle block of each kind that there is
    ranks: Map[int, int] = Map()  # priority -> jobs of that priority that hold something
    total: Holding = Holding()
    held: Map[str, Holding] = Map()  # by tenant
    asked: Map[Kind, int] = Map()  # jobs that are known, by the accelerators and so on of a worker
    leases_of: Map[str, tuple[str, ...]] = Map()  # by owner
    replicas_of: Map[str, tuple[str, ...]] = Map()  # by deployment
    unplaced: Map[str, int] = Map()  # deployment -> replicas that wait for room
    queues: Map[QueueKey, Lanes] = Map()
    timers: tuple[Timer, ...] = ()
    open_runs: tuple[str, ...] = ()


NO_INDEX = Index()


def id_order(name: str) -> tuple[int, str]:
    """Sort key that keeps ids we number in order also when they grow a digit."""
    return len(name), name


HELD_US = 1 << 62
"""The back-off of a paused job: it ends when somebody says so."""


RUNNING = (JobStatus.STARTING, JobStatus.RUNNING)
HOLDING = (JobStatus.STARTING, JobStatus.RUNNING, JobStatus.STOPPING)
PENDING = JobStatus.PENDING


def job_timer(job: Job) -> Timer | None:
    """When a job next needs attention: its least run or timeout while it runs, its retry in a back-off."""
    status = job.status
    if status in RUNNING:
        spec = job.spec
        if not spec.min_run_us:
            return (job.started_us + spec.timeout_us, "job", job.id) if spec.timeout_us > 0 else None
        ripe_us = 0 if job.ripe else job.started_us + spec.min_run_us
        end_us = job.started_us + spec.timeout_us if spec.timeout_us > 0 else 0
        at_us = min(ripe_us or end_us, end_us or ripe_us)
        return (at_us, "job", job.id) if at_us else None
    if status is PENDING and 0 < job.retry_us < HELD_US:
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


def ramp_timer(place: str, history: History, ramps: Mapping[str, Ramp]) -> Timer | None:
    """When the least draw of a place leaves its window, so that it may rise further."""
    if len(history) < 2 or place not in ramps:
        return None
    return history[1][0] + ramps[place].window_us, "ramp", place


def queued(job: Job) -> bool:
    """Whether a job waits for room now."""
    return job.status is PENDING and job.retry_us == 0


def queue_key(job: Job, tenants: Map[str, Tenant]) -> QueueKey:
    """The queue a job waits in."""
    spec = job.spec
    return priority_of(spec, tenants), spec.tenant, spec.resources, spec.workers


def stated_us(spec: JobSpec) -> int:
    """How long a job says that it runs."""
    return spec.runtime_us or spec.timeout_us or LONGEST_US


def priority_of(spec: JobSpec, tenants: Mapping[str, Tenant]) -> int:
    """A tenant's priority and the job's own add up."""
    tenant = tenants.get(spec.tenant)
    return (tenant.priority if tenant else 0) + spec.priority


def holding(job: Job) -> bool:
    """Whether a job's processes run or may still run."""
    return job.status in HOLDING


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
        0,
        node.leaf,
        node.rail,
        node.row,
        (len(node.accelerators), node.cpu_millis, node.memory_bytes),
    )


def taken(room: Room, lease: Lease) -> Room:
    """The room that is left beside ``lease``."""
    free = room.accelerators
    if lease.accelerators:
        gone = lease.accelerators
        free = () if len(gone) == len(free) else tuple([a for a in free if a.id not in gone])
    cpu_millis = room.cpu_millis - lease.cpu_millis
    memory_bytes = room.memory_bytes - lease.memory_bytes
    return with_free(room, cpu_millis, memory_bytes, free, room.leases + 1)


def given_back(room: Room, lease: Lease, node: Node) -> Room:
    """The room when ``lease`` has ended, its accelerators in the node's order."""
    free = room.accelerators
    if lease.accelerators:
        every = node.accelerators
        if len(free) + len(lease.accelerators) == len(every):
            free = every
        else:
            ids = {a.id for a in free}.union(lease.accelerators)
            free = tuple([a for a in every if a.id in ids])
    cpu_millis = room.cpu_millis + lease.cpu_millis
    memory_bytes = room.memory_bytes + lease.memory_bytes
    return with_free(room, cpu_millis, memory_bytes, free, room.leases - 1)


_NO_TUNINGS: Map[str, Tuning] = Map()
_NO_DRAWS: Map[str, History] = Map()


def index_state(
    factory: Factory,
    nodes: Mapping[str, NodeState],
    leases: Mapping[str, Lease],
    replicas: Mapping[str, Replica],
    jobs: Mapping[str, Job],
    runs: Mapping[str, Run],
    tunings: Mapping[str, Tuning] = _NO_TUNINGS,
    draws: Mapping[str, History] = _NO_DRAWS,
) -> Index:
    """Derive the index from scratch. Lines and deployments are the factory file's and the tenants' own."""
    own = [tuning for _, tuning in sorted(tunings.items())]
    deployments = (*factory.deployments, *(t.deployment for t in own if not t.dropped))
    tenants = Map({tenant.name: tenant for tenant in factory.tenants})
    rooms, idle, total = _rooms(factory, nodes)
    ramps = Map(ramps_of(factory))
    limits = schedulable(factory)
    idle_fleet = fleet_of(idle, limits)
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
    queues, ranks = _queues(jobs.values(), tenants)
    return Index(
        deployments=Map({deployment.name: deployment for deployment in deployments}),
        lines=Map({line.name: line for line in (*factory.lines, *(tuning.line for tuning in own))}),
        tenants=tenants,
        bounded=bounded(tenants),
        ramps=ramps,
        rooms=Map(rooms),
        fleet=fleet_of(rooms.values(), limits),
        idle=idle_fleet,
        shapes=_shapes(idle_fleet),
        ranks=ranks,
        total=total,
        asked=Map(_asked(jobs.values())),
        held=Map({name: holding for name, holding in held.items() if holding != NOTHING}),
        leases_of=Map(leases_of),
        replicas_of=Map(replicas_of),
        unplaced=Map(unplaced),
        queues=queues,
        timers=_timers(leases.values(), replicas.values(), jobs.values(), draws, ramps),
        open_runs=tuple(sorted(run.id for run in runs.values() if not run.status.ended)),
    )


def _asked(jobs: Iterable[Job]) -> Counter[Kind]:
    return Counter(kind_of(job.spec.resources) for job in jobs if job.spec.resources.accelerators)


def _queues(jobs: Iterable[Job], tenants: Map[str, Tenant]) -> tuple[Map[QueueKey, Lanes], Map[int, int]]:
    """Who waits, and how many of each priority hold something."""
    queues: dict[QueueKey, dict[int, list[Waiting]]] = {}
    ranks: dict[int, int] = {}
    for job in jobs:
        if holding(job):
            rank = priority_of(job.spec, tenants)
            ranks[rank] = ranks.get(rank, 0) + 1
        if queued(job):
            lanes = queues.setdefault(queue_key(job, tenants), {})
            lanes.setdefault(length_of(stated_us(job.spec)), []).append((job.submitted_us, job.id))
    ordered = {
        key: Map({length: tuple(sorted(waiting)) for length, waiting in lanes.items()})
        for key, lanes in queues.items()
    }
    return Map(ordered), Map(ranks)


def with_waiting(
    queues: Map[QueueKey, Lanes], job: Job, tenants: Map[str, Tenant], *, waits: bool
) -> Map[QueueKey, Lanes]:
    """The queues once a job waits in its lane, or no more."""
    key, length = queue_key(job, tenants), length_of(stated_us(job.spec))
    lanes: Lanes = queues.get(key, Map())
    waiting = lanes.get(length, ())
    item = (job.submitted_us, job.id)
    at = bisect_left(waiting, item)
    waiting = (*waiting[:at], item, *waiting[at:]) if waits else waiting[:at] + waiting[at + 1 :]
    lanes = lanes.set(length, waiting) if waiting else lanes.delete(length)
    return queues.set(key, lanes) if lanes else queues.delete(key)


def schedulable(factory: Factory) -> dict[str, int]:
    """How many nodes of a rack may hold work, where that is bounded."""
    return {rack.name: rack.schedulable_nodes for rack in factory.racks if rack.schedulable_nodes}


def _rooms(factory: Factory, nodes: Mapping[str, NodeState]) -> tuple[dict[str, Room], list[Room], Holding]:
    """Nodes that take work with nothing held, all nodes so, and the total of the first."""
    law = {site.name: site.jurisdiction for site in factory.sites}
    rooms: dict[str, Room] = {}
    idle: list[Room] = []
    places = bounded_places(factory)
    cpu_millis = memory_bytes = accelerators = 0
    for state in nodes.values():
        node = state.node
        room = room_of(node, law.get(node.site, ""))
        idle.append(room)
        if not state.lost and not state.cordon and not unknown_draw(node, places):
            rooms[node.id] = room
            cpu_millis += node.cpu_millis
            memory_bytes += node.memory_bytes
            accelerators += len(node.accelerators)
    return rooms, idle, Holding(cpu_millis, memory_bytes, accelerators)


def _shapes(idle: Fleet) -> tuple[Block, ...]:
    shapes: dict[tuple[object, ...], Block] = {}
    for _, block in sorted(idle.blocks.items()):
        kind = (block.most_nodes, *(_kind(room) for room in block.rooms))
        shapes.setdefault(kind, block)
    return tuple(shapes.values())


def _kind(room: Room) -> tuple[object, ...]:
    kinds = tuple([card.kind for card in room.accelerators])
    return room.jurisdiction, room.cpu_millis, room.memory_bytes, kinds


def _timers(
    leases: Iterable[Lease],
    replicas: Iterable[Replica],
    jobs: Iterable[Job],
    draws: Mapping[str, History],
    ramps: Mapping[str, Ramp],
) -> tuple[Timer, ...]:
    timers = [lease_timer(lease) for lease in leases]
    timers += [replica_timer(replica) for replica in replicas]
    timers += [job_timer(job) for job in jobs]
    timers += [ramp_timer(place, history, ramps) for place, history in draws.items()]
    return tuple(sorted(timer for timer in timers if timer is not None))
