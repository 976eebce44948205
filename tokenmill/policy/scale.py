"""How many replicas? Up quickly when slots run out, down slowly, never to and fro.

The memory changes only when a threshold is crossed, so that steady load leaves no trace in the journal.
"""

from __future__ import annotations

from dataclasses import dataclass

UP_MILLI = 800
"""Above this share of the wanted slots in use the deployment is busy."""

DOWN_MILLI = 500
"""Below this share of the slots that one replica fewer would have, the deployment is idle."""

AIM_MILLI = 700
"""Scaling up aims at this share of slots in use."""

UP_AFTER_US = 5_000_000
DOWN_AFTER_US = 120_000_000


@dataclass(frozen=True, slots=True)
class ScaleMemory:
    """``busy_since_us`` and ``idle_since_us`` are 0 when the deployment is not busy, or not idle."""

    wanted: int
    busy_since_us: int = 0
    idle_since_us: int = 0


def scale(
    memory: ScaleMemory, least: int, most: int, slots: int, in_flight: int, refused_full: int, now_us: int
) -> ScaleMemory:
    """The next memory, whose ``wanted`` is within ``least..most``.

    ``in_flight`` requests run or wait on replicas of ``slots`` each; ``refused_full`` were turned away for
    want of room since the last report, which is reason enough to scale up at once.
    """
    wanted = min(max(memory.wanted, least), most)
    slots = max(1, slots)
    if refused_full > 0 or in_flight * 1000 >= wanted * slots * UP_MILLI:
        since_us = memory.busy_since_us or now_us
        if wanted < most and (refused_full > 0 or now_us - since_us >= UP_AFTER_US):
            aimed = -(-in_flight * 1000 // (slots * AIM_MILLI))
            return ScaleMemory(min(most, max(wanted + 1, aimed)))
        return ScaleMemory(wanted, busy_since_us=since_us)
    if wanted > least and in_flight * 1000 <= (wanted - 1) * slots * DOWN_MILLI:
        since_us = memory.idle_since_us or now_us
        if now_us - since_us >= DOWN_AFTER_US:
            return ScaleMemory(wanted - 1)
        return ScaleMemory(wanted, idle_since_us=since_us)
    return ScaleMemory(wanted)
