"""Where does a gang go? All of its workers at once, or none of them.

Workers that talk to each other are kept close: on one node if it holds them all, else in one block (NVLink
domain, else rack), else over the fewest blocks of one rack, leaf, rail, row or site. Over several NVLink
domains a gang is cut into even slices (they differ by at most one worker): 128 workers are 8 x 16, never 7
x 18 + 2.

Among equals the fullest place that still fits is taken, so that whole domains stay free for large gangs;
small and CPU-only work goes where a domain is already broken. Replicas keep apart from their siblings where
they can. Every ordering ends in an id. It does not preempt: that is ``policy.preempt``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from tokenmill.domain.factory import Accelerator, Resources
from tokenmill.domain.value import value
from tokenmill.policy.fleet import Block, Fleet, Room, Size
from tokenmill.policy.fragment import Kinds, growth
from tokenmill.policy.memo import Memo


@value
class Demand:
    """What a gang asks: ``resources`` per worker, in one of ``jurisdictions`` (empty: anywhere).

    ``apart`` says how far replicas keep from the nodes in ``siblings``, where they can: node, rack or site.
    """

    resources: Resources
    workers: int = 1
    jurisdictions: tuple[str, ...] = ()
    apart: str = ""
    siblings: tuple[str, ...] = ()


@value
class Placement:
    """One node and its accelerators for each worker, workers of a node side by side."""

    nodes: tuple[str, ...]
    accelerators: tuple[tuple[str, ...], ...]


Rank = tuple[int, Size, int, int, int, str]  # of a block: the least goes first


@value
class Capacity:
    """How many workers ``block`` takes, how many its best node does, and its label at each of ``LEVELS``."""

    block: Block
    workers: int
    on_one_node: int
    labels: tuple[str, ...]


Counted = tuple[int, int, str, Capacity]
"""A block in the order to be filled: the tightest first; for work without accelerators broken ones first."""


def place(fleet: Fleet, demand: Demand, memo: Memo | None = None, kinds: Kinds = ()) -> Placement | None:
    """Find room for the whole gang, or ``None``; ``explain`` then says why, node by node.

    ``kinds`` are those that room is left for, where one worker may go to several nodes.
    """
    need = demand.resources
    if fleet.free < need.accelerators * demand.workers:
        return None
    memo = Memo() if memo is None else memo
    if demand.workers == 1:
        found = _one(fleet, demand, kinds, memo)
        return None if found is None else Placement((found.node,), (_take(found, need, 0),))
    counted = counted_of(fleet, demand, memo)
    if not need.accelerators:
        return _scattered(counted, demand)
    if sum([entry[0] for entry in counted]) < demand.workers:
        return None
    slices = _slices(counted, demand.workers)
    return None if slices is None else _bind(slices, demand)


LOOK_MOST = 256
"""How many nodes are compared by what they would strand."""


def _one(fleet: Fleet, demand: Demand, kinds: Kinds, memo: Memo) -> Room | None:
    """The best node for one worker: of the first block that holds it and where no more is stranded than was.

    Broken blocks come first, then those of the smallest nodes, so that the largest stay for what only they
    hold, then the fullest. Where all would strand more, the node that strands least, as broken a block.
    """
    count, laws = demand.resources.accelerators, demand.jurisdictions
    ranks = memo.entries((count, laws), fleet, lambda blocks: _ranks(blocks, count, laws))
    if not ranks:
        return None
    near = _near(fleet, demand) if demand.siblings else {}
    if near:
        ranks = sorted(ranks, key=lambda rank: (near.get(rank[-1], 0), rank))
    found = _in_block(fleet.blocks[ranks[0][-1]], demand)
    kinds = () if demand.siblings else kinds
    if found is not None and (not kinds or growth(kinds, found, demand.resources) <= 0):
        return found
    best: tuple[tuple[int, int, int, int, str], Room] | None = None
    looked = 0
    for whole, *_, name in ranks:
        if best is not None and (whole > best[0][0] or looked > LOOK_MOST):
            break
        found = _in_block(fleet.blocks[name], demand, kinds)
        looked += len(fleet.blocks[name].rooms)
        if found is None:
            continue
        grows = growth(kinds, found, demand.resources)
        if grows <= 0:
            return found
        rank = (whole, grows, len(found.accelerators), found.cpu_millis, found.node)
        if best is None or rank < best[0]:
            best = (rank, found)
    return None if best is None else best[1]


def _ranks(blocks: Iterable[Block], count: int, laws: tuple[str, ...]) -> dict[str, Rank]:
    """Blocks with a node that has enough accelerators free, each with what it is preferred by."""
    ranks: dict[str, Rank] = {}
    for block in blocks:
        counts = block.free_counts
        if not counts or counts[-1] < count or (laws and block.rooms[0].jurisdiction not in laws):
            continue
        least = counts[0] if counts[0] >= count else counts[bisect_left(counts, count)]
        whole = 0 if block.used or not block.free else 1
        ranks[block.id] = (whole, block.size, least, block.free, block.cpu_millis, block.id)
    return ranks


def _near(fleet: Fleet, demand: Demand) -> dict[str, int]:
    """Siblings in each block, when replicas keep apart by rack or site."""
    near: dict[str, int] = {}
    if demand.apart not in ("rack", "site") or not demand.siblings:
        return near
    held = [fleet.block_of[node] for node in demand.siblings if node in fleet.block_of]
    for name in held:
        near[name] = near.get(name, 0) + 1
    if demand.apart == "site":
        sites: dict[str, int] = {}
        for name in held:
            site = fleet.blocks[name].rooms[0].site
            sites[site] = sites.get(site, 0) + len(fleet.block_of)
        for name, block in fleet.blocks.items():
            if block.rooms and block.rooms[0].site in sites:
                near[name] = near.get(name, 0) + sites[block.rooms[0].site]
    return near


def _in_block(block: Block, demand: Demand, kinds: Kinds = ()) -> Room | None:
    """The node that strands least, then has the fewest accelerators and the least CPU free, of those that
    hold one worker.
    """
    need = demand.resources
    cpu_millis, memory_bytes, count = need.cpu_millis, need.memory_bytes, need.accelerators
    spare = block.most_nodes > block.used
    siblings = demand.siblings
    best: Room | None = None
    best_key: tuple[int, int, int, int, str] | None = None
    for room in block.rooms:
        free = len(room.accelerators)
        if free < count or room.cpu_millis < cpu_millis or room.memory_bytes < memory_bytes:
            continue
        if not room.leases and not spare:
            continue
        if count and need.accelerator_kind and len(matching(room, need)) < count:
            continue
        crowd = siblings.count(room.node) if siblings else 0
        grows = growth(kinds, room, need) if kinds else 0
        key = (crowd, grows, free, room.cpu_millis, room.node)
        if best_key is None or key < best_key:
            best, best_key = room, key
    return best


def counted_of(fleet: Fleet, demand: Demand, memo: Memo) -> list[Counted]:
    """What each block takes of the demand's kind of worker, if it takes any, in the order to be filled."""
    least = demand.resources.accelerators

    def count(blocks: Iterable[Block]) -> dict[str, Counted]:
        found: dict[str, Counted] = {}
        for block in blocks:
            if block.free_counts and block.free_counts[-1] >= least:  # else none of its nodes holds one
                capacity = capacity_of(block, demand)
                if capacity.workers:
                    spared = not block.used and (least > 0 or len(block.rooms[0].accelerators) > 0)
                    first = (capacity.workers, spared) if least else (spared, block.free)
                    found[block.id] = (*first, block.id, capacity)
        return found

    return memo.entries((demand.resources, demand.jurisdictions), fleet, count)


