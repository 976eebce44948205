"""What an event changed: the records that a check after it has to look at.

Records are never changed in place, so one that is the same object is as it was. What is found is what the
maps of the state show, not what the core says of itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from immutables import Map

from tokenmill.control.state import State
from tokenmill.domain.work import Job, Lease, Replica

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Touched:
    """Records that are new or changed, leases that came and went, and nodes that changed or hold others."""

    jobs: list[Job]
    replicas: list[Replica]
    came: list[Lease]
    went: list[Lease]
    nodes: set[str]


def touched(before: State, after: State) -> Touched:
    """What one step changed. From an empty state: all that there is."""
    came, went = changed(before.leases, after.leases), gone(before.leases, after.leases)
    jobs, replicas = changed(before.jobs, after.jobs), changed(before.replicas, after.replicas)
    owners = {lease.owner for lease in (*came, *went)}
    old, new = before.index.leases_of, after.index.leases_of
    if old is not new:
        owners |= {owner for owner in (*old, *new) if old.get(owner) != new.get(owner)}
    nodes = {lease.node for lease in (*came, *went)}
    nodes |= {known.node.id for known in changed(before.nodes, after.nodes)}
    known = {job.id for job in jobs} | {replica.id for replica in replicas}
    for owner in owners - known:
        if owner in after.jobs:
            jobs.append(after.jobs[owner])
        elif owner in after.replicas:
            replicas.append(after.replicas[owner])
    return Touched(jobs, replicas, came, went, nodes)


def changed(before: Map[str, T], after: Map[str, T]) -> list[T]:
    """Values that are not what they were."""
    if before is after:
        return []
    get = before.get
    return [now for name, now in after.items() if get(name) is not now]


def gone(before: Map[str, T], after: Map[str, T]) -> list[T]:
    """Values whose names are not there any more."""
    if before is after:
        return []
    return [was for name, was in before.items() if name not in after]
