"""Whose turn is it, and may it start? Priority first, then the tenant that has least of its share.

A tenant's dominant share is the largest of its shares of CPU, memory and accelerators (dominant resource
fairness; Ghodsi et al., NSDI 2011). What counts is what it holds now and what it held lately, both divided
by its weight, so that who waited while others worked comes first. Of one tenant that job comes first
whose wait has doubled most often since it was as long as the job itself is to run: an hour's wait is long
for a job of a minute and short for one of a day. Then the one that waited longest, then the smaller id.

Bounds are in accelerators: a guarantee is lent while idle and taken back (``policy.preempt``), a reserve is
lent to nobody, a limit holds for what is borrowed too. A parent's bounds hold for the sum of its children.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tokenmill.domain.factory import Tenant
from tokenmill.domain.units import format_accelerators
from tokenmill.domain.value import value
from tokenmill.domain.work import Usage


@value
class Holding:
    """CPU, memory and accelerators held by a tenant, or all that the floor has."""

    cpu_millis: int = 0
    memory_bytes: int = 0
    accelerators: int = 0

    def plus(self, cpu_millis: int, memory_bytes: int, accelerators: int) -> Holding:
        """This holding and that much more (or less, when negative)."""
        return Holding(
            self.cpu_millis + cpu_millis, self.memory_bytes + memory_bytes, self.accelerators + accelerators
        )


NOTHING = Holding()


@value
class Head:
    """The first pending job of one tenant at one priority. ``run_us`` is how long it says that it runs."""

    priority: int
    tenant: str
    submitted_us: int
    id: str
    run_us: int = 0


def dominant_ppm(held: Holding, total: Holding) -> int:
    """The largest share of any one resource, in millionths."""
    largest = 0
    if total.cpu_millis > 0:
        largest = held.cpu_millis * 1_000_000 // total.cpu_millis
    if total.memory_bytes > 0:
        memory = held.memory_bytes * 1_000_000 // total.memory_bytes
        if memory > largest:
            largest = memory
    if total.accelerators > 0:
        accelerators = held.accelerators * 1_000_000 // total.accelerators
        if accelerators > largest:
            largest = accelerators
    return largest


HALF_LIFE_US = 24 * 3_600_000_000
"""What a tenant held a day ago counts half as much as what it holds now."""

NO_USAGE = Usage(0, 0)


def used(usage: Usage, share_ppm: int, now_us: int) -> Usage:
    """The usage at ``now_us`` of a tenant that has held ``share_ppm`` since ``usage.at_us``.

    It halves each half-life; within one the decay is taken as linear, so that it is whole numbers only.
    """
    span_us = now_us - usage.at_us
    if span_us <= 0 or not usage.at_us:
        return Usage(usage.integral, now_us)
    if span_us < HALF_LIFE_US:
        left = usage.integral - usage.integral * span_us // (2 * HALF_LIFE_US)
        return Usage(left + share_ppm * span_us, now_us)
    halved = usage.integral >> min(60, span_us // HALF_LIFE_US)
    halved -= halved * (span_us % HALF_LIFE_US) // (2 * HALF_LIFE_US)
    return Usage(halved + share_ppm * HALF_LIFE_US, now_us)


def standing_ppm(tenant: str, view: Shares, now_us: int) -> int:
    """What a tenant holds and held lately, by its weight: who stands lowest goes first."""
    share = dominant_ppm(view.held.get(tenant, NOTHING), view.total)
    lately = 0
    known = view.usage.get(tenant)
    if known is not None:
        lately = used(known, share, now_us).integral // HALF_LIFE_US
    found = view.tenants.get(tenant)
    return (share + lately) // (max(1, found.share) if found else 1)


@value
class Shares:
    """What sharing looks at: holdings and usage by tenant, the floor's total, and who is entitled to what."""

    held: Mapping[str, Holding]
    usage: Mapping[str, Usage]
    total: Holding
    tenants: Mapping[str, Tenant]


PATIENCE_US = 600_000_000
"""Who has waited for that long goes before who has not; no job counts as shorter."""

