"""Power of nodes and sites from how busy they are, and energy as its integral.

Accelerators go linearly from idle to their maximum with utilisation, nodes add their overhead and a site
its power usage effectiveness. Power that no figure is known for is stated as unknown, not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tokenmill.domain.catalogue import SERVER_LOSS, beside_w
from tokenmill.domain.factory import Node
from tokenmill.spec.catalogue import Catalogue

CPU_IDLE_W = 5.0
CPU_ACTIVE_W_PER_CORE = 10.0
"""Used where a node has no accelerator: the same assumption as the settings of these names."""


RUNNING_SHARE, MEMORY_SHARE, COMPUTE_SHARE = 0.54, 0.20, 1.04
"""Of the power between idle and maximum: what an accelerator draws for running kernels at all, and on top of
that at the full rate of its memory and of its matrix units (data sheet, the precision in use). Fitted by
``bench/accuracy.py`` to GPU power of 639 vLLM deployments on H100 and B200 (ML.ENERGY, 2026-02)."""

SERVER_BASE_W = 1400.0
"""Of a server with eight B200: watts beside its accelerators and ``SERVER_LOSS``, from the same fit."""


def busy_share(memory: float, compute: float) -> float:
    """Of the power between idle and maximum, at these shares of an accelerator's data-sheet rates."""
    return min(1.0, RUNNING_SHARE + MEMORY_SHARE * memory + COMPUTE_SHARE * compute)


def server_w(accelerators_w: float) -> float:
    """Wall power of a server with eight B200 whose accelerators draw this much together."""
    return SERVER_BASE_W + (1 + SERVER_LOSS) * accelerators_w


@dataclass(frozen=True, slots=True)
class PowerModel:
    """``cpu_*`` are watts of a machine without a known type; see ``spec.settings``."""

    known: Catalogue
    cpu_idle_w: float = CPU_IDLE_W
    cpu_active_w_per_core: float = CPU_ACTIVE_W_PER_CORE

    def accelerator_w(self, kind: str, utilisation: float) -> float:
        """Watts of one accelerator of the catalogue at a utilisation of 0 to 1."""
        known = self.known.accelerators[kind]
        return known.idle_w + (known.max_w - known.idle_w) * min(1.0, max(0.0, utilisation))

    def node_w(self, node: Node, utilisation: float, busy_accelerators: int | None = None) -> float:
        """Watts of a node whose work keeps it busy for ``utilisation`` of the time.

        ``busy_accelerators`` of its accelerators share that work, all when None; the rest idle. A node that
        says what it draws is believed.
        """
        busy = len(node.accelerators) if busy_accelerators is None else busy_accelerators
        if node.power_mw:
            share = busy / len(node.accelerators) if node.accelerators else 1.0
            spare = (node.power_mw - node.idle_mw) * share * min(1.0, max(0.0, utilisation))
            return (node.idle_mw + spare) / 1000
        if not node.accelerators:
            cores = node.cpu_millis / 1000
            return self.cpu_idle_w + self.cpu_active_w_per_core * cores * min(1.0, max(0.0, utilisation))
        overhead = max(
            (t.overhead_w for t in self.known.nodes.values() if t.accelerator == node.accelerators[0].kind),
            default=0,
        )
        drawn_w = math.fsum(
            self.accelerator_w(one.kind, utilisation if number < busy else 0.0)
            for number, one in enumerate(node.accelerators)
        )
        most_w = math.fsum(self.accelerator_w(one.kind, 1.0) for one in node.accelerators)
        return beside_w(overhead, most_w - drawn_w) + drawn_w


def site_w(node_watts: Mapping[str, float], pue_milli: int) -> float:
    """Watts that a site draws for these nodes."""
    return math.fsum(node_watts.values()) * pue_milli / 1000


@dataclass(slots=True)
class EnergyMeter:
    """Integrates power that stays constant between two changes. Times are microseconds and never go back."""

    at_us: int = 0
    joules: float = 0.0
    watts: dict[str, float] = field(default_factory=dict)

    def change(self, at_us: int, name: str, watts: float) -> None:
        """From ``at_us`` on, ``name`` draws ``watts``."""
        self.advance(at_us)
        self.watts[name] = watts

    def advance(self, at_us: int) -> None:
        """Count what was drawn until ``at_us``."""
        if at_us < self.at_us:
            raise ValueError("the meter's time went back")
        total = math.fsum(self.watts[name] for name in sorted(self.watts))
        self.joules += total * (at_us - self.at_us) / 1e6
        self.at_us = at_us