def capacity_of(block: Block, demand: Demand) -> Capacity:
    """How many workers the block takes: of its whole nodes at most ``block.spare`` count."""
    workers = best = 0
    whole: list[int] = []
    for room in block.rooms:
        count = holds(room, demand.resources, demand.jurisdictions)
        if count > best:
            best = count
        if room.leases:
            workers += count
        elif count:
            whole.append(count)
    spare = max(0, block.spare)
    if len(whole) > spare:
        whole.sort(reverse=True)
        whole = whole[:spare]
    labels = tuple([level(block.rooms[0]) for level in LEVELS]) if block.rooms else ()
    return Capacity(block, workers + sum(whole), best, labels)


ANY = 1 << 30
"""What a node holds of workers that ask for nothing."""


def holds(room: Room, need: Resources, jurisdictions: tuple[str, ...] = ()) -> int:
    """How many such workers this node takes."""
    count = ANY
    if need.accelerators:
        count = len(room.accelerators) // need.accelerators
        if count and need.accelerator_kind:
            count = len(matching(room, need)) // need.accelerators
    if count and need.cpu_millis:
        by_cpu = room.cpu_millis // need.cpu_millis
        if by_cpu < count:
            count = by_cpu
    if count and need.memory_bytes:
        by_memory = room.memory_bytes // need.memory_bytes
        if by_memory < count:
            count = by_memory
    if jurisdictions and room.jurisdiction not in jurisdictions:
        return 0
    return max(0, count)


Slices = list[tuple[Capacity, int]]

LEVELS: tuple[Callable[[Room], str], ...] = (
    lambda room: room.rack and f"{room.site}:{room.rack}",
    lambda room: room.leaf,
    lambda room: room.rail,
    lambda room: room.row and f"{room.site}:{room.row}",
    lambda room: room.site,
    lambda _: "*",
)


