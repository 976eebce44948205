"""What each node lacks of what is asked, in words, and what the best of them would hold. Places nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from tokenmill.domain.units import format_accelerators, format_cores, format_memory
from tokenmill.policy.fleet import Room
from tokenmill.policy.place import Demand, holds, matching
from tokenmill.policy.reside import allowed


def explain(rooms: Iterable[Room], demand: Demand) -> tuple[tuple[str, bool, str], ...]:
    """For each node: its id, whether it holds at least one worker, and the reason in words, by id."""
    out: list[tuple[str, bool, str]] = []
    for room in sorted(rooms, key=lambda room: room.node):
        wrong = _wrong(room, demand)
        count = min(holds(room, demand.resources, demand.jurisdictions), demand.workers)
        out.append((room.node, not wrong, "; ".join(wrong) or f"holds {count} of {demand.workers} workers"))
    return tuple(out)


def would_hold(rooms: Iterable[Room], demand: Demand) -> str:
    """How to ask so that it fits: what the node that lacks least has for one worker."""
    where = [room for room in rooms if allowed(room.jurisdiction, demand.jurisdictions)]
    if not where:
        return f"Add a node in {' or '.join(demand.jurisdictions)}, where the tenant's data may be."
    best = min(where, key=lambda room: (len(_wrong(room, demand)), [-part for part in room.size], room.node))
    kinds = sorted(Counter(one.kind for one in best.accelerators).items())
    cards = " and ".join(format_accelerators(count, kind) for kind, count in kinds) or format_accelerators(0)
    has = f"{format_cores(best.cpu_millis)}, {format_memory(best.memory_bytes)} and {cards}"
    return f"Ask for at most {has} for each worker: that is what {best.node} has."


def _wrong(room: Room, demand: Demand) -> list[str]:
    need = demand.resources
    wrong: list[str] = []
    if not allowed(room.jurisdiction, demand.jurisdictions):
        where = room.jurisdiction or "no stated jurisdiction"
        wrong.append(f"is in {where}, the tenant's data may be in {', '.join(demand.jurisdictions)}")
    if room.cpu_millis < need.cpu_millis:
        wrong.append(_short(format_cores, "", room.cpu_millis, need.cpu_millis))
    if room.memory_bytes < need.memory_bytes:
        wrong.append(_short(format_memory, " of memory", room.memory_bytes, need.memory_bytes))
    free = len(matching(room, need))
    if free < need.accelerators:
        wrong.append(
            f"has {format_accelerators(free, need.accelerator_kind)} free, {need.accelerators} asked"
        )
    return wrong


def _short(text: Callable[[int], str], of: str, free: int, asked: int) -> str:
    """Both amounts in words, or as they are where words would not tell them apart."""
    has, wants = text(free), text(asked)
    if has == wants:
        has, wants = str(free), str(asked)
    return f"has {has}{of} free, {wants} asked"
