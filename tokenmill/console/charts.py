"""Small charts as inline SVG: a sparkline, a loss curve, and base against tuned with its confidence interval.

Colours and fonts come from the style sheet by class, so that light and dark both work; every chart carries
its own text for those who cannot see it. Nothing here knows where the numbers come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tokenmill.console.text import number, percent

Point = tuple[float, float]


def _path(points: Sequence[Point]) -> str:
    return " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))


def sparkline(values: Sequence[float], *, label: str, width: int = 320, height: int = 64) -> Markup:
    """``values`` oldest first, drawn from zero; ``label`` is read aloud in place of the drawing."""
    top = max([*values, 1e-9])
    count = max(len(values) - 1, 1)
    floor = height - 2.0
    points = [(i * width / count, floor - v / top * (height - 8)) for i, v in enumerate(values)]
    if not points:
        points = [(0.0, floor), (float(width), floor)]
    line = _path(points)
    area = f"{line} L{points[-1][0]:.1f} {height} L{points[0][0]:.1f} {height} Z"
    return Markup(
        '<svg class="spark" viewBox="0 0 {w} {h}" preserveAspectRatio="none" role="img" aria-label="{label}">'
        '<path class="spark-area" d="{area}"/><path class="spark-line" d="{line}"/></svg>'
    ).format(w=width, h=height, label=label, area=area, line=line)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Shares in thousandths; ``low`` and ``high`` bound the difference candidate minus reference."""

    reference_milli: int
    candidate_milli: int
    low_milli: int
    high_milli: int
    reference_name: str = "base"
    candidate_name: str = "tuned"


def comparison(c: Comparison, *, width: int = 360) -> Markup:
    """Two bars from 0 to 100 %; the candidate's bears the interval of the difference plus the reference."""
    left, right = 66, 58
    scale = (width - left - right) / 1000
    low = left + _within(c.reference_milli + c.low_milli) * scale
    high = left + _within(c.reference_milli + c.high_milli) * scale
    label = (
        f"{c.reference_name} {percent(c.reference_milli)}, {c.candidate_name} {percent(c.candidate_milli)}, "
        f"95 % interval of the difference {c.low_milli / 10:+.1f} to {c.high_milli / 10:+.1f} points"
    )
    rows = Markup("").join(
        Markup(
            '<text class="bar-name" x="{tx}" y="{ty}" text-anchor="end">{name}</text>'
            '<rect class="bar-track" x="{x}" y="{y}" width="{track:.1f}" height="14" rx="3"/>'
            '<rect class="bar {kind}" x="{x}" y="{y}" width="{w:.1f}" height="14" rx="3"/>'
            '<text class="bar-value" x="{vx:.1f}" y="{ty}">{value}</text>'
        ).format(
            tx=left - 8,
            ty=y + 11,
            name=name,
            x=left,
            y=y,
            track=1000 * scale,
            kind=kind,
            w=max(_within(milli) * scale, 1.5),
            vx=width - right + 8,
            value=percent(milli),
        )
        for name, kind, milli, y in (
            (c.reference_name, "bar-reference", c.reference_milli, 4),
            (c.candidate_name, "bar-candidate", c.candidate_milli, 28),
        )
    )
    whisker = Markup(
        '<path class="whisker" d="M{low:.1f} 35 L{high:.1f} 35 M{low:.1f} 30 v10 M{high:.1f} 30 v10"/>'
    ).format(low=low, high=high)
    return Markup(
        '<svg class="comparison" viewBox="0 0 {w} 46" role="img" aria-label="{label}">{rows}{whisker}</svg>'
    ).format(w=width, label=label, rows=rows, whisker=whisker)


def _within(milli: float) -> float:
    return min(max(milli, 0), 1000)


def loss_curve(points: Sequence[Point], *, width: int = 640, height: int = 220) -> Markup:
    """Loss over steps with round ticks, from zero; the last point is marked."""
    if not points:
        return Markup('<p class="quiet">No steps yet.</p>')
    left, bottom, top, right = 40, 26, 10, 14
    x_max = max(x for x, _ in points) or 1.0
    y_max = _nice_ceiling(max(y for _, y in points))

    def place(p: Point) -> Point:
        return (
            left + p[0] / x_max * (width - left - right),
            height - bottom - p[1] / y_max * (height - bottom - top),
        )

    grid = Markup("").join(
        Markup(
            '<path class="grid" d="M{x1} {y:.1f} H{x2}"/><text class="tick" x="{tx}" y="{ty:.1f}" '
            'text-anchor="end">{value}</text>'
        ).format(x1=left, x2=width - right, y=y, tx=left - 8, ty=y + 4, value=number(y_max * i / 4))
        for i in range(5)
        for y in [place((0, y_max * i / 4))[1]]
    )
    steps = Markup("").join(
        Markup('<text class="tick" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{value}</text>').format(
            x=place((at, 0))[0], y=height - 8, anchor="end" if at == x_max else "middle", value=said
        )
        for at, said in _step_ticks(x_max)
    )
    label = f"loss over steps: from {points[0][1]:.3f} to {points[-1][1]:.3f} in {number(x_max)} steps"
    placed = [place(p) for p in points]
    line, floor = _path(placed), height - bottom
    return Markup(
        '<svg class="loss" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">{grid}{steps}'
        '<path class="curve-area" d="{area}"/><path class="curve" d="{line}"/>'
        '<circle class="curve-end" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/></svg>'
    ).format(
        w=width,
        h=height,
        label=label,
        grid=grid,
        steps=steps,
        area=f"{line} L{placed[-1][0]:.1f} {floor} L{placed[0][0]:.1f} {floor} Z",
        line=line,
        x=placed[-1][0],
        y=placed[-1][1],
    )


def _step_ticks(x_max: float) -> list[tuple[float, str]]:
    """Round steps from zero, and the last one; none so near to it that their numbers would touch."""
    every = max(1.0, _nice_ceiling(x_max / 5))
    round_ones = [every * i for i in range(int(x_max / every) + 1)]
    kept = [at for at in round_ones if x_max - at > 0.08 * x_max]
    return [*((at, number(at)) for at in kept), (x_max, f"{number(x_max)} steps")]


def _nice_ceiling(value: float) -> float:
    """The next of 1, 2, 4, 5 or 10 times a power of ten, so that the ticks are round."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 10) if value <= step * power)
