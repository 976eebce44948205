"""Leases: who holds which resources. Replicas and jobs hold them while a process may be alive; tenants for a
time.

A lease ends when the floor reports that the process is gone, never when it was only asked to go, and is
charged then, once. Tenants' leases (GPU as a service) come from the same pool and are refused at once when
there is no room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from tokenmill.control.draft import Draft
from tokenmill.control.job_bounds import LONGEST_US
from tokenmill.control.keys import check_tenant
from tokenmill.control.placing import find
from tokenmill.control.state import State
from tokenmill.domain.effects import ChargeWork
from tokenmill.domain.errors import ConflictError, NotFoundError, RefusedError
from tokenmill.domain.events import LeaseReleased, LeaseRequested
from tokenmill.domain.factory import Resources, Tenant
from tokenmill.domain.work import Lease, NodeState, WorkUsage
from tokenmill.policy.lacks import explain
from tokenmill.policy.place import Demand, Placement


def grant_all(
    draft: Draft, owner: str, demand: Demand, placement: Placement, who: tuple[str, str], now_us: int
) -> None:
    """Hold one lease per worker of a placement, for ``who`` = (tenant, project), until the owner is gone."""
    need = demand.resources
    cpu_millis, memory_bytes, (tenant, project) = need.cpu_millis, need.memory_bytes, who
    leases = [
        Lease(draft.new_id("l"), node, owner, tenant, project, cpu_millis, memory_bytes, accelerators, now_us)
        for node, accelerators in zip(placement.nodes, placement.accelerators, strict=True)
    ]
    draft.grant(leases, now_us)


def end_all(draft: Draft, owner: str, kind: str, model: str, usage: WorkUsage, now_us: int) -> None:
    """The owner's processes are gone: give its leases back and charge what they used, once.

    The charge of a gang carries the id of its first lease, since the floor measures a gang as a whole.
    """
    ended = draft.release(owner, now_us)
    if ended:
        first = ended[0]
        held = types_held(ended, draft.nodes)
        draft.effects.append(ChargeWork(first.id, first.tenant, first.project, kind, model, usage, held))


def types_held(leases: Iterable[Lease], nodes: Mapping[str, NodeState]) -> tuple[tuple[str, int], ...]:
    """How many accelerators of which type, by name; one that its node has no longer is of the type ``""``."""
    held: Counter[str] = Counter()
    for lease in leases:
        if lease.accelerators:
            known = nodes.get(lease.node)
            kinds = {one.id: one.kind for one in known.node.accelerators} if known is not None else {}
            held.update(kinds.get(name, "") for name in lease.accelerators)
    return tuple(sorted(held.items()))


def demand_of(event: LeaseRequested, tenants: Mapping[str, Tenant]) -> Demand:
    """What a tenant's lease asks of the floor."""
    tenant = tenants.get(event.tenant)
    return Demand(
        Resources(event.cpu_millis, event.memory_bytes, event.accelerators),
        1,
        tenant.jurisdictions if tenant else (),
    )


def check_requested(state: State, event: LeaseRequested) -> None:
    """Raise unless there is room for it now."""
    check_tenant(state, event.tenant, event.project)
    if event.lease in state.leases:
        raise ConflictError(f"lease {event.lease} exists already", fix="Ask for a lease with another id.")
    amounts = (event.cpu_millis, event.memory_bytes, event.accelerators)
    if not 0 < event.duration_us <= LONGEST_US or min(amounts) < 0 or not any(amounts):
        raise RefusedError(
            "a lease needs a duration of up to 366 days and some resources",
            fix="Ask for a time above zero and at least one core.",
        )
    demand = demand_of(event, state.index.tenants)
    if find(Draft(state), event.lease, event.at_us + event.duration_us, demand) is None:
        nodes = explain(state.index.rooms.values(), demand)
        raise RefusedError(
            "no node has room for this lease",
            tuple(f"{node}: {reason}" for node, _, reason in nodes) or ("no node is alive",),
            fix="Ask for less, or wait until something ends.",
        )


def check_released(state: State, event: LeaseReleased) -> None:
    """Raise unless it is a live lease of a tenant; those of jobs and replicas end with their process."""
    lease = state.leases.get(event.lease)
    if lease is None:
        raise NotFoundError(f"there is no lease {event.lease!r}", fix="See `tokenmill status`.")
    if lease.owner != lease.id:
        raise RefusedError(
            f"lease {lease.id} belongs to {lease.owner}",
            ("it ends with its process",),
            fix="Cancel its owner.",
        )


def requested(draft: Draft, event: LeaseRequested) -> None:
    """Grant a tenant's lease; ``check_requested`` found room in this very state."""
    demand = demand_of(event, draft.index.tenants)
    placement = find(draft, event.lease, event.at_us + event.duration_us, demand)
    if placement is None:
        return
    draft.grant(
        (
            Lease(
                id=event.lease,
                node=placement.nodes[0],
                owner=event.lease,
                tenant=event.tenant,
                project=event.project,
                cpu_millis=event.cpu_millis,
                memory_bytes=event.memory_bytes,
                accelerators=placement.accelerators[0],
                since_us=event.at_us,
                until_us=event.at_us + event.duration_us,
            ),
        ),
        event.at_us,
    )


def released(draft: Draft, event: LeaseReleased) -> None:
    """A tenant gives its lease back early."""
    expire(draft, event.lease, event.at_us)


def expire(draft: Draft, lease_id: str, now_us: int) -> None:
    """A tenant's lease ends now: it is charged for the time that it held its resources, used or not."""
    lease = draft.leases[lease_id]
    wall_us = max(0, min(now_us, lease.until_us) - lease.since_us)
    usage = WorkUsage(
        wall_us=wall_us,
        cpu_us=wall_us * lease.cpu_millis // 1000,
        accelerator_us=wall_us * len(lease.accelerators),
    )
    end_all(draft, lease_id, "lease", "*", usage, now_us)
