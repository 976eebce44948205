"""Leaf and spine switches of a fabric, its cables, and the bandwidth that is left after each single failure.

Two tiers, without oversubscription, rail-optimised: port r of every node hangs on leaves of rail r, so that
accelerators of equal number reach each other over one leaf. With more planes each adapter has a port in every
plane and each plane is a fabric of its own. Arithmetic on ports only: no routing, no congestion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tokenmill.domain.errors import DataError
from tokenmill.spec.catalogue import SwitchType


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What hangs on a fabric: ``rails`` adapters a node, each with ``gbit_s`` in all ``planes`` together."""

    nodes: int
    rails: int
    gbit_s: float
    planes: int = 1

    def __post_init__(self) -> None:
        """Raise ``DataError`` that names the field of a count or rate that is not above zero."""
        for name, value in (
            ("nodes", self.nodes),
            ("rails", self.rails),
            ("planes", self.planes),
            ("gbit_s", self.gbit_s),
        ):
            if not 0 < value < 1e9:  # false for NaN
                raise DataError(f"fabric: {name} is {value}", expected="more than 0")

    @property
    def port_gbit_s(self) -> float:
        return self.gbit_s / self.planes


@dataclass(frozen=True, slots=True)
class Loss:
    """One failure: ``adapters`` are hit, each keeps ``adapter_left`` of its bandwidth, a node ``node_left``.

    ``fabric_left`` is what all adapters together keep; of spines, what they may send between leaves.
    """

    what: str
    count: int  # of such parts in the fabric
    adapters: int
    adapter_left: float
    node_left: float
    fabric_left: float


