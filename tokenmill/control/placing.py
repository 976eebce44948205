"""Where something that waits may start now: beside what is kept for others and within the caps of power."""

from __future__ import annotations

from tokenmill.control.draft import Draft
from tokenmill.control.reservations import open_fleet
from tokenmill.domain.factory import Node
from tokenmill.policy.place import Demand, Memo, Placement, place
from tokenmill.policy.power import Cap, caps_of, exceeded, places_of, work_mw

TRIES_MOST = 8
"""Racks that are left out one after the other because their power does not suffice."""


def find(
    draft: Draft, owner: str, until_us: int, demand: Demand, memo: Memo | None = None
) -> Placement | None:
    """A placement that may begin now, or ``None``. Ends by ``until_us``, by what it says."""
    fleet = open_fleet(draft, owner, until_us)
    caps = caps_of(draft.factory)
    if not caps:
        return place(fleet, demand, memo)
    drawn = drawn_mw(draft, caps)
    for _ in range(TRIES_MOST):
        placement = place(fleet, demand, memo)
        if placement is None:
            return None
        nodes = [draft.nodes[name].node for name in placement.nodes]
        where, _ = exceeded(caps, drawn, [(node, _of_worker(node, demand)) for node in nodes])
        if not where.startswith("rack "):
            return placement if not where else None
        fleet = fleet.without([node.node for node in draft.rooms.values() if f"rack {node.rack}" == where])
    return None


def power_reason(draft: Draft, owner: str, demand: Demand) -> str:
    """Which cap keeps something waiting that would fit otherwise; empty when none does."""
    caps = caps_of(draft.factory)
    placement = place(draft.fleet, demand) if caps else None
    if placement is None:
        return ""
    nodes = [draft.nodes[name].node for name in placement.nodes]
    more = [(node, _of_worker(node, demand)) for node in nodes]
    return exceeded(caps, drawn_mw(draft, caps), more)[1]


def _of_worker(node: Node, demand: Demand) -> int:
    return work_mw(node, demand.resources.cpu_millis, demand.resources.accelerators)


def drawn_mw(draft: Draft, caps: dict[str, Cap]) -> dict[str, int]:
    """What each capped place may draw now: nodes that are there, and all that is held."""
    drawn = dict.fromkeys(sorted(caps), 0)
    for state in draft.nodes.values():
        if not state.lost:
            for place_name in places_of(state.node):
                if place_name in drawn:
                    drawn[place_name] += state.node.idle_mw
    for lease in draft.leases.values():
        node = draft.nodes[lease.node].node
        for place_name in places_of(node):
            if place_name in drawn:
                drawn[place_name] += work_mw(node, lease.cpu_millis, len(lease.accelerators))
    return drawn
