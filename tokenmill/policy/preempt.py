"""Who has to go so that a gang can start? The cheapest set that really frees a place for it, or nobody.

Topology and preemption are solved together: for each block the cheapest victims are found that free a slice
of the gang there, the cheapest blocks are taken, whoever turns out not to be needed is spared, and the result
is placed. What cannot be placed evicts nobody. The cost of a victim is accelerator time that is lost: work
since its last checkpoint, and its start anew; for a replica the caches and the load of its weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tokenmill.domain.factory import Accelerator
from tokenmill.domain.value import value
from tokenmill.policy.fleet import Block, Fleet, Room, with_free
from tokenmill.policy.memo import Memo
from tokenmill.policy.place import Capacity, Demand, Placement, capacity_of, counted_of, even, holds, place

RESTART_US = 60_000_000
"""Assumed time that a job loses by its restart, besides what it did since its checkpoint."""

RELOAD_US = 120_000_000
"""Assumed time that a replica's weights take to load, and its caches to be warm again."""


@value
class Held:
    """What a victim holds of one node."""

    node: str
    cpu_millis: int
    memory_bytes: int
    accelerators: tuple[Accelerator, ...]


@value
class Victim:
    """Something that may be told to go. ``cost_us`` is accelerator-microseconds lost."""

    id: str
    cost_us: int
    held: tuple[Held, ...]


@value
class Eviction:
    """Who goes, and where the gang starts once they are gone."""

    victims: tuple[Victim, ...]
    placement: Placement


def job_cost_us(accelerators: int, started_us: int, saved_us: int, now_us: int) -> int:
    """What evicting a job loses: its work since the last checkpoint (else its start) and a restart."""
    done_us = max(0, now_us - max(started_us, saved_us))
    return (done_us + RESTART_US) * max(1, accelerators)


def replica_cost_us(accelerators: int) -> int:
    """What evicting a replica loses: its caches and the load of its weights."""
    return RELOAD_US * max(1, accelerators)


def evict(fleet: Fleet, demand: Demand, victims: Iterable[Victim]) -> Eviction | None:
    """The cheapest victims whose leaving lets the whole gang be placed, or ``None``: then nobody goes."""
    ordered = sorted(victims, key=lambda v: (v.cost_us, v.id))
    everything = _without(fleet, ordered)
    if place(everything, demand) is None:
        return None
    chosen = _choose(fleet, everything, demand, ordered)
    if place(_without(fleet, chosen), demand) is None:
        chosen = ordered
    kept = _spare(fleet, demand, chosen)
    placement = place(_without(fleet, kept), demand)
    return None if placement is None or not kept else Eviction(tuple(kept), placement)


def _without(fleet: Fleet, victims: Sequence[Victim]) -> Fleet:
    """The fleet when these have gone."""
    rooms: dict[str, Room] = {}
    for victim in victims:
        for held in victim.held:
            block = fleet.block_of.get(held.node)
            if block is None:
                continue  # its node is lost: nothing is gained there
            room = rooms.get(held.node) or _room_in(fleet.blocks[block], held.node)
            if room is not None:
                rooms[held.node] = with_back(room, held)
    return fleet.with_rooms(rooms)


def _room_in(block: Block, node: str) -> Room | None:
    return next((room for room in block.rooms if room.node == node), None)


def with_back(room: Room, held: Held) -> Room:
    """A node's room with what a victim held given back."""
    return with_free(
        room,
        room.cpu_millis + held.cpu_millis,
        room.memory_bytes + held.memory_bytes,
        tuple(sorted((*room.accelerators, *held.accelerators), key=lambda a: (len(a.id), a.id))),
        max(0, room.leases - 1),
    )


def _choose(fleet: Fleet, everything: Fleet, demand: Demand, victims: Sequence[Victim]) -> list[Victim]:
    """Victims block by block: as many blocks as an even gang needs, the cheapest that can be freed."""
    could = [entry[-1] for entry in counted_of(everything, demand, Memo())]
    single = [c for c in could if c.workers >= demand.workers]
    if single or not demand.resources.accelerators:
        size, count = demand.workers, 1
        options = single or could
    else:
        slices = even(could, demand.workers)
        if slices is None:
            return list(victims)
        size, count = max(workers for _, workers in slices), len(slices)
        options = [c for c in could if c.workers >= size]
    at_node = _by_node(victims)
    priced: list[tuple[int, str, list[Victim]]] = []
    for c in options:
        found = _free_slice(fleet.blocks[c.block.id], c, size, demand, at_node)
        priced.append((sum(v.cost_us for v in found), c.block.id, found))
    priced.sort(key=lambda option: option[:2])
    chosen: dict[str, Victim] = {}
    for _, _, found in priced[:count]:
        chosen.update((v.id, v) for v in found)
    return [chosen[name] for name in sorted(chosen)]


def _by_node(victims: Sequence[Victim]) -> dict[str, list[tuple[Victim, Held]]]:
    at_node: dict[str, list[tuple[Victim, Held]]] = {}
    for victim in victims:
        for held in victim.held:
            at_node.setdefault(held.node, []).append((victim, held))
    return at_node


def _free_slice(
    block: Block,
    could: Capacity,
    size: int,
    demand: Demand,
    at_node: Mapping[str, list[tuple[Victim, Held]]],
) -> list[Victim]:
    """The cheapest victims that let ``block`` take ``size`` workers: node by node, by cost per worker won.

    A victim that is chosen for one node costs nothing on its others.
    """
    chosen: dict[str, Victim] = {}
    rooms = {room.node: room for room in block.rooms}
    while True:
        now = Block(
            block.id,
            tuple(rooms[room.node] for room in block.rooms),
            block.is_domain,
            block.most_nodes,
            0,
            sum(1 for room in rooms.values() if room.leases),
            (),
        )
        if capacity_of(now, demand).workers >= min(size, could.workers):
            break
        best = _cheapest_node(rooms, chosen, demand, at_node)
        if best is None:
            break
        for victim in best[2]:
            chosen[victim.id] = victim
            for held in victim.held:
                if held.node in rooms:
                    rooms[held.node] = with_back(rooms[held.node], held)
    return list(chosen.values())


def _cheapest_node(
    rooms: Mapping[str, Room],
    chosen: Mapping[str, Victim],
    demand: Demand,
    at_node: Mapping[str, list[tuple[Victim, Held]]],
) -> tuple[int, str, list[Victim]] | None:
    """The node where a worker more costs least, and who has to go for it: (cost, node, who)."""
    need, laws = demand.resources, demand.jurisdictions
    best: tuple[int, str, list[Victim]] | None = None
    for name, room in sorted(rooms.items()):
        before = holds(room, need, laws)
        cost, leaving, after = 0, [], room
        for victim, held in at_node.get(name, ()):
            if victim.id in chosen:
                continue
            after = with_back(after, held)
            leaving.append(victim)
            cost += victim.cost_us
            gain = holds(after, need, laws) - before
            if gain > 0 and (best is None or (cost // gain, name) < best[:2]):
                best = (cost // gain, name, list(leaving))
    return best


def _spare(fleet: Fleet, demand: Demand, chosen: Sequence[Victim]) -> list[Victim]:
    """Let go of every victim, the dearest first, without whom the gang can be placed all the same."""
    kept = sorted(chosen, key=lambda v: (v.cost_us, v.id))
    for victim in sorted(chosen, key=lambda v: (-v.cost_us, v.id)):
        fewer = [v for v in kept if v.id != victim.id]
        if place(_without(fleet, fewer), demand) is not None:
            kept = fewer
    return kept
