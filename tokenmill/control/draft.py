"""One step's working copy of the state: records are replaced in it, the index follows, effects collect.

A draft lives inside one ``step`` and never leaves it; outside, only whole ``State`` values are seen. Life
cycles change records through its methods alone, so that no index can be forgotten. It decides nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from immutables import Map

from tokenmill.control.index import (
    Index,
    Timer,
    given_back,
    id_order,
    index_state,
    job_timer,
    lease_timer,
    queue_key,
    queued,
    replica_timer,
    room_of,
    taken,
)
from tokenmill.control.state import State
from tokenmill.domain.effects import Effect
from tokenmill.domain.work import Alias, Job, Lease, Replica, ReplicaStatus, Run
from tokenmill.policy.place import Room
from tokenmill.policy.share import NOTHING, Holding


class Draft:
    """Fields are those of ``State`` and ``Index``; effects and notes for reconcile are the step's own."""

    __slots__ = (
        "aliases",
        "base",
        "changed",
        "done",
        "effects",
        "epoch",
        "factory",
        "freed",
        "freed_nodes",
        "fresh_jobs",
        "held",
        "index",
        "jobs",
        "keys",
        "leases",
        "leases_of",
        "models",
        "next_id",
        "nodes",
        "open_runs",
        "queues",
        "recalls",
        "releases",
        "replicas",
        "replicas_of",
        "rooms",
        "runs",
        "scaling",
        "shown",
        "timers",
        "touched_deployments",
        "touched_runs",
        "tunings",
        "unplaced",
        "version",
    )

    def __init__(self, state: State) -> None:
        self.base = state
        self.changed = False
        self.effects: list[Effect] = []
        self.freed = False  # room was given back, so what waits may fit now
        self.freed_nodes: set[str] | None = set()  # where it was; None is anywhere
        self.shown = False  # something the table shows may have changed
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
        self._take_index(state.index)

    def _take_index(self, index: Index) -> None:
        self.index = index
        self.rooms: Map[str, Room] = index.rooms
        self.held: Map[str, Holding] = index.held
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
                self.factory, self.nodes, self.leases, self.replicas, self.jobs, self.runs, self.tunings
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
            self.rooms,
            old.total,
            self.held,
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
        self.jobs = self.jobs.set(job.id, job)
        was = old is not None and queued(old)
        now = queued(job)
        if was != now:
            key = queue_key(job, self.index.tenants)
            waiting = self.queues.get(key, ())
            item = (job.submitted_us, job.id)
            at = bisect_left(waiting, item)
            if now:
                self.queues = self.queues.set(key, (*waiting[:at], item, *waiting[at:]))
                self.fresh_jobs.append(job.id)
            elif len(waiting) == 1:
                self.queues = self.queues.delete(key)
            else:
                self.queues = self.queues.set(key, waiting[:at] + waiting[at + 1 :])
        self._move_timer(job_timer(old) if old is not None else None, job_timer(job))

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

    def grant(self, lease: Lease) -> None:
        """Hold ``lease``'s resources until ``release``."""
        self.changed = True
        self.leases = self.leases.set(lease.id, lease)
        ids = self.leases_of.get(lease.owner, ())
        self.leases_of = self.leases_of.set(lease.owner, (*ids, lease.id))
        self.rooms = self.rooms.set(lease.node, taken(self.rooms[lease.node], lease))
        held = self.held.get(lease.tenant) or NOTHING
        more = held.plus(lease.cpu_millis, lease.memory_bytes, len(lease.accelerators))
        self._hold(lease.tenant, more)
        self._move_timer(None, lease_timer(lease))

    def release(self, owner: str) -> tuple[Lease, ...]:
        """Give back all that ``owner`` holds, and say what that was."""
        ids = self.leases_of.get(owner, ())
        if not ids:
            return ()
        self.changed = True
        self.freed = True
        ended = tuple(self.leases[name] for name in ids)
        self.leases_of = self.leases_of.delete(owner)
        for lease in ended:
            self.leases = self.leases.delete(lease.id)
            room = self.rooms.get(lease.node)
            if room is not None:
                if self.freed_nodes is not None:
                    self.freed_nodes.add(lease.node)
                back = given_back(room, lease, self.nodes[lease.node].node)
                self.rooms = self.rooms.set(lease.node, back)
            held = self.held.get(lease.tenant) or NOTHING
            less = held.plus(-lease.cpu_millis, -lease.memory_bytes, -len(lease.accelerators))
            self._hold(lease.tenant, less)
            self._move_timer(lease_timer(lease), None)
        return ended

    def rooms_if(self, stays: Callable[[Lease], bool]) -> list[Room]:
        """What every live node would have free if only leases that ``stays`` accepts were held."""
        rooms: dict[str, Room] = {}
        for name, room in self.rooms.items():
            rooms[name] = room_of(self.nodes[name].node, room.jurisdiction)
        for lease in self.leases.values():
            if lease.node in rooms and stays(lease):
                rooms[lease.node] = taken(rooms[lease.node], lease)
        return list(rooms.values())

    def _hold(self, tenant: str, holding: Holding) -> None:
        if holding != NOTHING:
            self.held = self.held.set(tenant, holding)
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
