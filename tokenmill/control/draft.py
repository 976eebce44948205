"""One step's working copy of the state: records are replaced in it, the index follows, effects collect.

A draft lives inside one ``step`` and never leaves it; outside, only whole ``State`` values are seen. Life
cycles change records through its methods alone, so that no index can be forgotten. It decides nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from immutables import Map

from tokenmill.control.index import (
    HOLDING,
    PENDING,
    Index,
    Timer,
    given_back,
    id_order,
    index_state,
    job_timer,
    lease_timer,
    priority_of,
    ramp_timer,
    replica_timer,
    room_of,
    schedulable,
    taken,
    with_waiting,
)
from tokenmill.control.state import State
from tokenmill.domain.effects import Effect
from tokenmill.domain.work import Alias, Job, Lease, Replica, ReplicaStatus, Run
from tokenmill.policy.fleet import Fleet, Room, fleet_of
from tokenmill.policy.fragment import Kinds, kind_of, most_asked
from tokenmill.policy.power import History
from tokenmill.policy.share import NO_USAGE, NOTHING, Holding, dominant_ppm, used


class Draft:
    """Fields are those of ``State`` and ``Index``; effects and notes for reconcile are the step's own."""

    __slots__ = (
        "aliases",
        "asked",
        "base",
        "changed",
        "done",
        "draws",
        "effects",
        "epoch",
        "factory",
        "fleet",
        "freed",
        "freed_nodes",
        "fresh_jobs",
        "held",
        "index",
        "jobs",
        "keys",
        "known_kinds",
        "leases",
        "leases_of",
        "models",
        "next_id",
        "nodes",
        "open_runs",
        "queues",
        "ranks",
        "recalls",
        "releases",
        "replicas",
        "replicas_of",
        "reservations",
        "rooms",
        "runs",
        "scaling",
        "shown",
        "timers",
        "touched_deployments",
        "touched_runs",
        "tunings",
        "unplaced",
        "uptime",
        "usage",
        "version",
    )

    def __init__(self, state: State) -> None:
        self.base = state
        self.changed = False
        self.effects: list[Effect] = []
        self.freed = False  # room was given back, so what waits may fit now
        self.freed_nodes: set[str] | None = set()  # where it was; None is anywhere
        self.shown = False  # something the table shows may have changed
        self.known_kinds: Kinds | None = None
        self.fresh_jobs: list[str] = []  # jobs that joined a queue in this step
        self.touched_deployments: set[str] = set()
        self.touched_runs: set[str] = set()
        self.factory = state.factory
        self.version = state.version
        self.epoch = state.epoch
        self.next_id = state.next_id
        self.nodes = state.nodes
        self.leases = state.leases
        self.models = state.models
        self.replicas = state.replicas
        self.aliases = state.aliases
        self.jobs = state.jobs
        self.runs = state.runs
        self.releases = state.releases
        self.recalls = state.recalls
        self.tunings = state.tunings
        self.keys = state.keys
        self.done = state.done
        self.scaling = state.scaling
        self.reservations = state.reservations
        self.usage = state.usage
        self.uptime = state.uptime
        self.draws = state.draws
        self._take_index(state.index)

    def _take_index(self, index: Index) -> None:
        self.index = index
        self.rooms: Map[str, Room] = index.rooms
        self.fleet = index.fleet
        self.ranks = index.ranks
        self.held: Map[str, Holding] = index.held
        self.asked = index.asked
        self.leases_of = index.leases_of
        self.replicas_of = index.replicas_of
        self.unplaced = index.unplaced
        self.queues = index.queues
        self.timers = index.timers
        self.open_runs = index.open_runs

    def reindex(self) -> None:
        """Derive the index anew, after the spec or the nodes changed. All room counts as freed."""
        self.changed = True
        self.freed = True
        self.freed_nodes = None
        self.shown = True
        self._take_index(
            index_state(
                self.factory,
                self.nodes,
                self.leases,
                self.replicas,
                self.jobs,
                self.runs,
                self.tunings,
                self.draws,
            )
        )

    def state(self) -> State:
        """The next state, or the very state it began with when nothing changed."""
        if not self.changed:
            return self.base
        old = self.index
        index = Index(
            old.deployments,
            old.lines,
            old.tenants,
            old.bounded,
            old.ramps,
            self.rooms,
            self.fleet,
            old.idle,
            old.shapes,
            self.ranks,
            old.total,
            self.held,
            self.asked,
            self.leases_of,
            self.replicas_of,
            self.unplaced,
            self.queues,
            self.timers,
            self.open_runs,
        )
        return State(
            self.factory,
            self.version,
            self.epoch,
            self.base.table_version,
            self.next_id,
            self.nodes,
            self.leases,
            self.models,
            self.replicas,
            self.aliases,
            self.jobs,
            self.runs,
            self.releases,
            self.recalls,
            self.tunings,
            self.keys,
            self.done,
            self.scaling,
            self.reservations,
            self.usage,
            self.uptime,
            self.draws,
            index,
            self.base.table,
        )

    def new_id(self, prefix: str) -> str:
        """The next id of a kind: ``r-000001``. Ids are never used twice."""
        self.changed = True
        number = self.next_id
        self.next_id = number + 1
        return f"{prefix}-{number:06d}"

    def put_job(self, job: Job) -> None:
        """Keep a job's next value; its queue and timer follow."""
        self.changed = True
        old = self.jobs.get(job.id)
        if old is None:
            self.count_asked(job, 1)
        self.jobs = self.jobs.set(job.id, job)
        status, was_status = job.status, None if old is None else old.status
        was = was_status is PENDING and old is not None and old.retry_us == 0
        now = status is PENDING and job.retry_us == 0
        if was != now:
            self.queues = with_waiting(self.queues, job, self.index.tenants, waits=now)
            if now:
                self.fresh_jobs.append(job.id)
        held, holds = was_status in HOLDING, status in HOLDING
        if held != holds:
            rank = priority_of(job.spec, self.index.tenants)
            count = self.ranks.get(rank, 0) + (1 if holds else -1)
            self.ranks = self.ranks.set(rank, count) if count else self.ranks.delete(rank)
        self._move_timer(job_timer(old) if old is not None else None, job_timer(job))

    def count_asked(self, job: Job, more: int) -> None:
        """A job is known now, or no more."""
        need = job.spec.resources
        if need.accelerators:
            kind = kind_of(need)
            count = self.asked.get(kind, 0) + more
            self.asked = self.asked.set(kind, count) if count else self.asked.delete(kind)

    def kinds(self) -> Kinds:
        """What kinds of work room should be left for."""
        if self.known_kinds is None:
            self.known_kinds = most_asked(self.asked)
        return self.known_kinds

    def put_draw(self, place: str, history: History) -> None:
        """Remember what a place drew lately; an empty history forgets it."""
        old = self.draws.get(place, ())
        if history == old:
            return
        self.changed = True
        self.draws = self.draws.set(place, history) if history else self.draws.delete(place)
        ramps = self.index.ramps
        self._move_timer(ramp_timer(place, old, ramps), ramp_timer(place, history, ramps))

    def put_replica(self, replica: Replica) -> None:
        """Keep a replica's next value; its deployment will be reconciled."""
        self.changed = True
        name = replica.deployment
        old = self.replicas.get(replica.id)
        self.replicas = self.replicas.set(replica.id, replica)
        self.touched_deployments.add(name)
        self.shown = True
        was = old is not None and old.status is not ReplicaStatus.STOPPED
        now = replica.status is not ReplicaStatus.STOPPED
        if was != now:
            ids = self.replicas_of.get(name, ())
            if now:
                ids = tuple(sorted((*ids, replica.id), key=id_order))
            else:
                ids = tuple(known for known in ids if known != replica.id)
            self.replicas_of = self.replicas_of.set(name, ids) if ids else self.replicas_of.delete(name)
        waited = old is not None and old.status is ReplicaStatus.PENDING
        waits = replica.status is ReplicaStatus.PENDING
        if waited != waits:
            count = self.unplaced.get(name, 0) + (1 if waits else -1)
            self.unplaced = self.unplaced.set(name, count) if count else self.unplaced.delete(name)
        self._move_timer(replica_timer(old) if old is not None else None, replica_timer(replica))

    def put_run(self, run: Run) -> None:
        """Keep a run's next value."""
        self.changed = True
        self.runs = self.runs.set(run.id, run)
        is_open = run.id in self.open_runs
        if is_open == run.status.ended:
            if is_open:
                self.open_runs = tuple(known for known in self.open_runs if known != run.id)
            else:
                self.open_runs = tuple(sorted((*self.open_runs, run.id)))

    def put_alias(self, alias: Alias) -> None:
        """Keep an alias's next value; its deployment will be reconciled."""
        self.changed = True
        self.shown = True
        self.aliases = self.aliases.set(alias.name, alias)
        self.touched_deployments.add(alias.deployment)

    def grant(self, leases: Sequence[Lease], now_us: int) -> None:
        """Hold the resources of one owner's leases until ``release``."""
        self.changed = True
        first = leases[0]
        changed: dict[str, Room] = {}
        known, rooms = self.leases, self.rooms
        cpu_millis = memory_bytes = accelerators = 0
        for lease in leases:
            known = known.set(lease.id, lease)
            room = changed.get(lease.node) or rooms.get(lease.node)
            if room is not None:  # a cordoned node has none
                changed[lease.node] = taken(room, lease)
            cpu_millis += lease.cpu_millis
            memory_bytes += lease.memory_bytes
            accelerators += len(lease.accelerators)
        self.leases = known
        self.leases_of = self.leases_of.set(first.owner, tuple([lease.id for lease in leases]))
        self._put_rooms(changed)
        self._hold(first.tenant, cpu_millis, memory_bytes, accelerators, now_us)
        self._move_timer(None, lease_timer(first))

    def release(self, owner: str, now_us: int) -> tuple[Lease, ...]:
        """Give back all that ``owner`` holds, and say what that was."""
        ids = self.leases_of.get(owner, ())
        if not ids:
            return ()
        self.changed = True
        self.freed = True
        ended = tuple([self.leases[name] for name in ids])
        self.leases_of = self.leases_of.delete(owner)
        changed: dict[str, Room] = {}
        cpu_millis = memory_bytes = accelerators = 0
        for lease in ended:
            self.leases = self.leases.delete(lease.id)
            room = changed.get(lease.node) or self.rooms.get(lease.node)
            if room is not None:
                changed[lease.node] = given_back(room, lease, self.nodes[lease.node].node)
            cpu_millis += lease.cpu_millis
            memory_bytes += lease.memory_bytes
            accelerators += len(lease.accelerators)
        if self.freed_nodes is not None:
            self.freed_nodes.update(changed)
        self._put_rooms(changed)
        self._hold(ended[0].tenant, -cpu_millis, -memory_bytes, -accelerators, now_us)
        self._move_timer(lease_timer(ended[0]), None)
        return ended

    def _put_rooms(self, changed: dict[str, Room]) -> None:
        rooms = self.rooms
        for node, room in changed.items():
            rooms = rooms.set(node, room)
        self.rooms = rooms
        self.fleet = self.fleet.with_rooms(changed)

    def fleet_if(self, stays: Callable[[Lease], bool]) -> Fleet:
        """The fleet as it would be if only leases that ``stays`` accepts were held."""
        rooms: dict[str, Room] = {}
        for name, room in self.rooms.items():
            rooms[name] = room_of(self.nodes[name].node, room.jurisdiction)
        for lease in self.leases.values():
            if lease.node in rooms and stays(lease):
                rooms[lease.node] = taken(rooms[lease.node], lease)
        return fleet_of(rooms.values(), schedulable(self.factory))

    def _hold(self, tenant: str, cpu_millis: int, memory_bytes: int, accelerators: int, now_us: int) -> None:
        """The tenant holds that much more, or less; what it held until now goes into its usage over time."""
        held = self.held.get(tenant) or NOTHING
        if tenant:
            known = self.usage.get(tenant) or NO_USAGE
            if known.at_us != now_us:
                self.usage = self.usage.set(tenant, used(known, dominant_ppm(held, self.index.total), now_us))
        more = held.plus(cpu_millis, memory_bytes, accelerators)
        if more.cpu_millis or more.memory_bytes or more.accelerators:
            self.held = self.held.set(tenant, more)
        elif tenant in self.held:
            self.held = self.held.delete(tenant)

    def _move_timer(self, old: Timer | None, new: Timer | None) -> None:
        if old == new:
            return
        timers = self.timers
        if old is not None:
            at = bisect_left(timers, old)
            timers = timers[:at] + timers[at + 1 :]
        if new is not None:
            at = bisect_left(timers, new)
            timers = (*timers[:at], new, *timers[at:])
        self.timers = timers