LONGEST_US = 24 * 3_600_000_000
"""No job counts as longer, so that also one of weeks moves up."""


def doublings(head: Head, now_us: int) -> int:
    """How often a wait has doubled since it was as long as the job's own run; 0 is before that."""
    run_us = min(max(head.run_us, PATIENCE_US), LONGEST_US)
    return (max(0, now_us - head.submitted_us) // run_us).bit_length()


def in_turn(head: Head, now_us: int) -> tuple[int, int, str]:
    """Where a job stands among those of its tenant: the smallest is first."""
    return -doublings(head, now_us), head.submitted_us, head.id


def length_of(run_us: int) -> int:
    """The class of lengths of a run: each is twice as long as the one before, as ``doublings`` counts."""
    return (min(max(run_us, PATIENCE_US), LONGEST_US) // PATIENCE_US).bit_length()


def pick(heads: Iterable[Head], view: Shares, now_us: int) -> Head:
    """The job whose turn it is. Needs a head."""
    standing: dict[str, int] = {}
    late_us = now_us - PATIENCE_US

    def rank(head: Head) -> tuple[int, bool, int, tuple[int, int, str]]:
        share = standing.get(head.tenant)
        if share is None:
            share = standing[head.tenant] = standing_ppm(head.tenant, view, now_us)
        is_early = head.submitted_us >= late_us
        return -head.priority, is_early, share, in_turn(head, now_us)

    return min(heads, key=rank)


def line_of(tenant: str, tenants: Mapping[str, Tenant]) -> tuple[Tenant, ...]:
    """A tenant and its parents, itself first. A circle, which the spec refuses, ends where it closes."""
    first = tenants.get(tenant)
    if first is None or not first.parent:
        return () if first is None else (first,)
    found: list[Tenant] = []
    while (known := tenants.get(tenant)) is not None and known not in found:
        found.append(known)
        tenant = known.parent
    return tuple(found)


def held_under(tenant: str, view: Shares) -> int:
    """Accelerators held by a tenant and all below it."""
    own = view.held.get(tenant, NOTHING).accelerators
    children = sorted(t.name for t in view.tenants.values() if t.parent == tenant and t.name != tenant)
    return own + sum(held_under(child, view) for child in children)


def bounded(tenants: Mapping[str, Tenant]) -> bool:
    """Whether any tenant has a bound at all; most factories have none, and then nothing need be counted."""
    return any(t.reserve or t.limit is not None for t in tenants.values())


def refusal(tenant: str, accelerators: int, free: int, view: Shares) -> str:
    """Why the tenant may not take that many accelerators of ``free`` ones now; empty when it may."""
    if not accelerators:
        return ""
    line = line_of(tenant, view.tenants)
    for one in line:
        held = held_under(one.name, view)
        if one.limit is not None and held + accelerators > one.limit:
            return f"tenant {one.name} holds {held} of at most {one.limit} accelerators, {accelerators} asked"
    own = {one.name for one in line}
    kept = 0
    for other in view.tenants.values():
        if other.reserve and other.name not in own:
            kept += max(0, other.reserve - held_under(other.name, view))
    if free - accelerators < kept:
        reserved = f"{kept} of them reserved for other tenants, " if kept else ""
        return f"{format_accelerators(free)} free, {reserved}{accelerators} asked"
    return ""


def within_guarantee(tenant: str, accelerators: int, view: Shares) -> bool:
    """Whether the tenant stays within what is guaranteed to it, or to a parent, with that many more."""
    return any(
        one.guarantee and held_under(one.name, view) + accelerators <= one.guarantee
        for one in line_of(tenant, view.tenants)
    )


def borrowed(tenant: str, view: Shares) -> int:
    """How many accelerators a tenant holds beyond its guarantee and that of its parents."""
    line = line_of(tenant, view.tenants)
    if not line:
        return view.held.get(tenant, NOTHING).accelerators
    return min(max(0, held_under(one.name, view) - max(one.guarantee, one.reserve)) for one in line)
