"""How much of what is left of a node could nobody use? For the choice between nodes that hold one worker.

Free accelerators of a node are stranded for a kind of work that the node cannot hold, for want of
accelerators, CPU or memory. Where a worker goes, that grows; it should grow least (fragmentation gradient
descent; Weng et al., USENIX ATC 2023, here for whole accelerators). What kinds there are is what jobs have
asked that the core still knows: those that wait, run, or ended lately.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from tokenmill.domain.factory import Resources
from tokenmill.policy.fleet import Room

Kind = tuple[int, int, int]  # accelerators, thousandths of a core and bytes of memory of one worker
Kinds = tuple[tuple[Kind, int], ...]  # with how many jobs asked it

KINDS_MOST = 64
"""How many kinds are looked at, the most frequent ones."""


def kind_of(need: Resources) -> Kind:
    """What one worker asks of a node."""
    return need.accelerators, need.cpu_millis, need.memory_bytes


def most_asked(asked: Mapping[Kind, int]) -> Kinds:
    """The kinds that most jobs ask, the most frequent first."""
    return tuple(heapq.nsmallest(KINDS_MOST, asked.items(), key=lambda item: (-item[1], item[0])))


def growth(kinds: Kinds, room: Room, need: Resources) -> int:
    """By how much what is stranded on a node grows when it takes such a worker; less than nothing if it
    falls. In accelerators times jobs.
    """
    free, cpu_millis, memory_bytes = len(room.accelerators), room.cpu_millis, room.memory_bytes
    left, cpu_left, memory_left = (
        free - need.accelerators,
        cpu_millis - need.cpu_millis,
        memory_bytes - need.memory_bytes,
    )
    if not free:
        return 0
    grows = 0
    for (accelerators, cpu, memory), jobs in kinds:
        if accelerators > left or cpu > cpu_left or memory > memory_left:
            grows += left * jobs
            if accelerators > free or cpu > cpu_millis or memory > memory_bytes:
                grows -= free * jobs
    return grows
