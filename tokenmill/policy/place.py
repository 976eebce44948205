"""Where does a gang go? All of its workers at once, or none of them.

Workers that talk to each other are kept close: on one node if it holds them all, else in one NVLink domain,
one rack, one site, and only then anywhere. Among equals the fullest place that still fits is taken (best
fit), so that whole nodes stay free for whole-node gangs. Ties end in the node's id. It does not preempt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tokenmill.domain.factory import Accelerator, Resources
from tokenmill.policy.reside import allowed


@dataclass(frozen=True, slots=True)
class Room:
    """What is free on one live node."""

    node: str
    site: str
    rack: str
    domain: str
    jurisdiction: str
    cpu_millis: int
    memory_bytes: int
    accelerators: tuple[Accelerator, ...]  # free ones, by id


@dataclass(frozen=True, slots=True)
class Demand:
    """What a gang asks: ``resources`` per worker, in one of ``jurisdictions`` (empty: anywhere)."""

    resources: Resources
    workers: int = 1
    jurisdictions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """One node and its accelerators for each worker, workers of a node side by side."""

    nodes: tuple[str, ...]
    accelerators: tuple[tuple[str, ...], ...]


def place(rooms: Iterable[Room], demand: Demand) -> Placement | None:
    """Find room for the whole gang, or ``None``; ``explain`` then says why, node by node."""
    if demand.workers == 1:
        best = _best_fit(rooms, demand)
        return None if best is None else Placement((best.node,), (_take(best, demand.resources, 0),))
    least = demand.resources.accelerators
    fits = [
        (room, count)
        for room in rooms
        if len(room.accelerators) >= least and (count := holds(room, demand)) > 0
    ]
    if sum(count for _, count in fits) < demand.workers:
        return None
    return _fill(_closest(fits, demand.workers), demand)


def _best_fit(rooms: Iterable[Room], demand: Demand) -> Room | None:
    """The node with the fewest free accelerators, then the least free CPU, that holds one worker."""
    need = demand.resources
    cpu_millis, memory_bytes, count = need.cpu_millis, need.memory_bytes, need.accelerators
    laws = demand.jurisdictions
    best: Room | None = None
    for room in rooms:
        free = len(room.accelerators)
        if free < count or room.cpu_millis < cpu_millis or room.memory_bytes < memory_bytes:
            continue
        if (laws and room.jurisdiction not in laws) or (count and len(_matching(room, need)) < count):
            continue
        if best is None or (free, room.cpu_millis, room.node) < (
            len(best.accelerators),
            best.cpu_millis,
            best.node,
        ):
            best = room
    return best


def explain(rooms: Iterable[Room], demand: Demand) -> tuple[tuple[str, bool, str], ...]:
    """For each node: its id, whether it holds at least one worker, and the reason in words, by id."""
    need = demand.resources
    out: list[tuple[str, bool, str]] = []
    for room in sorted(rooms, key=lambda room: room.node):
        wrong: list[str] = []
        if not allowed(room.jurisdiction, demand.jurisdictions):
            where = room.jurisdiction or "no stated jurisdiction"
            wrong.append(f"is in {where}, the tenant's data may be in {', '.join(demand.jurisdictions)}")
        if room.cpu_millis < need.cpu_millis:
            wrong.append(f"has {room.cpu_millis} thousandths of a core free, {need.cpu_millis} asked")
        if room.memory_bytes < need.memory_bytes:
            wrong.append(f"has {room.memory_bytes} bytes of memory free, {need.memory_bytes} asked")
        free = len(_matching(room, need))
        if free < need.accelerators:
            kind = need.accelerator_kind or "accelerators"
            wrong.append(f"has {free} free {kind}, {need.accelerators} asked")
        fits = f"holds {holds(room, demand)} of {demand.workers} workers"
        out.append((room.node, not wrong, "; ".join(wrong) or fits))
    return tuple(out)


def _matching(room: Room, need: Resources) -> Sequence[Accelerator]:
    if not need.accelerator_kind:
        return room.accelerators
    return [a for a in room.accelerators if a.kind == need.accelerator_kind]


def holds(room: Room, demand: Demand) -> int:
    """How many workers this node takes, at most ``demand.workers``."""
    need = demand.resources
    count = demand.workers
    if need.accelerators:
        fit = len(room.accelerators) // need.accelerators
        if fit and need.accelerator_kind:
            fit = len(_matching(room, need)) // need.accelerators
        count = min(count, fit)
    if count and need.cpu_millis:
        count = min(count, room.cpu_millis // need.cpu_millis)
    if count and need.memory_bytes:
        count = min(count, room.memory_bytes // need.memory_bytes)
    if demand.jurisdictions and room.jurisdiction not in demand.jurisdictions:
        return 0
    return max(0, count)


def _take(room: Room, need: Resources, worker: int) -> tuple[str, ...]:
    if not need.accelerators:
        return ()
    first = worker * need.accelerators
    return tuple(a.id for a in _matching(room, need)[first : first + need.accelerators])


LEVELS: tuple[Callable[[Room], tuple[str, ...]], ...] = (
    lambda room: (room.node,),
    # A node without an NVLink domain of its own is not in one with the others that have none.
    lambda room: (room.domain or room.node,),
    lambda room: (room.site, room.rack or room.node),
    lambda room: (room.site,),
    lambda room: (),
)


def _closest(fits: list[tuple[Room, int]], workers: int) -> list[tuple[Room, int]]:
    """The tightest group of nodes that holds the gang; the smallest such group, then the first by name."""
    for level in LEVELS:
        groups: dict[tuple[str, ...], list[tuple[Room, int]]] = {}
        for room, count in fits:
            groups.setdefault(level(room), []).append((room, count))
        enough = [
            (sum(count for _, count in group), name)
            for name, group in groups.items()
            if sum(count for _, count in group) >= workers
        ]
        if enough:
            return groups[min(enough)[1]]
    return fits


def _fill(group: list[tuple[Room, int]], demand: Demand) -> Placement:
    """Take the nodes that hold most first, so that the gang spans as few as it can."""
    nodes: list[str] = []
    accelerators: list[tuple[str, ...]] = []
    for room, count in sorted(group, key=lambda fit: (-fit[1], len(fit[0].accelerators), fit[0].node)):
        for worker in range(min(count, demand.workers - len(nodes))):
            nodes.append(room.node)
            accelerators.append(_take(room, demand.resources, worker))
    return Placement(tuple(nodes), tuple(accelerators))
