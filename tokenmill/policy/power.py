"""Does the power suffice? What work may draw is admitted against the caps of its rack and its site.

A node draws its idle power always and, for what is held of it, a share of the rest: by accelerators where
it has any, else by CPU. That is an upper bound for work that keeps to what it asked for, so what is
admitted never exceeds a cap. Nodes whose power is not known count as nothing. Ramps are not limited here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tokenmill.domain.factory import Factory, Node
from tokenmill.domain.value import value


@value
class Cap:
    """The most that a place may draw in milliwatts; ``factor_milli`` is what a node's watt costs there."""

    name: str
    limit_mw: int
    factor_milli: int = 1000


def work_mw(node: Node, cpu_millis: int, accelerators: int) -> int:
    """What work that holds this much of a node may add to its draw."""
    spare = max(0, node.power_mw - node.idle_mw)
    if node.accelerators:
        return spare * accelerators // len(node.accelerators)
    return spare * cpu_millis // node.cpu_millis if node.cpu_millis else 0


def caps_of(factory: Factory) -> dict[str, Cap]:
    """Caps by place: ``site NAME`` and ``rack NAME``. Empty when the file states none."""
    caps = {
        f"site {site.name}": Cap(f"site {site.name}", site.power_cap_mw, site.pue_milli)
        for site in factory.sites
        if site.power_cap_mw
    }
    caps |= {f"rack {r.name}": Cap(f"rack {r.name}", r.power_cap_mw) for r in factory.racks if r.power_cap_mw}
    return caps


def places_of(node: Node) -> tuple[str, str]:
    """The places whose caps hold for a node."""
    return f"site {node.site}", f"rack {node.rack}"


def exceeded(
    caps: Mapping[str, Cap], drawn_mw: Mapping[str, int], more: Iterable[tuple[Node, int]]
) -> tuple[str, str]:
    """The first place whose cap ``more`` (node, milliwatts) would exceed, and why; empty when none."""
    after = dict(drawn_mw)
    for node, extra in more:
        for place in places_of(node):
            after[place] = after.get(place, 0) + extra
    for place, cap in sorted(caps.items()):
        draw = after.get(place, 0) * cap.factor_milli // 1000
        if draw > cap.limit_mw and after.get(place, 0) > drawn_mw.get(place, 0):
            return place, (f"{place} would draw {draw / 1e6:.1f} kW, its cap is {cap.limit_mw / 1e6:.1f} kW")
    return "", ""