@dataclass(frozen=True, slots=True)
class FabricPlan:
    """Counts are of all planes together, but for ``uplinks`` and ``links``: those of one leaf.

    ``links`` are the fewest and most links between a leaf and a spine. Traffic is spread evenly over spines,
    so that unequal links leave only ``usable`` of a leaf's uplinks. ``spines_by_ports`` have ports for all.
    """

    name: str
    switch: SwitchType
    ends: Endpoints
    leaves: int
    spines: int
    spines_by_ports: int
    uplinks: int
    links: tuple[int, int]
    node_cables: int
    spine_cables: int
    losses: tuple[Loss, ...] = ()

    @property
    def balanced(self) -> bool:
        return self.links[0] == self.links[1]

    @property
    def usable(self) -> float:
        if not self.spines:
            return 1.0
        return self.links[0] * (self.spines // self.ends.planes) / self.uplinks


def ports_of(switch: SwitchType, port_gbit_s: float) -> int:
    """Ports of a switch at this rate; a faster port is split. Raises ``DataError`` when it cannot be."""
    split = switch.gbit_s / port_gbit_s
    if split < 1 or split != int(split):
        raise DataError(
            f"ports of {switch.id} have {switch.gbit_s:g} Gbit/s, adapters {port_gbit_s:g} Gbit/s",
            expected="a switch whose ports are as fast, or a whole number of times faster",
        )
    return switch.ports * int(split)


def plan(name: str, ends: Endpoints, switch: SwitchType, spines: int | None = None) -> FabricPlan:
    """The fewest leaves and, unless ``spines`` (of all planes) are given, the fewest spines that balance.

    Raises ``DataError`` when two tiers are too small, or ``spines`` have too few ports.
    """
    ports = ports_of(switch, ends.port_gbit_s)
    down = ports // 2
    leaves = ends.rails * -(-ends.nodes // down)
    most = ports // ends.rails * down
    if leaves > ports:
        raise DataError(
            f"{name}: {ends.nodes} nodes of {ends.rails} rails do not fit two tiers of {switch.id}",
            expected=f"at most {most} nodes",
            fix="Use a switch with more ports, more planes, or several sites.",
        )
    behind = min(ends.nodes, down)  # adapters on a full leaf, and so many uplinks at least
    least = -(-leaves * behind // ports) if leaves > 1 else 0
    chosen = _balanced(leaves, behind, ports) if spines is None else -(-spines // ends.planes)
    if chosen < least:
        balanced = _balanced(leaves, behind, ports) * ends.planes
        raise DataError(
            f"{name}: {spines} spines have too few ports for {leaves * ends.planes} leaves",
            expected=f"at least {least * ends.planes}, and {balanced} to balance",
        )
    even = _even(leaves, behind, ports, chosen) if chosen else 0
    links = (even, even) if even or not chosen else (behind // chosen, -(-behind // chosen))
    uplinks = max(behind, even * chosen)
    cables = leaves * uplinks * ends.planes if chosen else 0
    found = FabricPlan(
        name, switch, ends, leaves * ends.planes, chosen * ends.planes, least * ends.planes, uplinks, links,
        ends.nodes * ends.rails * ends.planes, cables,
    )  # fmt: skip
    return replace(found, losses=_losses(found, behind))


def _balanced(leaves: int, behind: int, ports: int) -> int:
    """The fewest spines that every leaf reaches evenly with an uplink for each adapter; none for one leaf."""
    if leaves == 1:
        return 0
    return next(spines for spines in range(1, behind + 1) if _even(leaves, behind, ports, spines))


def _even(leaves: int, behind: int, ports: int, spines: int) -> int:
    """Links from every leaf to every spine that carry all adapters, if ports suffice, else 0. A leaf that is
    not full has ports for more uplinks than adapters."""
    links = -(-behind // spines)
    return links if links * spines <= ports // 2 and leaves * links <= ports else 0


def _losses(found: FabricPlan, behind: int) -> tuple[Loss, ...]:
    """Every kind of single failure; ``behind`` adapters hang on a full leaf."""
    ends = found.ends
    adapters = ends.nodes * ends.rails
    plane = 1 / ends.planes  # what one port is of its adapter
    port = Loss(
        "cable or port of an adapter", found.node_cables, 1, 1 - plane, 1 - plane / ends.rails,
        1 - plane / adapters,
    )  # fmt: skip
    adapter = Loss("adapter", adapters, 1, 0.0, 1 - 1 / ends.rails, 1 - 1 / adapters)
    leaf = Loss(
        "leaf switch", found.leaves, behind, 1 - plane, 1 - plane / ends.rails, 1 - plane * behind / adapters
    )
    if not found.spines:
        return (port, adapter, leaf)
    cable, spine = (plane * max(0.0, 1 - (found.uplinks - part) / behind) for part in (1, found.links[1]))
    return (
        port,
        adapter,
        leaf,
        Loss("cable of a spine", found.spine_cables, behind, 1 - cable, 1 - cable / ends.rails,
             1 - cable * behind / adapters),
        Loss("spine switch", found.spines, adapters, 1 - spine, 1 - spine, 1 - spine),
    )  # fmt: skip


def nvlink_losses(racks: int, switch_trays: int, accelerators: int) -> tuple[Loss, ...]:
    """Of NVLink domains whose accelerators have equal links to every switch tray: one tray is lost."""
    left = 1 - 1 / switch_trays
    whole = 1 - 1 / (switch_trays * racks)
    return (Loss("NVLink switch tray", racks * switch_trays, accelerators, left, left, whole),)


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """A row of somebody's table of fabrics: what it says of a size. ``where`` is its file and line."""

    name: str
    switch: str
    nodes: int
    rails: int
    planes: int
    gbit_s: float
    accelerators: int
    leaves: int
    spines: int
    where: str = ""


def check(row: PublishedRow, switches: Mapping[str, SwitchType]) -> tuple[str, ...]:
    """Everything in a published row that does not add up, in words; empty when it does."""
    if row.switch not in switches:
        known = ", ".join(sorted(switches))
        raise DataError(f"there is no switch {row.switch!r}", expected=f"one of: {known}", where=row.where)
    found: list[str] = []
    ends = Endpoints(row.nodes, row.rails, row.gbit_s, row.planes)
    held = row.nodes * row.rails
    if row.accelerators != held:
        found.append(f"says {row.accelerators:,} accelerators; {row.nodes} nodes of {row.rails} are {held:,}")
    try:
        made = plan(row.name, ends, switches[row.switch])
        if row.leaves != made.leaves:
            found.append(f"says {row.leaves} leaves; {held:,} ports in {row.rails} rails need {made.leaves}")
        given = plan(row.name, ends, switches[row.switch], row.spines)
    except DataError as error:
        return (*found, f"{error.problem.message}; expected {error.problem.expected}")
    if not given.balanced:
        found.append(
            f"{row.spines} spines have ports enough, but {given.uplinks} uplinks of a leaf are "
            f"{given.links[0]} or {given.links[1]} to each: {given.usable:.0%} usable; {made.spines} balance"
        )
    return tuple(found)
