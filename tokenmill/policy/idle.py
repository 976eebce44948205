"""Could it ever start? What a floor with nothing on it holds of a gang."""

from __future__ import annotations

from collections.abc import Iterable

from tokenmill.policy.fleet import Block, Fleet
from tokenmill.policy.memo import Memo
from tokenmill.policy.place import Demand, capacity_of, counted_of, holds, place


def could_hold(shapes: Iterable[Block], demand: Demand) -> bool:
    """Whether one idle block of any of these kinds would hold the whole gang: a quick yes."""
    need, laws, workers = demand.resources, demand.jurisdictions, demand.workers
    for block in shapes:
        if holds(block.rooms[0], need, laws) >= workers or capacity_of(block, demand).workers >= workers:
            return True
    return False


def largest_gang(fleet: Fleet, demand: Demand) -> int:
    """The largest such gang, up to what is asked, that the fleet holds; it looks 128 sizes down."""
    memo = Memo()
    total = sum(entry[-1].workers for entry in counted_of(fleet, demand, memo))
    most = min(total, demand.workers)
    for workers in range(most, max(0, most - 128), -1):
        asked = Demand(demand.resources, workers, demand.jurisdictions)
        if place(fleet, asked, memo) is not None:
            return workers
    return 0
