"""Plots as inline SVG for pages that load nothing: lines over time, stacked bars, meters.

Every series has a dash pattern and a label at its end, every part of a bar a hatching and its number, so that
nothing depends on colour. Colours come from the page's style by class. Nothing here knows what is plotted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 620, 264
LEFT, RIGHT, TOP, BOTTOM = 54, 112, 14, 30
MOST_POINTS = 360
LABEL_GAP = 15
KINDS = 6
LETTER = 7.0  # a letter of the bars' labels, at most, in the plot's units


@dataclass(frozen=True, slots=True)
class Line:
    """``values`` over the plot's hours; ``kind`` chooses colour and dashes. ``area`` fills below."""

    name: str
    values: Sequence[float]
    kind: int = 0
    area: bool = False


@dataclass(frozen=True, slots=True)
class Limit:
    """A level that is not to be passed."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Axes:
    """Where values lie. ``low`` is above zero on a logarithmic axis."""

    hours: float
    low: float
    high: float
    log: bool = False

    def x(self, hour: float) -> float:
        return LEFT + hour / self.hours * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - BOTTOM - TOP)


def short(value: float) -> str:
    """1,234,000 as 1.23M."""
    size = abs(value)
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size >= factor * 0.9995:
            return f"{_digits(value / factor)}{unit}"
    return _digits(value)


def _digits(value: float) -> str:
    """Three digits that say something, without zeros behind the point."""
    if value == 0:
        return "0"
    text = f"{value:.3g}"
    return f"{float(text):.0f}" if "e" in text else text


def thinned(values: Sequence[float], *, most: bool = False) -> list[float]:
    """At most ``MOST_POINTS``: means of equal stretches, or the largest of each."""
    step = -(-len(values) // MOST_POINTS)
    parts = [values[at : at + step] for at in range(0, len(values), step)] if step > 1 else []
    if not parts:
        return list(values)
    return [max(part) if most else math.fsum(part) / len(part) for part in parts]


def line_plot(
    label: str, hours: float, lines: Sequence[Line], limits: Sequence[Limit] = (), *, log: bool = False
) -> str:
    """Lines from hour 0 to ``hours``; ``label`` is read aloud."""
    axes = _axes(hours, lines, limits, log=log)
    parts = [_grid(axes), _hours(axes)]
    ends = []
    for one in lines:
        if not one.values:
            continue
        kept = [(axes.x((i + 0.5) / len(one.values) * hours), axes.y(v)) for i, v in enumerate(one.values)]
        path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in kept)
        if one.area:
            floor = HEIGHT - BOTTOM
            parts.append(
                f'<path class="area k{one.kind % KINDS}" '
                f'd="{path} L{kept[-1][0]:.1f} {floor} L{kept[0][0]:.1f} {floor} Z"/>'
            )
        parts.append(f'<path class="line k{one.kind % KINDS}" d="{path}"/>')
        ends.append((kept[-1][1], one.name, f"k{one.kind % KINDS}"))
    for limit in limits:
        y = axes.y(limit.value)
        parts.append(f'<path class="limit" d="M{LEFT} {y:.1f} H{WIDTH - RIGHT}"/>')
        ends.append((y, limit.name, "is-limit"))
    parts += _labels(ends)
    return _svg("plot", label, WIDTH, HEIGHT, "".join(parts))


def _axes(hours: float, lines: Sequence[Line], limits: Sequence[Limit], *, log: bool) -> Axes:
    values = [v for one in lines for v in one.values] + [limit.value for limit in limits]
    top = max(values, default=0.0)
    if not log:
        return Axes(hours, 0.0, nice(top) if top > 0 else 1.0)
    above = [v for v in values if v > 0]
    low = 10.0 ** math.floor(math.log10(min(above))) if above else 0.1
    high = 10.0 ** math.ceil(math.log10(max(above)) - 1e-9) if above else 1.0
    return Axes(hours, low, max(high, low * 10), log=True)


def nice(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 4, 5, 6, 8 or 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if value <= step * power * 1.000001)


def _grid(axes: Axes) -> str:
    if axes.log:
        count = round(math.log10(axes.high / axes.low))
        ticks = [axes.low * 10**n for n in range(count + 1)]
    else:
        ticks = [axes.low + (axes.high - axes.low) * n / 4 for n in range(5)]
    return "".join(
        f'<path class="grid" d="M{LEFT} {axes.y(tick):.1f} H{WIDTH - RIGHT}"/>'
        f'<text class="tick" x="{LEFT - 8}" y="{axes.y(tick) + 4:.1f}" text-anchor="end">{short(tick)}</text>'
        for tick in ticks
    )


def _hours(axes: Axes) -> str:
    """Ticks along the bottom, in hours or, for less than two of them, in minutes."""
    span, unit = (axes.hours, "h") if axes.hours >= 2 else (axes.hours * 60, "min")
    step = next(s for s in (0.5, 1, 2, 3, 4, 6, 10, 12, 15, 24, 48, 96, 168, 1e9) if span / s <= 8)
    ticks, at = [], 0.0
    while at <= span * 1.0001:
        x = axes.x(at / span * axes.hours)
        name = f"{short(at)} {unit}" if at == 0 else short(at)
        ticks.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{name}</text>')
        at += step
    return "".join(ticks)


def _labels(ends: Sequence[tuple[float, str, str]]) -> list[str]:
    """Names beside the ends of their lines, pushed apart where they would cover each other."""
    ordered = sorted(ends)
    places: list[float] = []
    for y, _, _ in ordered:
        places.append(max(y, places[-1] + LABEL_GAP) if places else y)
    over = places[-1] - (HEIGHT - BOTTOM) if places else 0.0
    for at in range(len(places) - 1, -1, -1):
        limit = places[at + 1] - LABEL_GAP if at + 1 < len(places) else HEIGHT - BOTTOM
        places[at] = min(places[at], limit) if over > 0 else places[at]
    x = WIDTH - RIGHT
    return [
        f'<path class="key {kind}" d="M{x + 3} {place:.1f} h16"/>'
        f'<text class="name" x="{x + 23}" y="{place + 4:.1f}">{escape(name)}</text>'
        for place, (_, name, kind) in zip(places, ordered, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a bar; ``kind`` 0 is what was wanted, the others are hatched."""

    name: str
    value: float
    kind: int


