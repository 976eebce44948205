"""A pass that remembers what it counted decides as one that counts everything each time."""

from __future__ import annotations

import random

import pytest

from tokenmill.domain.factory import Accelerator, Resources
from tokenmill.domain.value import replace
from tokenmill.policy.fleet import Fleet, Room, fleet_of
from tokenmill.policy.memo import FEW, Memo
from tokenmill.policy.place import Demand, Placement, place

KINDS = (((1, 8_000, 1), 9), ((4, 32_000, 1), 2))


def floor(racks: int) -> dict[str, Room]:
    found = {}
    for rack in range(racks):
        for tray in range(4):
            name = f"r{rack:02d}/t{tray}"
            cards = tuple(Accelerator(f"{name}/{i}", "gpu", 1) for i in range(4 if rack % 5 else 0))
            domain = f"r{rack:02d}" if rack % 3 else ""
            room = Room(name, "s", f"r{rack:02d}", domain, "EU", 64_000, 1 << 40, cards)
            found[name] = replace(room, leaf=f"l{rack // 4}", size=(len(cards), 64_000 + rack % 2, 1 << 40))
    return found


def after(fleet: Fleet, rooms: dict[str, Room], placement: Placement, need: Resources) -> Fleet:
    changed = {}
    for node, gone in zip(placement.nodes, placement.accelerators, strict=True):
        room = rooms[node]
        left = tuple(card for card in room.accelerators if card.id not in gone)
        cpu_millis = room.cpu_millis - need.cpu_millis
        rooms[node] = changed[node] = replace(
            room, cpu_millis=cpu_millis, accelerators=left, leases=room.leases + 1
        )
    return fleet.with_rooms(changed)


@pytest.mark.parametrize("seed", range(6))
def test_a_memo_changes_no_placement(seed: int) -> None:
    """Also when it was told nothing of a change, and when part of the fleet is kept for others."""
    draw = random.Random(seed)
    rooms = floor(24)
    fleet = fleet_of(rooms.values())
    memo = Memo(fleet)
    placed = missed = wide = 0
    for _ in range(150):
        count = draw.choice((0, 1, 2, 4))
        demand = Demand(Resources(8_000, 1, count), draw.choice((1, 1, 1, 2, 4, 8, 8 * FEW)))
        seen = fleet.without(draw.sample(sorted(rooms), 3)) if draw.random() < 0.2 else fleet
        found = place(seen, demand, memo, KINDS)
        assert found == place(seen, demand, None, KINDS)
        if found is None:
            missed += 1
            continue
        placed += 1
        before, fleet = fleet, after(fleet, rooms, found, demand.resources)
        wide += len({node[:3] for node in found.nodes}) > 4
        if draw.random() < 0.8:
            memo.follow(before, fleet, found.nodes)
    assert placed > 30, "the floor took work"
    assert missed > 10, "and was full"
    assert wide, "some gang went over many blocks"
