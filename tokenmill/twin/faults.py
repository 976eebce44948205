"""What breaks when: seeded Poisson failures per component with log-normal repairs.

Each component and kind has its own random stream, made from the seed and its name, so one more component does
not move the faults of the others. Correlated faults (a rack's power, a leaf) are components of their own.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass


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


# 419 interruptions of 16,384 GPUs in 54 days, of which 148 were GPUs, 72 HBM, 35 network
# (Llama 3 paper, table 5); rates are per node of eight. Repair medians are assumptions.
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
