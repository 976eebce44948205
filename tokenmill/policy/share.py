"""Whose turn is it? Priority first, then the tenant that has least of what it is entitled to.

A tenant's dominant share is the largest of its shares of CPU, memory and accelerators, divided by its weight
(dominant resource fairness; Ghodsi et al., NSDI 2011). Equal shares go to the job that waited longest, then
to the smaller id. It picks one job at a time; the caller places it and asks again with the new holdings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Head:
    """The first pending job of one tenant at one priority."""

    priority: int
    tenant: str
    submitted_us: int
    id: str


def dominant_ppm(held: Holding, total: Holding) -> int:
    """The largest share of any one resource, in millionths."""
    largest = 0
    if total.cpu_millis > 0:
        largest = held.cpu_millis * 1_000_000 // total.cpu_millis
    if total.memory_bytes > 0:
        largest = max(largest, held.memory_bytes * 1_000_000 // total.memory_bytes)
    if total.accelerators > 0:
        largest = max(largest, held.accelerators * 1_000_000 // total.accelerators)
    return largest


def pick(
    heads: Iterable[Head], held: Mapping[str, Holding], total: Holding, weights: Mapping[str, int]
) -> Head:
    """The job whose turn it is. ``weights`` are the tenants' ``share``. Needs at least one head."""

    def rank(head: Head) -> tuple[int, int, int, str]:
        share = dominant_ppm(held.get(head.tenant, NOTHING), total) // max(1, weights.get(head.tenant, 1))
        return -head.priority, share, head.submitted_us, head.id

    return min(heads, key=rank)
