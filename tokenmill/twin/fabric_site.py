"""The fabrics that a factory file states, planned over its nodes; and tables that others published."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass

from tokenmill.domain.errors import DataError
from tokenmill.domain.factory import Fabric, Factory, Node
from tokenmill.spec.catalogue import Catalogue, SwitchType, catalogue
from tokenmill.twin.fabric_plan import Endpoints, FabricPlan, Loss, PublishedRow, nvlink_losses, plan

COLUMNS = ("name", "switch", "nodes", "rails", "planes", "gbit_s", "accelerators", "leaves", "spines")
MAX_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class NvlinkPlan:
    """The NVLink domains of a site's racks: equal ones, and what each switch tray carries."""

    name: str
    domains: int
    accelerators: int  # of one domain
    switch_trays: int  # of one domain
    losses: tuple[Loss, ...]


@dataclass(frozen=True, slots=True)
class SitePlan:
    site: str
    nodes: int
    accelerators: int
    fabrics: tuple[FabricPlan, ...]
    nvlink: tuple[NvlinkPlan, ...]
    left_out: tuple[str, ...]  # fabrics that are not planned, and why


def site_plans(factory: Factory, spines: int | None = None) -> tuple[SitePlan, ...]:
    """Every site's fabrics. ``spines`` replaces the number that would balance, in those of accelerators.

    Raises ``DataError`` for nodes that do not fit, or when no site states nodes and a fabric of switches.
    """
    known = catalogue(factory.types)
    plans = []
    for site in factory.sites:
        nodes = [node for node in factory.nodes if node.site == site.name]
        stated = [fabric for fabric in factory.fabrics if fabric.site == site.name]
        if nodes and stated:
            plans.append(_site(site.name, nodes, stated, known, spines))
    if not plans:
        raise DataError(
            "no site has nodes and fabrics to plan",
            expected="`racks` or `nodes`, and `fabrics`, in a site document",
            fix="fabrics: [{name: compute, type: infiniband, bandwidth: 800Gbit/s}]",
        )
    return tuple(plans)


def _site(
    site: str, nodes: list[Node], stated: list[Fabric], known: Catalogue, spines: int | None
) -> SitePlan:
    fabrics, nvlink, left_out = [], [], []
    for fabric in stated:
        if fabric.kind == "nvlink":
            nvlink += _nvlink(fabric, nodes, known)
        elif fabric.kind == "wan":
            left_out.append(f"{fabric.name}: a WAN has no leaves")
        else:
            ends = _ends(fabric, nodes)
            switch = known.switches[fabric.switch] if fabric.switch else _switch(fabric, ends, known)
            fabrics.append(plan(fabric.name, ends, switch, spines if fabric.kind == "infiniband" else None))
    accelerators = sum(len(node.accelerators) for node in nodes)
    return SitePlan(site, len(nodes), accelerators, tuple(fabrics), tuple(nvlink), tuple(left_out))


def _ends(fabric: Fabric, nodes: list[Node]) -> Endpoints:
    """Nodes with accelerators hang on InfiniBand, all on Ethernet; every node is wired as the largest one."""
    wired = [node for node in nodes if node.accelerators] if fabric.kind == "infiniband" else nodes
    if not wired:
        raise DataError(f"{fabric.name}: no node of {fabric.site} has accelerators", expected="racks of them")
    rails = fabric.rails or (
        max(len(node.accelerators) for node in wired) if fabric.kind == "infiniband" else 1
    )
    return Endpoints(len(wired), rails, fabric.gbit_s, fabric.planes)


def _switch(fabric: Fabric, ends: Endpoints, known: Catalogue) -> SwitchType:
    """The slowest switch of the fabric's kind whose ports carry an adapter's; most ports among those."""
    fitting = [
        switch
        for switch in known.switches.values()
        if switch.fabric == fabric.kind and switch.gbit_s % ends.port_gbit_s == 0
    ]
    if not fitting:
        names = ", ".join(
            f"{switch.id} ({switch.gbit_s:g} Gbit/s)"
            for switch in known.switches.values()
            if switch.fabric == fabric.kind
        )
        raise DataError(
            f"{fabric.name}: no switch of the catalogue has ports of {ends.port_gbit_s:g} Gbit/s",
            expected=f"a bandwidth of one of: {names}",
        )
    return min(fitting, key=lambda switch: (switch.gbit_s, -switch.ports, switch.id))


def _nvlink(fabric: Fabric, nodes: list[Node], known: Catalogue) -> list[NvlinkPlan]:
    """Equal domains together; only those of racks with switch trays in the catalogue."""
    domains: dict[str, list[Node]] = {}
    for node in nodes:
        if node.domain and node.accelerators:
            domains.setdefault(node.domain, []).append(node)
    trays: dict[str, int] = {}
    for rack in known.racks.values():
        kind = known.nodes[rack.node].accelerator
        trays[kind] = max(trays.get(kind, 0), rack.switch_trays)
    alike: dict[tuple[int, int], int] = {}
    for held in domains.values():
        shape = (
            sum(len(node.accelerators) for node in held),
            trays.get(held[0].accelerators[0].kind, 0),
        )
        alike[shape] = alike.get(shape, 0) + 1
    return [
        NvlinkPlan(fabric.name, count, size, switches, nvlink_losses(count, switches, size))
        for (size, switches), count in sorted(alike.items())
        if switches
    ]


def read_published(lines: Iterable[str], file: str) -> tuple[PublishedRow, ...]:
    """A CSV table with ``COLUMNS``. Raises ``DataError`` with file, line and field."""
    rows: list[PublishedRow] = []
    header: list[str] = []
    for number, line in enumerate(lines, 1):
        where = f"{file}:{number}"
        if not line.strip() or line.startswith("#"):
            continue
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        if not header:
            header = cells
            if sorted(header) != sorted(COLUMNS):
                raise DataError(
                    "the header is not that of a table of fabrics", expected=",".join(COLUMNS), where=where
                )
            continue
        if len(cells) != len(header):
            raise DataError(
                f"the row has {len(cells)} fields", expected=f"{len(header)}: {','.join(header)}", where=where
            )
        if len(rows) == MAX_ROWS:
            raise DataError("too many rows", expected=f"at most {MAX_ROWS}", where=where)
        rows.append(_row(dict(zip(header, cells, strict=True)), where))
    if not rows:
        raise DataError(f"{file} holds no rows", expected=f"a header and rows: {','.join(COLUMNS)}")
    return tuple(rows)


def _row(cells: dict[str, str], where: str) -> PublishedRow:
    counts: dict[str, float] = {}
    for field in COLUMNS[2:]:
        try:
            value = float(cells[field])
        except ValueError:
            value = -1.0
        if not 0 < value < 1e9 or (field != "gbit_s" and value != int(value)):
            expected = "a number above 0" if field == "gbit_s" else "a whole number above 0"
            raise DataError(f"{field} is {cells[field]!r}", expected=expected, where=where)
        counts[field] = value
    nodes, rails, planes, accelerators, leaves, spines = (
        int(counts[field]) for field in ("nodes", "rails", "planes", "accelerators", "leaves", "spines")
    )
    return PublishedRow(
        cells["name"], cells["switch"], nodes, rails, planes, counts["gbit_s"], accelerators, leaves, spines,
        where,
    )  # fmt: skip
