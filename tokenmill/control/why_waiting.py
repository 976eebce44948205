"""Why does a job or replica wait? Its turn, its tenant's bounds, what is kept for others, and room by block.

It asks the same policies that decided. On a small floor every node is a candidate; on a large one every block
(NVLink domain or rack) is, since that is where a gang goes.
"""

from __future__ import annotations

from heapq import nsmallest

from immutables import Map

from tokenmill.control.draft import Draft
from tokenmill.control.index import HELD_US, Lanes, queue_key, stated_us
from tokenmill.control.placing import power_reason
from tokenmill.control.state import State
from tokenmill.domain.work import Job, JobStatus, Replica, ReplicaStatus, Reservation
from tokenmill.policy.fleet import Block
from tokenmill.policy.lacks import explain
from tokenmill.policy.place import Demand, capacity_of, place
from tokenmill.policy.power import bounded_places, unknown_draw
from tokenmill.policy.share import (
    NOTHING,
    Head,
    Shares,
    dominant_ppm,
    in_turn,
    refusal,
    standing_ppm,
    within_guarantee,
)

NODES_MOST = 64
"""On a floor with more nodes the candidates are blocks."""

HOLDERS_MOST = 8
DEMANDS_MOST = 16
"""Different demands that a list asks the floor about: each takes 4 ms on 1,728 nodes (one core of ours)."""


Candidate = tuple[str, bool, str]  # name, whether it holds any worker, the reason


def turn(state: State, job: Job, now_us: int) -> tuple[list[str], list[str]]:
    """Reasons that lie in whose turn it is and what may be, and what would change them."""
    index = state.index
    tenant = job.spec.tenant
    view = Shares(index.held, state.usage, index.total, index.tenants)
    share = dominant_ppm(index.held.get(tenant, NOTHING), index.total) / 10_000
    lanes: Lanes = index.queues.get(queue_key(job, index.tenants), Map())
    alike = [one for waiting in lanes.values() for one in waiting]
    before = sum(_rank(state.jobs[name], now_us) < _rank(job, now_us) for _, name in alike)
    reasons = [
        f"{before} jobs like it of tenant {tenant} are before it",
        f"tenant {tenant} holds {share:.1f} % of the floor in its dominant resource",
        f"that is {standing_ppm(tenant, view, now_us) / 10_000:.1f} % by weight, with what it held lately",
    ]
    changes: list[str] = []
    if job.reason:
        reasons.append(job.reason)
    asked = job.spec.resources.accelerators * job.spec.workers
    barred = refusal(tenant, asked, index.fleet.free, view)
    if barred:
        reasons.append(barred)
        changes.append("work ends, or what tenants may have is changed in the factory file")
    elif asked and within_guarantee(tenant, asked, view):
        reasons.append(f"with it, {tenant} is within its guarantee: borrowers give way when that helps")
    return reasons, changes


def _rank(job: Job, now_us: int) -> tuple[int, int, str]:
    return in_turn(Head(0, job.spec.tenant, job.submitted_us, job.id, stated_us(job.spec)), now_us)


def kept(state: State, owner: str, now_us: int) -> tuple[list[str], list[str]]:
    """What is kept for it and for others, and when that is expected to change."""
    reasons: list[str] = []
    changes: list[str] = []
    for name, reservation in sorted(state.reservations.items()):
        count = len(reservation.nodes)
        if name != owner:
            reasons.append(f"{count} node(s) are kept for {name}, which {_waits(reservation)}")
            changes.append(f"{name} starts, or it says that it ends before {name} needs them")
            continue
        reasons.append(f"{count} node(s) are kept for it; it {_waits(reservation)}")
        if reservation.victims:
            changes.append(f"the processes of {', '.join(reservation.victims[:8])} have ended")
        elif reservation.at_us < 1 << 60:
            wait_s = max(0, reservation.at_us - now_us) // 1_000_000
            changes.append(f"work there ends, by what it says within {wait_s} s")
    return reasons, changes


def _waits(reservation: Reservation) -> str:
    if reservation.kind == "preempt":
        return f"told {len(reservation.victims)} to go"
    return "waited longest and takes them when work there ends"


def candidates(state: State, demand: Demand) -> tuple[Candidate, ...]:
    """Every node, or on a large floor every block, with what it holds of the demand and why not more."""
    if len(state.nodes) <= NODES_MOST:
        return tuple(sorted((*explain(state.index.rooms.values(), demand), *_closed(state))))
    return tuple(_block(block, demand) for _, block in sorted(state.index.fleet.blocks.items()))


def _closed(state: State) -> list[Candidate]:
    """Nodes that are there and take no work, each with why."""
    places = bounded_places(state.factory)
    return [
        (name, False, f"is cordoned: {known.cordon}" if known.cordon else unknown_draw(known.node, places))
        for name, known in state.nodes.items()
        if not known.lost and name not in state.index.rooms
    ]


def holders(state: State, demand: Demand) -> list[str]:
    """What holds such room as is asked for, longest first, by what it is for."""
    since: dict[str, int] = {}
    for lease in state.leases.values():
        if lease.accelerators or not demand.resources.accelerators:
            since[lease.owner] = min(lease.since_us, since.get(lease.owner, lease.since_us))
    first = nsmallest(HOLDERS_MOST, ((at_us, owner) for owner, at_us in since.items()))
    return [_holder(state, owner) for _, owner in first]


