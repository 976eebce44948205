"""What is free, node by node and block by block, as values that cost only what changed.

A block is what a gang is best kept inside: an NVLink domain of several nodes, else a rack, else one node.
Blocks carry the few sums that a search needs, so that it looks at nodes only where they matter. A domain
may be asked to keep spares: at most ``most_nodes`` of its nodes take work (16 of 18 trays). It decides
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from immutables import Map

from tokenmill.domain.factory import Accelerator
from tokenmill.domain.value import value

Size = tuple[int, int, int]
"""Accelerators, thousandths of a core and bytes of memory that a node has with nothing held."""


@value
class Room:
    """What is free on one live node. ``leases`` counts what it holds: with none it is whole."""

    node: str
    site: str
    rack: str
    domain: str
    jurisdiction: str
    cpu_millis: int
    memory_bytes: int
    accelerators: tuple[Accelerator, ...]  # free ones, in the node's order
    leases: int = 0
    leaf: str = ""
    rail: str = ""
    row: str = ""
    size: Size = (0, 0, 0)


def with_free(
    room: Room, cpu_millis: int, memory_bytes: int, accelerators: tuple[Accelerator, ...], leases: int
) -> Room:
    """The same node with this much free. Made anew, field by field: that takes half of what a copy takes."""
    return Room(
        room.node,
        room.site,
        room.rack,
        room.domain,
        room.jurisdiction,
        cpu_millis,
        memory_bytes,
        accelerators,
        leases,
        room.leaf,
        room.rail,
        room.row,
        room.size,
    )


@value
class Block:
    """Live nodes that belong together. ``free_counts`` are the numbers of free accelerators that occur."""

    id: str
    rooms: tuple[Room, ...]  # by node
    is_domain: bool  # several nodes of one NVLink domain: a gang's slices must be even across such
    most_nodes: int  # how many of its nodes may hold work
    free: int  # accelerators
    used: int  # nodes that hold something
    free_counts: tuple[int, ...]
    cpu_millis: int = 0  # free
    size: Size = (0, 0, 0)  # of its largest node

    @property
    def spare(self) -> int:
        """How many more of its whole nodes may take work."""
        return self.most_nodes - self.used


@value
class Fleet:
    """All blocks by id, the block of each node, and the free accelerators of all."""

    blocks: Map[str, Block] = Map()
    block_of: Map[str, str] = Map()
    free: int = 0

    def with_rooms(self, rooms: Mapping[str, Room]) -> Fleet:
        """These nodes have this room now; their blocks are summed up again, each once."""
        block_of = self.block_of
        blocks, free = self.blocks, self.free
        for name in dict.fromkeys([block_of[node] for node in rooms]):
            old = blocks[name]
            now = tuple([rooms.get(room.node, room) for room in old.rooms])
            new = _summed(name, now, old.is_domain, old.most_nodes, old.size)
            free += new.free - old.free
            blocks = blocks.set(name, new)
        return Fleet(blocks, self.block_of, free)

    def without(self, nodes: Iterable[str]) -> Fleet:
        """The fleet as if these nodes were not there; they count as used of what their domain may use."""
        changed: dict[str, dict[str, int]] = {}
        for node in nodes:
            block = self.block_of.get(node)
            if block is not None:
                changed.setdefault(block, {})[node] = 1
        blocks, free = self.blocks, self.free
        for name, gone in changed.items():
            old = blocks[name]
            kept = tuple([room for room in old.rooms if room.node not in gone])
            most_nodes = old.most_nodes - (len(old.rooms) - len(kept))
            new = _summed(name, kept, old.is_domain, most_nodes, old.size)
            free += new.free - old.free
            blocks = blocks.set(name, new)
        return Fleet(blocks, self.block_of, free)


def fleet_of(rooms: Iterable[Room], most_nodes: Mapping[str, int] | None = None) -> Fleet:
    """Sum up blocks from scratch. ``most_nodes`` bounds, by rack or domain, the nodes that may hold work."""
    ordered = sorted(rooms, key=lambda room: room.node)
    in_domain: dict[str, int] = {}
    for room in ordered:
        if room.domain:
            in_domain[room.domain] = in_domain.get(room.domain, 0) + 1
    groups: dict[str, list[Room]] = {}
    domains: dict[str, bool] = {}
    for room in ordered:
        is_domain = in_domain.get(room.domain, 0) > 1
        name = room.domain if is_domain else f"{room.site}:{room.rack}" if room.rack else room.node
        groups.setdefault(name, []).append(room)
        domains[name] = is_domain
    limits = most_nodes or {}
    blocks: dict[str, Block] = {}
    for name, group in groups.items():
        limit = limits.get(group[0].domain) or limits.get(group[0].rack) or len(group)
        size = max(room.size for room in group)
        blocks[name] = _summed(name, tuple(group), domains[name], limit, size)
    where = {room.node: name for name, group in groups.items() for room in group}
    return Fleet(Map(blocks), Map(where), sum(block.free for block in blocks.values()))


def _summed(name: str, rooms: tuple[Room, ...], is_domain: bool, most_nodes: int, size: Size) -> Block:
    free = used = cpu_millis = 0
    counts: list[int] = []
    for room in rooms:
        count = len(room.accelerators)
        free += count
        cpu_millis += room.cpu_millis
        if room.leases:
            used += 1
        if count not in counts:
            counts.append(count)
    counts.sort()
    return Block(name, rooms, is_domain, most_nodes, free, used, tuple(counts), cpu_millis, size)
