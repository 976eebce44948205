"""What the nodes of a rehearsed day draw beside serving, whose energy the step tables have.

By the nodes that are used, each with its own figures: those that the factory file states or that its type
has, else those of its accelerators alone. A node of which neither is known counts as nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tokenmill.control.state import State
from tokenmill.domain.catalogue import AcceleratorType
from tokenmill.domain.factory import Node

TRAINING_SHARE = 0.8
"""Of the power between idle and maximum that an accelerator draws while it trains. Assumed."""


@dataclass(frozen=True, slots=True)
class Power:
    """``kinds`` are accelerators by name. ``cap_w`` is of all sites, PUE included; 0 is no cap."""

    kinds: Mapping[str, AcceleratorType] = field(default_factory=dict)
    pue: float = 1.2
    cap_w: float = 0.0

    def idle_w(self, node: Node) -> float:
        """Watts of a node that holds nothing."""
        return node.idle_mw / 1000 or math.fsum(kind.idle_w for kind in self._held(node))

    def training_w(self, node: Node) -> float:
        """Watts of one of its accelerators that trains, with that one's share of the node."""
        most_w = node.power_mw / 1000 or math.fsum(kind.max_w for kind in self._held(node))
        idle_w, count = self.idle_w(node), len(node.accelerators)
        return (idle_w + TRAINING_SHARE * max(0.0, most_w - idle_w)) / count if count else 0.0

    def _held(self, node: Node) -> list[AcceleratorType]:
        return [self.kinds[one.kind] for one in node.accelerators if one.kind in self.kinds]


def unheld_w(power: Power, state: State) -> float:
    """Of accelerators that are up and that nothing holds, with their share of their node: who holds two of
    its eight answers for a quarter."""
    held: dict[str, int] = {}
    for lease in state.leases.values():
        held[lease.node] = held.get(lease.node, 0) + len(lease.accelerators)
    worth: dict[float, float] = {}  # nodes by what one draws
    for known in state.nodes.values():
        if not known.lost:
            node, count = known.node, len(known.node.accelerators)
            share = held.get(node.id, 0) / count if count else float(node.id in held)
            idle_w = power.idle_w(node)
            worth[idle_w] = worth.get(idle_w, 0.0) + 1 - share
    return math.fsum(idle_w * nodes for idle_w, nodes in worth.items())


def training_w(power: Power, state: State, running: Iterable[str]) -> float:
    """Of the accelerators that these jobs hold."""
    jobs = set(running)
    busy: dict[str, int] = {}
    for lease in state.leases.values() if jobs else ():
        if lease.owner in jobs:
            busy[lease.node] = busy.get(lease.node, 0) + len(lease.accelerators)
    return math.fsum(count * power.training_w(state.nodes[name].node) for name, count in sorted(busy.items()))