def _holder(state: State, owner: str) -> str:
    if owner in state.replicas:
        return f"{owner} of {state.replicas[owner].deployment}"
    job = state.jobs.get(owner)
    what = ", ".join(filter(None, (job.spec.name, job.spec.run))) if job is not None else ""
    return f"{owner} ({what})" if what else owner


def _block(block: Block, demand: Demand) -> Candidate:
    count = min(capacity_of(block, demand).workers, demand.workers)
    what = "NVLink domain" if block.is_domain else "rack"
    reason = f"{what} holds {count} of {demand.workers} workers: {block.free} accelerators free"
    reason += f", {block.used} of {len(block.rooms)} nodes in use"
    if block.most_nodes < len(block.rooms):
        reason += f", at most {block.most_nodes} may be"
    return block.id, count > 0, reason


def power(state: State, name: str, demand: Demand) -> list[str]:
    """The cap of power that keeps it waiting, if one does."""
    reason = power_reason(Draft(state), name, demand)
    return [reason] if reason else []


def shape(state: State, demand: Demand) -> list[str]:
    """What the cut of a gang over blocks has to do with it."""
    counts = sorted((capacity_of(b, demand).workers for b in state.index.fleet.blocks.values()), reverse=True)
    total = sum(min(count, demand.workers) for count in counts)
    if demand.workers > 1 and total >= demand.workers:
        best = ", ".join(str(min(count, demand.workers)) for count in counts[:8])
        return [f"blocks have room for {best} of its workers, which is no even cut of {demand.workers}"]
    if demand.workers > 1:
        return [f"all blocks together have room for {total} of its {demand.workers} workers"]
    return []


class Briefly:
    """Why pending jobs and replicas of one state wait, each in a sentence for a list: ``why`` has the rest.

    What the floor says to a demand is found once, however many jobs ask for the same.
    """

    def __init__(self, state: State, now_us: int) -> None:
        self.state, self.now_us = state, now_us
        self.of_floor: dict[Demand, str] = {}

    def job(self, job: Job) -> str:
        """Of a pending job; of any other what is known of it."""
        if job.status is not JobStatus.PENDING:
            return job.reason
        if job.retry_us >= HELD_US:
            return "it is paused"
        if job.retry_us > 0:
            wait_s = max(0, job.retry_us - self.now_us) // 1_000_000
            return (
                f"attempt {job.attempt} of {job.spec.max_attempts} failed: {job.reason}; again in {wait_s} s"
            )
        index, tenant = self.state.index, job.spec.tenant
        asked = job.spec.resources.accelerators * job.spec.workers
        view = Shares(index.held, self.state.usage, index.total, index.tenants)
        own = self.state.reservations.get(job.id)
        found = refusal(tenant, asked, index.fleet.free, view)
        if not found and own is not None:
            found = f"{len(own.nodes)} node(s) are kept for it; it {_waits(own)}"
        return "; ".join(filter(None, (found or self._room(demand_of(self.state, job)), job.reason)))

    def replica(self, replica: Replica) -> str:
        """Of a replica that has no room yet; of any other what is known of it."""
        demand = demand_of_replica(self.state, replica)
        if replica.status is not ReplicaStatus.PENDING or demand is None:
            return replica.reason
        return "; ".join(filter(None, (self._room(demand), replica.reason)))

    def _room(self, demand: Demand) -> str:
        if demand not in self.of_floor:
            if len(self.of_floor) == DEMANDS_MOST:
                return "it has no room: `tokenmill why` says where"
            self.of_floor[demand] = _of_floor(self.state, demand)
        return self.of_floor[demand]


def demand_of(state: State, job: Job) -> Demand:
    """What a job asks of the floor."""
    tenant = state.index.tenants.get(job.spec.tenant)
    return Demand(job.spec.resources, job.spec.workers, tenant.jurisdictions if tenant else ())


def demand_of_replica(state: State, replica: Replica) -> Demand | None:
    """What a replica asks of the floor; None where its deployment is not known any more."""
    if replica.spec is None:
        return None
    release = state.releases.get(replica.release)
    line = state.index.lines.get(release.line) if release and release.line else None
    tenant = state.index.tenants.get(line.tenant) if line else None
    return Demand(replica.spec.resources, 1, tenant.jurisdictions if tenant else ())


def _of_floor(state: State, demand: Demand) -> str:
    found = candidates(state, demand)
    if not found:
        return "no node is alive"
    if not any(accepted for _, accepted, _ in found):
        name, _, lacks = min(found, key=lambda one: (one[2].count(";"), one[0]))
        return f"no node has room for a worker: {name} {lacks}"
    draft = Draft(state)
    if place(draft.fleet, demand) is None:
        return shape(state, demand)[0] if demand.workers > 1 else "no node that may be taken has room"
    kept_for = ", ".join(sorted(state.reservations)[:HOLDERS_MOST])
    return power_reason(draft, "", demand) or (
        f"what is free is kept for {kept_for}" if kept_for else "others are before it"
    )
