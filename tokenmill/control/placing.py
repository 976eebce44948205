"""Where something that waits may start now: beside what is kept for others and within the caps of power."""

from __future__ import annotations

from collections.abc import Iterable

from tokenmill.control.draft import Draft
from tokenmill.control.reservations import open_fleet
from tokenmill.domain.factory import Node
from tokenmill.policy.memo import Memo
from tokenmill.policy.place import Demand, Placement, place
from tokenmill.policy.power import caps_of, exceeded, place_names, steeper, work_mw

TRIES_MOST = 8
"""Racks that are left out one after the other because their power does not suffice."""


def find(
    draft: Draft, owner: str, until_us: int, demand: Demand, memo: Memo | None = None
) -> Placement | None:
    """A placement that may begin now, or ``None``. Ends by ``until_us``, by what it says."""
    fleet = open_fleet(draft, owner, until_us)
    caps, ramps = caps_of(draft.factory), draft.index.ramps
    if not caps and not ramps:
        return place(fleet, demand, memo, draft.kinds())
    drawn = drawn_mw(draft, (*caps, *ramps))
    for _ in range(TRIES_MOST):
        placement = place(fleet, demand, memo, draft.kinds())
        if placement is None:
            return None
        nodes = [draft.nodes[name].node for name in placement.nodes]
        more = [(node, _of_worker(node, demand)) for node in nodes]
        where = exceeded(caps, drawn, more)[0] or steeper(ramps, drawn, _least(draft), more)[0]
        if not where.startswith("rack "):
            return placement if not where else None
        fleet = fleet.without([node.node for node in draft.rooms.values() if f"rack {node.rack}" == where])
    return None


def power_reason(draft: Draft, owner: str, demand: Demand) -> str:
    """Which cap or ramp keeps something waiting that would fit otherwise; empty when none does."""
    caps, ramps = caps_of(draft.factory), draft.index.ramps
    placement = place(draft.fleet, demand) if caps or ramps else None
    if placement is None:
        return ""
    nodes = [draft.nodes[name].node for name in placement.nodes]
    more = [(node, _of_worker(node, demand)) for node in nodes]
    drawn = drawn_mw(draft, (*caps, *ramps))
    return exceeded(caps, drawn, more)[1] or steeper(ramps, drawn, _least(draft), more)[1]


def is_too_steep(draft: Draft, placement: Placement, demand: Demand) -> bool:
    """Whether a ramp forbids it even when nothing else rises, so that it can never start there."""
    ramps = draft.index.ramps
    nodes = [draft.nodes[name].node for name in placement.nodes] if ramps else []
    return bool(steeper(ramps, {}, {}, [(node, _of_worker(node, demand)) for node in nodes])[0])


def _least(draft: Draft) -> dict[str, int]:
    """The least that each place with a ramp drew within its window."""
    return {place_name: history[0][1] for place_name, history in draft.draws.items()}


def _of_worker(node: Node, demand: Demand) -> int:
    return work_mw(node, demand.resources.cpu_millis, demand.resources.accelerators)


def drawn_mw(draft: Draft, places: Iterable[str]) -> dict[str, int]:
    """What each of these places may draw now: nodes that are there, and all that is held."""
    by_rack: dict[tuple[str, str], int] = {}
    for state in draft.nodes.values():
        if not state.lost:
            at = (state.node.site, state.node.rack)
            by_rack[at] = by_rack.get(at, 0) + state.node.idle_mw
    for lease in draft.leases.values():
        node = draft.nodes[lease.node].node
        at = (node.site, node.rack)
        by_rack[at] = by_rack.get(at, 0) + work_mw(node, lease.cpu_millis, len(lease.accelerators))
    drawn = dict.fromkeys(sorted(places), 0)
    for at, draw_mw in by_rack.items():
        for place_name in place_names(*at):
            if place_name in drawn:
                drawn[place_name] += draw_mw
    return drawn
