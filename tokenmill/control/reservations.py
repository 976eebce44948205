"""Nodes kept for who waits: until work there ends by itself (backfill), or until victims have gone (preempt).

A reservation is part of the state, so it survives a crash as everything does. It ends when its owner
starts, is wanted no more, or one of its nodes is lost; its nodes then count as freed.
"""

from __future__ import annotations

from tokenmill.control.draft import Draft
from tokenmill.domain.work import Job, JobSpec, JobStatus, Lease, ReplicaStatus, Reservation
from tokenmill.policy.backfill import Ending
from tokenmill.policy.fleet import Fleet
from tokenmill.policy.preempt import Held

FAR_US = 1 << 60
"""When something ends that states no end."""

RESERVATIONS_MOST = 16


def end_us(spec: JobSpec, start_us: int) -> int:
    """When a job that starts then will have ended, by what it states."""
    longest_us = spec.runtime_us or spec.timeout_us
    return start_us + longest_us if longest_us else FAR_US


def open_fleet(draft: Draft, owner: str, until_us: int) -> Fleet:
    """The fleet without nodes kept for others. Who ends by ``until_us`` may use those of a backfill."""
    if not draft.reservations:
        return draft.fleet
    kept: list[str] = []
    for name, reservation in sorted(draft.reservations.items()):
        in_time = reservation.kind == "backfill" and until_us <= reservation.at_us < FAR_US
        if name != owner and not in_time:
            kept += reservation.nodes
    return draft.fleet.without(kept) if kept else draft.fleet


def reserve(draft: Draft, reservation: Reservation) -> None:
    """Keep nodes from now on."""
    draft.changed = True
    draft.reservations = draft.reservations.set(reservation.owner, reservation)


def drop(draft: Draft, owner: str) -> None:
    """Keep nothing for ``owner`` any more; others may go there."""
    reservation = draft.reservations.get(owner)
    if reservation is None:
        return
    draft.changed = True
    draft.reservations = draft.reservations.delete(owner)
    draft.freed = True
    if draft.freed_nodes is not None:
        draft.freed_nodes.update(reservation.nodes)


def drop_stale(draft: Draft) -> None:
    """End reservations whose owner waits no more, or whose nodes are not all there."""
    for owner, reservation in sorted(draft.reservations.items()):
        job, replica = draft.jobs.get(owner), draft.replicas.get(owner)
        waits = (job is not None and job.status is JobStatus.PENDING and job.retry_us == 0) or (
            replica is not None and replica.status is ReplicaStatus.PENDING
        )
        if not waits or any(node not in draft.rooms for node in reservation.nodes):
            drop(draft, owner)


def held_of(draft: Draft, owner: str) -> tuple[Held, ...]:
    """What an owner holds on live nodes."""
    leases = [draft.leases[name] for name in draft.leases_of.get(owner, ())]
    return tuple(_held(draft, lease) for lease in leases if lease.node in draft.rooms)


def _held(draft: Draft, lease: Lease) -> Held:
    cards = draft.nodes[lease.node].node.accelerators
    mine = tuple([card for card in cards if card.id in lease.accelerators]) if lease.accelerators else ()
    return Held(lease.node, lease.cpu_millis, lease.memory_bytes, mine)


def endings(draft: Draft) -> list[Ending]:
    """When each job and tenant's lease says that it ends. Replicas state no end and are left out."""
    found: list[Ending] = []
    for owner in sorted(draft.leases_of):
        job: Job | None = draft.jobs.get(owner)
        if job is not None:
            at_us = end_us(job.spec, job.started_us)
        elif owner in draft.leases:
            at_us = draft.leases[owner].until_us
        else:
            continue
        found.append(Ending(at_us, owner, held_of(draft, owner)))
    return found
