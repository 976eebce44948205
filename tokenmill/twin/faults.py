"""What breaks when: seeded Poisson failures per component with log-normal repairs.

Each component and kind has its own random stream, made from the seed and its name, so one more component does
not move the faults of the others. Correlated faults (a rack's power, a leaf) are components of their own.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tokenmill.domain.factory import Node


@dataclass(frozen=True, slots=True)
class FaultRate:
    """``per_day`` for each component; repairs have this median and a log-normal spread."""

    kind: str
    per_day: float
    repair_median_s: float
    repair_sigma: float = 0.8


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    at_us: int
    component: str
    kind: str
    repair_us: int
    nodes: tuple[str, ...] = ()  # what goes down with it; empty is the component itself


LLAMA3_GPUS, LLAMA3_DAYS = 16_384, 54
LLAMA3_INTERRUPTIONS: tuple[tuple[str, str, int], ...] = (
    ("faulty GPU", "gpu", 148),
    ("GPU HBM3 memory", "gpu", 72),
    ("software bug", "job", 54),
    ("network switch or cable", "network", 35),
    ("host maintenance", "host", 32),
    ("GPU SRAM memory", "gpu", 19),
    ("GPU system processor", "gpu", 17),
    ("NIC", "host", 7),
    ("NCCL watchdog timeouts", "job", 7),
    ("silent data corruption", "gpu", 6),
    ("GPU thermal interface and sensor", "gpu", 6),
    ("SSD", "host", 3),
    ("power supply", "host", 3),
    ("server chassis", "host", 2),
    ("IO expansion board", "host", 2),
    ("dependency", "job", 2),
    ("CPU", "host", 2),
    ("system memory", "host", 2),
)
"""Unexpected interruptions of 16,384 H100 in 54 days, and what broke ("The Llama 3 Herd of Models", 2024,
table 5; the counts sum to 419, the share printed there for the first row does not fit its count)."""

# Rates are per node of eight. Repair medians are assumptions.
LLAMA3_NODE_RATES: tuple[FaultRate, ...] = (
    FaultRate("gpu", 148 / (2048 * 54), 1800),
    FaultRate("memory", 72 / (2048 * 54), 1800),
    FaultRate("network", 35 / (2048 * 54), 900),
    FaultRate("other", 164 / (2048 * 54), 600),
)


def stream(seed: int, *names: str) -> random.Random:
    """A random stream of its own for these names; the same under any hash seed."""
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def schedule(
    components: Iterable[str], rates: Iterable[FaultRate], horizon_us: int, seed: int
) -> tuple[Fault, ...]:
    """Every fault before ``horizon_us``, in time order. What is in repair does not break again."""
    faults: list[Fault] = []
    for component in sorted(components):
        for rate in rates:
            if rate.per_day <= 0:
                continue
            draw = stream(seed, component, rate.kind)
            at_us = 0
            while True:
                at_us += max(1, round(draw.expovariate(rate.per_day) * 86_400e6))
                if at_us >= horizon_us:
                    break
                repair = rate.repair_median_s * math.exp(draw.gauss(0.0, rate.repair_sigma))
                faults.append(Fault(at_us, component, rate.kind, round(repair * 1e6)))
                at_us += round(repair * 1e6)
    return tuple(sorted(faults))


def llama3_rates(accelerators_per_node: int) -> tuple[FaultRate, ...]:
    """The table as rates per node, one per row; each stops a job. Repairs (half an hour, a quarter for
    what is only restarted) are assumptions."""
    nodes_days = LLAMA3_GPUS / accelerators_per_node * LLAMA3_DAYS
    return tuple(
        FaultRate(kind, count / nodes_days, 900.0 if cause == "job" else 1800.0)
        for kind, cause, count in LLAMA3_INTERRUPTIONS
    )


@dataclass(frozen=True, slots=True)
class SharedPart:
    """A part that takes several nodes down with it: a tray, a rack, a switch, a power feed."""

    name: str
    nodes: tuple[str, ...]
    rates: tuple[FaultRate, ...]


RACK_RATES = (FaultRate("rack power shelf", 1 / 900, 7200.0), FaultRate("rack cooling", 1 / 1500, 14_400.0))
SWITCH_RATES = (FaultRate("leaf switch", 1 / 700, 3600.0),)
FEED_RATES = (FaultRate("sag without UPS", 1 / 45, 900.0, 0.4),)
"""Assumptions, not measured: a rack's shelves fail once in 900 days, a leaf once in 700, and a feed
without an uninterruptible supply sees a sag deep enough to reset its racks eight times a year."""


def correlated(parts: Iterable[SharedPart], horizon_us: int, seed: int) -> tuple[Fault, ...]:
    """Faults of shared parts, each of which names all nodes that go down."""
    found: list[Fault] = []
    for part in sorted(parts, key=lambda part: part.name):
        for fault in schedule([part.name], part.rates, horizon_us, seed):
            found.append(replace(fault, nodes=part.nodes))  # noqa: PERF401
    return tuple(sorted(found))


def shared_parts(nodes: Iterable[Node], feeds: int) -> tuple[SharedPart, ...]:
    """Racks, their leaf switches, and power feeds over which the racks of each site are spread in order.

    A rack is a leaf's domain here; ``feeds`` of a site have no uninterruptible supply.
    """
    racks: dict[tuple[str, str], list[str]] = {}
    for node in nodes:
        racks.setdefault((node.site, node.rack), []).append(node.id)
    parts = [
        SharedPart(f"{kind} {site}/{rack}", tuple(held), rates)
        for (site, rack), held in sorted(racks.items())
        for kind, rates in (("rack", RACK_RATES), ("leaf", SWITCH_RATES))
    ]
    for site in sorted({site for site, _ in racks}):
        names = [rack for where, rack in sorted(racks) if where == site]
        for feed in range(feeds):
            fed = [node for rack in names[feed::feeds] for node in racks[site, rack]]
            if fed:
                parts.append(SharedPart(f"feed {site}/{feed}", tuple(fed), FEED_RATES))
    return tuple(parts)
