"""Does the power suffice? What work may draw is admitted against the caps of its rack and its site.

A node draws its idle power always and, for what is held of it, a share of the rest: by accelerators where
it has any, else by CPU. That is an upper bound for work that keeps to what it asked for, so what is
admitted never exceeds a cap. A node of which nobody knows what it draws takes no work under a bound.

A ramp bounds by how much the draw may rise over any time no longer than its window. What was drawn lately is
kept as a history whose values rise: the first is the least of the window, the last is the draw now. Falls are
not limited: work ends when it ends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

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


def bounded_places(factory: Factory) -> frozenset[str]:
    """Places with a cap or a ramp."""
    return frozenset((*caps_of(factory), *ramps_of(factory)))


def unknown_draw(node: Node, places: Collection[str]) -> str:
    """Why a node may take no work: nobody knows what it draws and one of these bounded places has it."""
    under = next((place for place in places_of(node) if place in places), "")
    if node.power_mw or not under:
        return ""
    return f"nobody says what it draws, and the power of {under} is bounded: it takes no work"


def places_of(node: Node) -> tuple[str, str]:
    """The places whose caps hold for a node."""
    return place_names(node.site, node.rack)


def place_names(site: str, rack: str) -> tuple[str, str]:
    """What a site and a rack are called where caps and ramps are looked up."""
    return f"site {site}", f"rack {rack}"


@value
class Ramp:
    """By how much the draw of a place may rise within ``window_us``."""

    name: str
    limit_mw: int
    window_us: int
    factor_milli: int = 1000


History = tuple[tuple[int, int], ...]
"""(since_us, milliwatts), both rising: the least that was drawn from then on until now."""


def ramps_of(factory: Factory) -> dict[str, Ramp]:
    """Ramps by place, as ``caps_of`` has caps."""
    found = {
        f"site {site.name}": Ramp(f"site {site.name}", site.ramp_mw, site.ramp_us, site.pue_milli)
        for site in factory.sites
        if site.ramp_mw
    }
    racks = [rack for rack in factory.racks if rack.ramp_mw]
    return found | {f"rack {r.name}": Ramp(f"rack {r.name}", r.ramp_mw, r.ramp_us) for r in racks}


def remembered(history: History, now_us: int, draw_mw: int, window_us: int) -> History:
    """The history with what is drawn now, without what is older than the window. A clock that was set back
    makes what it has seen look as recent as it can be.
    """
    kept = [(min(at_us, now_us), mw) for at_us, mw in history if mw < draw_mw]
    since_us = history[len(kept)][0] if len(kept) < len(history) else now_us  # nothing less since then
    kept.append((min(since_us, now_us), draw_mw))
    first = 0
    while first + 1 < len(kept) and kept[first + 1][0] + window_us <= now_us:
        first += 1
    return tuple(kept[first:])


def steeper(
    ramps: Mapping[str, Ramp],
    drawn_mw: Mapping[str, int],
    least_mw: Mapping[str, int],
    more: Iterable[tuple[Node, int]],
) -> tuple[str, str]:
    """The first place whose ramp ``more`` would exceed over the least draw of its window, and why."""
    added: dict[str, int] = {}
    for node, extra in more:
        for place in places_of(node):
            added[place] = added.get(place, 0) + extra
    for place, ramp in sorted(ramps.items()):
        extra, drawn = added.get(place, 0), drawn_mw.get(place, 0)
        rise = (drawn + extra - min(drawn, least_mw.get(place, drawn))) * ramp.factor_milli // 1000
        if extra and rise > ramp.limit_mw:
            alone = extra * ramp.factor_milli // 1000
            never = ", so it cannot start while this limit stands" if alone > ramp.limit_mw else ""
            return place, (
                f"{place} would rise by {_kw(rise)} within {ramp.window_us / 1e6:g} s, "
                f"{_kw(alone)} of it by this; it may by {_kw(ramp.limit_mw)}{never}"
            )
    return "", ""


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
            return place, f"{place} would draw {_kw(draw)}, its cap is {_kw(cap.limit_mw)}"
    return "", ""


def _kw(power_mw: int) -> str:
    """To the watt, so that what exceeds a bound by little does not look like it."""
    return f"{round(power_mw / 1e6, 3):,} kW"