def _slices(counted: list[Counted], workers: int) -> Slices | None:
    """Which blocks take how many workers: one that holds all, else the fewest of the tightest level."""
    best: tuple[tuple[int, int, int, str], Capacity] | None = None
    for held, whole, name, c in counted[bisect_left(counted, (workers,)) :]:
        key = (-(-workers // c.on_one_node), held, whole, name)
        if best is None or key < best[0]:
            best = (key, c)
    if best is not None:
        return [(best[1], workers)]
    for level in range(len(LEVELS)):
        found = _at_level(counted, workers, level)
        if found is not None:
            return found
    return None


def _at_level(counted: list[Counted], workers: int, level: int) -> Slices | None:
    """The group of blocks with one label that takes the gang in the fewest blocks, the tightest first."""
    groups: dict[str, list[Capacity]] = {}
    for entry in counted:
        groups.setdefault(entry[3].labels[level], []).append(entry[3])
    chosen: tuple[tuple[int, int, str], Slices] | None = None
    for name, group in groups.items():
        total = sum(c.workers for c in group)
        if not name or total < workers:
            continue
        found = even(group, workers)
        if found is not None:
            rank = (len(found), total - workers, name)
            if chosen is None or rank < chosen[0]:
                chosen = (rank, found)
    return None if chosen is None else chosen[1]


def even(tight: Sequence[Capacity], workers: int) -> Slices | None:
    """Cut a gang into even slices over the fewest blocks; the tightest blocks, which come first, take them.

    Where no NVLink domain is involved, slices may be uneven when even ones do not fit.
    """
    sizes = [c.workers for c in reversed(tight)]
    held = fewest = 0
    while held < workers:
        held += sizes[fewest]
        fewest += 1
    for count in range(fewest, min(len(tight), workers) + 1):
        small, more = divmod(workers, count)
        if sizes[count - 1] < small or (more and sizes[more - 1] < small + 1):
            continue
        large = [c for c in tight if c.workers > small][:more]
        taken = {c.block.id: 1 for c in large}
        rest = [c for c in tight if c.workers >= small and c.block.id not in taken][: count - more]
        return [(c, small + 1) for c in large] + [(c, small) for c in rest]
    if any(c.block.is_domain for c in tight):
        return None
    slices: Slices = []
    for c in sorted(tight, key=lambda c: (-c.workers, c.block.id))[:fewest]:
        slices.append((c, min(c.workers, workers)))
        workers -= slices[-1][1]
    return slices


def _bind(slices: Slices, demand: Demand) -> Placement:
    """Name the nodes and accelerators of every slice."""
    nodes: list[str] = []
    accelerators: list[tuple[str, ...]] = []
    for capacity, workers in slices:
        for room, count in _nodes_of(capacity.block, workers, demand):
            for worker in range(count):
                nodes.append(room.node)
                accelerators.append(_take(room, demand.resources, worker))
    return Placement(tuple(nodes), tuple(accelerators))


def _nodes_of(block: Block, workers: int, demand: Demand) -> list[tuple[Room, int]]:
    """The nodes of one slice: the tightest one that holds what is left, else the one that holds most."""
    fits = [(holds(room, demand.resources, demand.jurisdictions), room) for room in block.rooms]
    fits = [fit for fit in fits if fit[0]]
    spare = block.spare
    if spare < sum(1 for _, room in fits if not room.leases):
        # Spares are kept: of the whole nodes only the first few that hold most may be taken.
        whole = sorted((f for f in fits if not f[1].leases), key=lambda f: (-f[0], f[1].node))
        fits = [f for f in fits if f[1].leases] + whole[: max(0, spare)]
    fits.sort(key=lambda f: (-f[0], len(f[1].accelerators), f[1].cpu_millis, f[1].node))
    out: list[tuple[Room, int]] = []
    at = 0
    while workers:
        count, room = fits[at]
        if count > workers:
            tight = [f for f in fits[at:] if f[0] >= workers]
            least = min(f[0] for f in tight)
            room = next(f[1] for f in tight if f[0] == least)
            count = workers
        out.append((room, count))
        workers -= count
        at += 1
    return out


def _scattered(counted: list[Counted], demand: Demand) -> Placement | None:
    """A gang without accelerators needs no domain: nodes without any first, then those of broken blocks."""
    slices: Slices = []
    left = demand.workers
    for entry in counted:
        slices.append((entry[3], min(left, entry[3].workers)))
        left -= slices[-1][1]
        if not left:
            return _bind(slices, demand)
    return None


def matching(room: Room, need: Resources) -> Sequence[Accelerator]:
    if not need.accelerator_kind:
        return room.accelerators
    return [a for a in room.accelerators if a.kind == need.accelerator_kind]


def _take(room: Room, need: Resources, worker: int) -> tuple[str, ...]:
    if not need.accelerators:
        return ()
    first = worker * need.accelerators
    return tuple([a.id for a in matching(room, need)[first : first + need.accelerators]])
