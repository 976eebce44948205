"""How far the twin lies from measurements that its fits had not seen, on every axis.

Run: ``python bench/accuracy.py [DATA] [--picture docs/images/accuracy.svg] [--constants]``. DATA holds the
shared tables (else TOKENMILL_SHARED_DATA names them). Needs pandas, pyarrow and scipy; takes some minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
from accuracy_axes import Axis, constants, power, racks, serving, training

TABLES = {"serving": serving, "power": power, "training": training, "racks": racks}
SIDE, GAP, MOST_POINTS = 200, 54, 250
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
    'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">'
)
LEGEND = (
    "Foretold (up) over measured (right), both logarithmic; rows that the fit had not seen. "
    "Line: equal. Dashed: the bar."
)
DASHED = 'stroke="black" stroke-dasharray="4 3"'
DOTS = 'stroke="black" stroke-opacity="0.45" stroke-width="4" stroke-linecap="round"'


def row(axis: Axis) -> str:
    """One line of the table; the bar, and by how many points it is missed."""
    off = np.abs(axis.errors)
    mean, median = float(off.mean()), float(np.median(off))
    text = f"{axis.name:<36}{len(off):>7,}{mean:>8.1%}{median:>8.1%}{np.quantile(off, 0.9):>8.1%}"
    text += f"{float(np.median(axis.errors)):>+8.1%}{len(off) / axis.asked:>8.0%}"
    if axis.bar is None:
        return text
    got = median if axis.by == "median" else mean
    verdict = "met" if got <= axis.bar else f"missed by {100 * (got - axis.bar):.1f} points"
    return f"{text}  {axis.by} {axis.bar:.0%}: {verdict}"


def picture(axes: list[Axis]) -> str:
    """Panels of foretold over measured, both logarithmic: the diagonal, and the bar's corridor dashed."""
    columns = 4
    rows = -(-len(axes) // columns)
    width, height = columns * (SIDE + GAP) + 20, rows * (SIDE + GAP + 10) + 30
    parts = [
        SVG.format(width=width, height=height),
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="20" y="16">{LEGEND}</text>',
    ]
    for number, axis in enumerate(axes):
        at = f"{20 + number % columns * (SIDE + GAP)},{46 + number // columns * (SIDE + GAP + 10)}"
        parts.append(f'<g transform="translate({at})">{_panel(axis)}</g>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(axis: Axis) -> str:
    both = np.log10(np.concatenate([axis.measured, axis.foretold]))
    low, high = np.quantile(both, 0.002) - 0.05, np.quantile(both, 0.998) + 0.05

    def at(values: np.ndarray) -> np.ndarray:
        return np.clip((np.log10(values) - low) / (high - low), 0, 1) * SIDE

    chosen = np.unique(np.linspace(0, len(axis.measured) - 1, MOST_POINTS).astype(int))
    order = np.argsort(axis.measured)[chosen]
    x, y = at(axis.measured[order]), SIDE - at(axis.foretold[order])
    dots = "".join(f"M{a:.0f} {b:.0f}h0" for a, b in zip(x, y, strict=True))
    shift = SIDE * np.log10(1 + (axis.bar or 0)) / (high - low)
    lines = f'<path d="M0 {SIDE}L{SIDE} 0" stroke="black"/>'
    if axis.bar:
        for move in (shift, -shift):
            a, b = max(0.0, move), max(0.0, -move)
            lines += f'<path d="M{a:.1f} {SIDE - b:.1f}L{SIDE - b:.1f} {a:.1f}" {DASHED}/>'
    median = float(np.median(np.abs(axis.errors)))
    return (
        f'<text x="0" y="-6">{axis.name}</text>'
        f'<rect width="{SIDE}" height="{SIDE}" fill="none" stroke="black"/>'
        f'{lines}<path d="{dots}" {DOTS}/>'
        f'<text x="6" y="14">{len(axis.measured):,} rows, median {median:.1%}</text>'
        f'<text x="0" y="{SIDE + 14}">{10**low:.3g}</text>'
        f'<text x="{SIDE}" y="{SIDE + 14}" text-anchor="end">{10**high:.3g}</text>'
    )


def main() -> None:
    """Score every axis and print; with ``--picture`` draw them too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("TOKENMILL_SHARED_DATA"))
    parser.add_argument("--only", choices=TABLES, action="append", help="one table instead of all")
    parser.add_argument("--picture", type=Path, help="an SVG of foretold over measured")
    parser.add_argument("--constants", action="store_true", help="print what a fit to all rows gives instead")
    given = parser.parse_args()
    if given.data is None or not Path(given.data).is_dir():
        parser.error("name the folder of the shared tables, or set TOKENMILL_SHARED_DATA")
    data = Path(given.data)
    if given.constants:
        print("\n".join(constants(data)))
        return
    print(f"{'axis':<36}{'rows':>7}{'mean':>8}{'median':>8}{'9 of 10':>8}{'bias':>8}{'covers':>8}  bar")
    axes = []
    for name in given.only or TABLES:
        began = time.perf_counter()
        for axis in TABLES[name](data):
            axes.append(axis)
            print(row(axis), flush=True)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    if given.picture:
        given.picture.write_text(picture([axis for axis in axes if axis.drawn]), encoding="utf-8")


if __name__ == "__main__":
    main()
