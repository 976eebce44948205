"""Is a node slow? By what its workers need for the same work as the others of their gang, and not by once.

A gang waits for its slowest worker, so the duration of a step says nothing about who that is: workers report
the time of their own work, before they wait. Who is found slow is taken out only where the work can spare
the node; that the caller finds out, by ``policy.place``.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.domain.factory import Node

SLOW_MILLI = 1250
"""Own time by the gang's median, in thousandths, from which a worker counts as slow."""

STRIKES = 3
"""Reports in a row that make a node slow: a neighbour's burst passes, a throttled GPU stays."""

OUT_SHARE = 20
"""One node of so many may be out for slowness at a time; on a small floor one."""

AGAIN_US = 86_400_000_000
"""A node that is found slow again within a day of passing its test waits for a person."""


def slowest(nodes: Sequence[str], median_us: int, slow: Sequence[tuple[int, int]]) -> dict[str, int]:
    """Nodes whose workers are slow by this report: how slow, in thousandths of the gang's median.

    ``nodes`` is one per worker. Empty for a gang on one node, which has nobody to be compared with.
    """
    found: dict[str, int] = {}
    if median_us <= 0 or len(dict.fromkeys(nodes)) < 2:
        return found
    for rank, own_us in slow:
        milli = own_us * 1000 // median_us
        if 0 <= rank < len(nodes) and milli >= SLOW_MILLI:
            found[nodes[rank]] = max(milli, found.get(nodes[rank], 0))
    return found


def comparable(nodes: Sequence[Node], accelerators: int) -> bool:
    """Whether the same work should take the same time on all of these nodes: GPUs of one kind."""
    kinds = [tuple(sorted(dict.fromkeys(card.kind for card in node.accelerators))) for node in nodes]
    return not accelerators or len(dict.fromkeys(kinds)) == 1


def out_most(nodes: int) -> int:
    """How many nodes of a floor may be out for slowness at a time."""
    return max(1, nodes // OUT_SHARE)
