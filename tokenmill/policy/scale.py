"""How many replicas? Up quickly when slots run out or requests wait too long, down slowly, never to and fro.

What is looked at is the work (requests on their way, how long the oldest waits for its first token, how
many were turned away) and what clients got (the share of answers that kept the deployment's objective), not
how busy a device is. At what share of its slots an objective was missed is remembered for an hour as the
limit of a replica: scaling up then comes before the next miss, and scaling down stays below.

A deployment whose least is 0 sleeps when nobody asked for long and wakes when somebody does. The memory
changes only when a threshold is crossed, so that steady load leaves no trace in the journal.
"""

from __future__ import annotations

from tokenmill.domain.outcomes import MEASURED_US
from tokenmill.domain.units import format_duration
from tokenmill.domain.value import value

UP_MILLI = 800
"""Above this share of the wanted slots in use the deployment is busy."""

DOWN_MILLI = 500
"""Below this share of the slots that one replica fewer would have, the deployment is idle."""

AIM_MILLI = 700
"""Scaling up aims at this share of slots in use."""

MARGIN_MILLI = 875
"""Scaling up aims at this share of the limit at which an objective was missed."""

MEASURED_LEAST = 20
"""Answers in a minute from which on a missed objective is believed."""

LIMIT_US = 3_600_000_000
"""How long the limit is believed that a missed objective showed."""

UP_AFTER_US = 5_000_000
DOWN_AFTER_US = 120_000_000


@value
class ScaleMemory:
    """``busy_since_us`` and ``idle_since_us`` are 0 when the deployment is not busy, or not idle.

    ``limit_milli`` of its slots were in use when the objective was last missed, at ``limit_us``.
    """

    wanted: int
    busy_since_us: int = 0
    idle_since_us: int = 0
    limit_milli: int = 0
    limit_us: int = 0


@value
class Bounds:
    """What the file says of a deployment: replicas, slots of each, longest wait, rest before it sleeps, and
    the share of answers that it promises in time; 0 is no promise."""

    least: int
    most: int
    slots: int
    wait_target_us: int = 2_000_000
    idle_after_us: int = 600_000_000
    attainment_milli: int = 0


@value
class Load:
    """``in_flight`` requests run or wait; the oldest without a first token waits for ``wait_us``.

    ``refused_full`` were turned away for want of a slot since the last report, ``asleep`` for want of any
    replica. ``attained`` of the ``measured`` answers of the last minute kept the objective; all wanted
    replicas serve since ``settled_us``, which is -1 while they do not.
    """

    in_flight: int
    refused_full: int = 0
    asleep: int = 0
    wait_us: int = 0
    measured: int = 0
    attained: int = 0
    settled_us: int = 0


def missed(bounds: Bounds, load: Load) -> bool:
    """Whether too few answers of the last minute kept the objective."""
    return (
        bounds.attainment_milli > 0
        and load.measured >= MEASURED_LEAST
        and load.attained * 1000 < load.measured * bounds.attainment_milli
    )


def scale(memory: ScaleMemory, bounds: Bounds, load: Load, now_us: int) -> ScaleMemory:
    """The next memory, whose ``wanted`` is within ``least..most``."""
    least, most, slots = bounds.least, bounds.most, max(1, bounds.slots)
    wanted = min(max(memory.wanted, least), most)
    if wanted == 0:
        calls = load.asleep or load.in_flight or load.refused_full
        return ScaleMemory(min(most, 1)) if calls else ScaleMemory(0)
    behind = missed(bounds, load)
    if behind and wanted < most and _told(memory, load, wanted, now_us):
        return ScaleMemory(wanted + 1, limit_milli=load.in_flight * 1000 // (wanted * slots), limit_us=now_us)

    limit_milli, limit_us = memory.limit_milli, memory.limit_us
    if limit_us and now_us - limit_us >= LIMIT_US:
        limit_milli = limit_us = 0
    reach_milli = limit_milli or 1000

    def wants(count: int, busy_us: int = 0, idle_us: int = 0) -> ScaleMemory:
        return ScaleMemory(count, busy_us, idle_us, limit_milli, limit_us)

    late = load.wait_us > bounds.wait_target_us
    full = load.in_flight * 1000 >= wanted * slots * min(UP_MILLI, reach_milli)
    if load.refused_full > 0 or late or full:
        since_us = memory.busy_since_us or now_us
        if wanted < most and (load.refused_full > 0 or now_us - since_us >= UP_AFTER_US):
            aim_milli = min(AIM_MILLI, max(1, reach_milli * MARGIN_MILLI // 1000))
            aimed = -(-load.in_flight * 1000 // (slots * aim_milli))
            return wants(min(most, max(wanted + 1, aimed)))
        return wants(wanted, busy_us=since_us)
    down_milli = DOWN_MILLI * min(UP_MILLI, reach_milli) // UP_MILLI
    if wanted > least and not behind and load.in_flight * 1000 <= (wanted - 1) * slots * down_milli:
        since_us = memory.idle_since_us or now_us
        rest_us = bounds.idle_after_us if wanted == 1 else DOWN_AFTER_US
        if now_us - since_us >= rest_us:
            return wants(wanted - 1)
        return wants(wanted, idle_us=since_us)
    return wants(wanted)


def because(memory: ScaleMemory, bounds: Bounds, load: Load, now_us: int) -> str:
    """What ``scale`` makes of this load, as "3 -> 4 replicas, since ..."; empty when nothing changes for
    anybody. One that is busy and has all that it may have is told once, when that begins.
    """
    new, was = scale(memory, bounds, load, now_us), min(max(memory.wanted, bounds.least), bounds.most)
    asked = "request" if load.in_flight == 1 else "requests"
    if new.wanted < was:
        idle_us = now_us - memory.idle_since_us
        idle = f"{load.in_flight or 'no'} {asked} in flight, and little for {format_duration(idle_us)}"
        return f"{was} -> {new.wanted} replicas, since {idle}"
    if new.wanted == was and not (was == bounds.most and new.busy_since_us and not memory.busy_since_us):
        return ""
    seen = [f"{load.refused_full} requests were turned away for want of a slot"] if load.refused_full else []
    if load.wait_us > bounds.wait_target_us:
        waited, target = format_duration(load.wait_us), format_duration(bounds.wait_target_us)
        seen.append(f"the oldest request has waited {waited} for its first token, more than {target}")
    if was == 0:
        seen = ["somebody asked while it slept"]
    elif new.limit_us == now_us:
        seen = [f"{load.attained} of {load.measured} answers of the last minute kept its objective"]
    elif not seen:
        seen = [f"{load.in_flight} of {was * bounds.slots} slots are in use"]
    reasons = " and ".join(seen)
    if new.wanted == was:
        return f"it has the {was} replicas that it may have at most, though {reasons}"
    return f"{was} -> {new.wanted} replicas, since {reasons}"


def _told(memory: ScaleMemory, load: Load, wanted: int, now_us: int) -> bool:
    """Whether the missed objective speaks of the replicas that are there, and more of them would help.

    For a minute after a change the answers speak of before. With one request or less on each replica they do
    not come late because of other requests.
    """
    changed_us = max(memory.limit_us, load.settled_us)
    return load.settled_us >= 0 and now_us - changed_us >= MEASURED_US and load.in_flight > wanted
