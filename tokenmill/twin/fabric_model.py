"""How long bytes take between two nodes over the factory's fabrics.

Bandwidth and latency only: no leaf, spine, rail or congestion is modelled. Transfers that share a fabric are
told how many they are and share it equally.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenmill.domain.errors import NotFoundError
from tokenmill.domain.factory import Fabric, Node

MEMORY_BYTES_S = 50e9
"""Within one node: a copy through main memory, of the order that a server reaches with one core."""


@dataclass(frozen=True, slots=True)
class FabricModel:
    fabrics: tuple[Fabric, ...]

    def between(self, source: Node, target: Node) -> Fabric | None:
        """The fastest fabric that joins two nodes; None within a node. Ties end in the fabric's name.

        NVLink joins nodes of one NVLink domain, InfiniBand and Ethernet those of one site, a WAN sites.
        Raises ``NotFoundError`` when none does.
        """
        if source.id == target.id:
            return None
        joining = [fabric for fabric in self.fabrics if _joins(fabric, source, target)]
        if not joining:
            raise NotFoundError(
                f"no fabric joins {source.id} and {target.id}",
                expected="a fabric of their site, or a wan between two sites",
                fix="Add it under `fabrics` of the site.",
            )
        return min(joining, key=lambda fabric: (-fabric.gbit_s, fabric.latency_ns, fabric.name))

    def transfer_s(self, size_bytes: int, source: Node, target: Node, sharing: int = 1) -> float:
        """Seconds to move ``size_bytes`` while ``sharing`` equal transfers use the same link."""
        fabric = self.between(source, target)
        if fabric is None:
            return size_bytes / MEMORY_BYTES_S
        return fabric.latency_ns / 1e9 + size_bytes * 8 * sharing / (fabric.gbit_s * 1e9)

    def all_reduce_s(self, size_bytes: int, nodes: Sequence[Node]) -> float:
        """A ring all-reduce: 2 (n - 1) steps of size / n, each over the slowest link of the ring."""
        count = len(nodes)
        if count < 2:
            return 0.0
        part = size_bytes // count
        slowest = max(
            self.transfer_s(part, node, nodes[(index + 1) % count]) for index, node in enumerate(nodes)
        )
        return 2 * (count - 1) * slowest


def _joins(fabric: Fabric, source: Node, target: Node) -> bool:
    if fabric.kind == "wan":
        return source.site != target.site and fabric.site in (source.site, target.site)
    if source.site != target.site or fabric.site != source.site:
        return False
    return fabric.kind != "nvlink" or (source.domain != "" and source.domain == target.domain)
