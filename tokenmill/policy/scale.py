"""How many replicas? Up quickly when slots run out or requests wait too long, down slowly, never to and fro.

What is looked at is the work (requests on their way, how long the oldest waits for its first token, how
many were turned away), not how busy a device is. A deployment whose least is 0 sleeps when nobody asked for
long and wakes when somebody does. The memory changes only when a threshold is crossed, so that steady load
leaves no trace in the journal.
"""

from __future__ import annotations

from tokenmill.domain.value import value

UP_MILLI = 800
"""Above this share of the wanted slots in use the deployment is busy."""

DOWN_MILLI = 500
"""Below this share of the slots that one replica fewer would have, the deployment is idle."""

AIM_MILLI = 700
"""Scaling up aims at this share of slots in use."""

UP_AFTER_US = 5_000_000
DOWN_AFTER_US = 120_000_000


@value
class ScaleMemory:
    """``busy_since_us`` and ``idle_since_us`` are 0 when the deployment is not busy, or not idle."""

    wanted: int
    busy_since_us: int = 0
    idle_since_us: int = 0


@value
class Bounds:
    """What the file says of a deployment: replicas, slots of each, longest wait, rest before it sleeps."""

    least: int
    most: int
    slots: int
    wait_target_us: int = 2_000_000
    idle_after_us: int = 600_000_000


@value
class Load:
    """``in_flight`` requests run or wait; the oldest without a first token waits for ``wait_us``.

    ``refused_full`` were turned away for want of a slot since the last report, ``asleep`` for want of any
    replica.
    """

    in_flight: int
    refused_full: int = 0
    asleep: int = 0
    wait_us: int = 0


def scale(memory: ScaleMemory, bounds: Bounds, load: Load, now_us: int) -> ScaleMemory:
    """The next memory, whose ``wanted`` is within ``least..most``."""
    least, most, slots = bounds.least, bounds.most, max(1, bounds.slots)
    wanted = min(max(memory.wanted, least), most)
    if wanted == 0:
        calls = load.asleep or load.in_flight or load.refused_full
        return ScaleMemory(min(most, 1)) if calls else ScaleMemory(0)
    late = load.wait_us > bounds.wait_target_us
    if load.refused_full > 0 or late or load.in_flight * 1000 >= wanted * slots * UP_MILLI:
        since_us = memory.busy_since_us or now_us
        if wanted < most and (load.refused_full > 0 or now_us - since_us >= UP_AFTER_US):
            aimed = -(-load.in_flight * 1000 // (slots * AIM_MILLI))
            return ScaleMemory(min(most, max(wanted + 1, aimed)))
        return ScaleMemory(wanted, busy_since_us=since_us)
    if wanted > least and load.in_flight * 1000 <= (wanted - 1) * slots * DOWN_MILLI:
        since_us = memory.idle_since_us or now_us
        rest_us = bounds.idle_after_us if wanted == 1 else DOWN_AFTER_US
        if now_us - since_us >= rest_us:
            return ScaleMemory(wanted - 1)
        return ScaleMemory(wanted, idle_since_us=since_us)
    return ScaleMemory(wanted)
