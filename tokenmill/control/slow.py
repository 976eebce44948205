"""Slow nodes: counted from the step times of gangs, taken out where the work can spare them, and tested.

A node that is taken out is emptied as one that a person cordons. When nothing is left on it, the site's
acceptance test begins; without one, or when the node was out for slowness within a day, a person decides.
"""

from __future__ import annotations

from tokenmill.control import jobs, replicas
from tokenmill.control.draft import Draft
from tokenmill.control.nodes import acceptance, begin_test, move_away
from tokenmill.control.state import State
from tokenmill.domain.events import StepsTimed
from tokenmill.domain.value import replace
from tokenmill.domain.work import JobStatus, NodeState
from tokenmill.policy.fleet import Fleet, Room
from tokenmill.policy.place import Demand, place
from tokenmill.policy.slow import AGAIN_US, STRIKES, comparable, out_most, slowest


def quiet(state: State, event: StepsTimed) -> bool:
    """Whether a report changes nothing: all keep up, and none of the nodes was counted before."""
    job = state.jobs.get(event.job)
    if job is None or job.attempt != event.attempt or job.status is not JobStatus.RUNNING:
        return True
    return not event.slow and not any(state.nodes[name].strikes for name in job.nodes)


def timed(draft: Draft, event: StepsTimed) -> None:
    """Count for or against each node of a gang, and take out whoever was slow often enough."""
    job = draft.jobs[event.job]
    names = sorted(dict.fromkeys(job.nodes))
    if not comparable([draft.nodes[name].node for name in names], job.spec.resources.accelerators):
        return
    found = slowest(job.nodes, event.median_us, event.slow)
    for name in names:
        known = draft.nodes[name]
        if known.cordon or known.lost:
            continue
        if name not in found:
            _note(draft, known, 0, "")
            continue
        strikes = min(known.strikes + 1, STRIKES)
        text = (
            known.slow or f"its workers of {job.id} take {found[name] / 1000:.2f} times as long as the others"
        )
        _note(draft, known, strikes, text if strikes == STRIKES else "")
        if strikes == STRIKES:
            _take_out(draft, name, event.at_us)


def _note(draft: Draft, known: NodeState, strikes: int, text: str) -> None:
    if (known.strikes, known.slow) != (strikes, text):
        draft.changed = True
        draft.nodes = draft.nodes.set(known.node.id, replace(known, strikes=strikes, slow=text))


def _take_out(draft: Draft, name: str, now_us: int) -> None:
    if spare_reason(draft, name):
        return
    known = draft.nodes[name]
    reason = f"it is slow: {known.slow}"
    again = bool(known.slow_us) and now_us - known.slow_us < AGAIN_US
    if again:
        reason += "; for the second time within a day, so a person has to look at it"
    testable = bool(acceptance(draft, known.node.site)) and not again
    draft.nodes = draft.nodes.set(
        name, replace(known, cordon=reason, slow_us=now_us, test_due=testable, strikes=0, slow="")
    )
    draft.reindex()
    move_away(draft, name, now_us, "preempted", f"node {name} was cordoned: {reason}")


def spare_reason(draft: Draft, name: str) -> str:
    """Why the work cannot do without this node; empty when it can.

    All that holds something of it has to fit elsewhere at once, beside everything else that runs.
    """
    out = sum(1 for known in draft.nodes.values() if known.slow_us and known.cordon)
    most = out_most(len(draft.nodes))
    if out >= most:
        return f"{out} of {len(draft.nodes)} nodes are out for slowness already, {most} may be"
    owners = sorted({lease.owner for lease in draft.leases.values() if lease.node == name})
    leaving = dict.fromkeys(owners)
    fleet = draft.fleet_if(lambda lease: lease.owner not in leaving).without([name])
    fleet = fleet.without(node for kept in draft.reservations.values() for node in kept.nodes)
    for owner in owners:
        demand = _demand(draft, owner)
        placement = place(fleet, demand) if demand is not None else None
        if demand is None or placement is None:
            return f"{owner} would have no room elsewhere"
        fleet = _with(fleet, demand, placement.nodes, placement.accelerators)
    return ""


def _demand(draft: Draft, owner: str) -> Demand | None:
    job, replica = draft.jobs.get(owner), draft.replicas.get(owner)
    if job is not None:
        return jobs.demand_of(draft, job.spec)
    if replica is not None and replica.spec is not None and replica.release in draft.releases:
        return replicas.demand_of(draft, replica.spec, draft.releases[replica.release])
    return None  # a tenant's own lease ends with its time, and cannot be moved


def _with(
    fleet: Fleet, demand: Demand, nodes: tuple[str, ...], accelerators: tuple[tuple[str, ...], ...]
) -> Fleet:
    """The fleet with a gang placed on it."""
    rooms: dict[str, Room] = {}
    for node, cards in zip(nodes, accelerators, strict=True):
        block = fleet.blocks[fleet.block_of[node]]
        room = rooms.get(node) or next(room for room in block.rooms if room.node == node)
        rooms[node] = replace(
            room,
            cpu_millis=room.cpu_millis - demand.resources.cpu_millis,
            memory_bytes=room.memory_bytes - demand.resources.memory_bytes,
            accelerators=tuple([card for card in room.accelerators if card.id not in cards]),
            leases=room.leases + 1,
        )
    return fleet.with_rooms(rooms)


def emptied(draft: Draft, names: tuple[str, ...], now_us: int) -> None:
    """Work ended on these nodes: one that was slow and holds nothing any more begins its test."""
    for name in sorted(dict.fromkeys(names)):
        known = draft.nodes.get(name)
        if known is None or not known.test_due or known.lost:
            continue
        if any(lease.node == name for lease in draft.leases.values()):
            continue
        command = acceptance(draft, known.node.site)
        if command:
            begin_test(draft, name, command, now_us, f"{known.cordon}; it has to pass its acceptance test")
