"""When and where could a gang start if it waits for work to end by itself? For the job that waited longest.

The nodes found are kept for it; others may use them only if they say that they end before (EASY backfill;
Lifka, JSSPP 1995). Stated run times are upper bounds: a job that ends earlier lets the gang start earlier.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.domain.value import value
from tokenmill.policy.fleet import Fleet, Room
from tokenmill.policy.place import Demand, Placement, place
from tokenmill.policy.preempt import Held, with_back


@value
class Ending:
    """Something that says when it ends, and what is given back then."""

    at_us: int
    id: str
    held: tuple[Held, ...]


def foresee(fleet: Fleet, demand: Demand, endings: Sequence[Ending]) -> tuple[int, Placement] | None:
    """The earliest stated end after which the gang fits, and where; ``None`` if it never does."""
    ordered = sorted(endings, key=lambda e: (e.at_us, e.id))
    if place(_after(fleet, ordered), demand) is None:
        return None
    low, high = 0, len(ordered)  # fits after the first ``high`` endings; not yet after ``low`` of them
    while high - low > 1:
        middle = (low + high) // 2
        if place(_after(fleet, ordered[:middle]), demand) is None:
            low = middle
        else:
            high = middle
    placement = place(_after(fleet, ordered[:high]), demand)
    return None if placement is None or not high else (ordered[high - 1].at_us, placement)


def _after(fleet: Fleet, endings: Sequence[Ending]) -> Fleet:
    rooms: dict[str, Room] = {}
    for ending in endings:
        for held in ending.held:
            name = fleet.block_of.get(held.node)
            if name is None:
                continue
            room = rooms.get(held.node)
            if room is None:
                room = next((r for r in fleet.blocks[name].rooms if r.node == held.node), None)
            if room is not None:
                rooms[held.node] = with_back(room, held)
    return fleet.with_rooms(rooms)