def stacked_bars(label: str, rows: Sequence[tuple[str, Sequence[Part]]], unit: str) -> str:
    """One bar of 100 % for each row; parts too thin for their number have it in the table beside."""
    left, right, tall, gap = 96, 12, 26, 20
    width = WIDTH - left - right
    parts = []
    for number, (name, pieces) in enumerate(rows):
        y = 10 + number * (tall + gap)
        whole = math.fsum(piece.value for piece in pieces) or 1.0
        parts.append(
            f'<text class="name" x="{left - 10}" y="{y + 17}" text-anchor="end">{escape(name)}</text>'
        )
        x = float(left)
        for piece in pieces:
            wide = piece.value / whole * width
            if wide <= 0:
                continue
            said = f"{piece.name}: {short(piece.value)} {unit} ({piece.value / whole:.2%})"
            parts.append(
                f'<rect class="part h{piece.kind}" x="{x:.1f}" y="{y}" '
                f'width="{max(wide, 0.8):.1f}" height="{tall}">'
                f"<title>{escape(said)}</title></rect>"
            )
            text = f"{piece.name} {piece.value / whole:.1%}"
            if wide > 16 + LETTER * len(text):
                parts.append(
                    f'<text class="inside h{piece.kind}" x="{x + 8:.1f}" y="{y + 17}">{escape(text)}</text>'
                )
            x += wide
    return _svg("bars", label, WIDTH, 10 + len(rows) * (tall + gap), "".join(parts))


def meters(label: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """Shares as bars from 0 to 100 %, each with its name, number and what it means."""
    left, right, tall, gap = 128, 70, 16, 30
    width = WIDTH - left - right
    parts = []
    for number, (name, share, note) in enumerate(rows):
        y = 12 + number * (tall + gap)
        last = " whole" if number == len(rows) - 1 else ""
        parts.append(
            f'<text class="name strong" x="0" y="{y + 13}">{escape(name)}</text>'
            f'<rect class="track" x="{left}" y="{y}" width="{width}" height="{tall}" rx="4"/>'
            f'<rect class="fill{last}" x="{left}" y="{y}" '
            f'width="{max(2.0, share * width):.1f}" height="{tall}" rx="4"/>'
            f'<text class="name strong" x="{WIDTH - right + 10}" y="{y + 13}">{share:.1%}</text>'
            f'<text class="tick" x="{left}" y="{y + tall + 14}">{escape(note)}</text>'
        )
    return _svg("meters", label, WIDTH, 12 + len(rows) * (tall + gap), "".join(parts))


def _svg(kind: str, label: str, width: int, height: int, inside: str) -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        f"{inside}</svg>"
    )


HATCHES = (
    '<svg width="0" height="0" aria-hidden="true" style="position:absolute"><defs>'
    '<pattern id="h1" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="7" height="7" class="b1"/><rect width="2.4" height="7" class="f1"/></pattern>'
    '<pattern id="h2" width="6" height="6" patternUnits="userSpaceOnUse">'
    '<rect width="6" height="6" class="b2"/><circle cx="3" cy="3" r="1.5" class="f2"/></pattern>'
    '<pattern id="h3" width="6" height="6" patternUnits="userSpaceOnUse">'
    '<rect width="6" height="6" class="b3"/><rect width="6" height="2.2" class="f3"/></pattern>'
    '<pattern id="h4" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="8" height="8" class="b4"/><path d="M0 0H8M0 0V8" class="f4"/></pattern>'
    '<pattern id="h5" width="6" height="6" patternUnits="userSpaceOnUse">'
    '<rect width="6" height="6" class="b3"/><rect width="2.2" height="6" class="f3"/></pattern>'
    "</defs></svg>"
)
"""Patterns of the parts of bars, once on a page."""
