"""``tokenmill plan --sweep``: a rehearsal for each value of one or more fields; no finished one is lost."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from tokenmill.cli.output import add_rows, print_json, stderr, stdout, table
from tokenmill.cli.planning import FORMAT, Asked, cents, outlook_of, plain
from tokenmill.cli.progress import bar
from tokenmill.domain.codec import digest_of, to_plain
from tokenmill.domain.errors import UsageError
from tokenmill.domain.units import format_money
from tokenmill.spec.override import Override
from tokenmill.twin.day_page import milliseconds, watts
from tokenmill.twin.outlook import Outlook
from tokenmill.twin.plots import short
from tokenmill.twin.profiles import read_profile, to_json

MOST_POINTS = 10_000


@dataclass(frozen=True, slots=True)
class Axis:
    field: str
    values: tuple[str, ...]


def axes_of(texts: Sequence[str]) -> list[Axis]:
    """``FIELD=a,b,c`` of each --sweep. Raises ``UsageError`` for one that is none, or too many points."""
    axes = []
    for text in texts:
        field, equals, values = text.partition("=")
        kept = tuple(dict.fromkeys(value.strip() for value in values.split(",") if value.strip()))
        if not (field.strip() and equals and kept):
            raise UsageError(
                f"{text!r} is no sweep", expected="FIELD=a,b,c",
                fix="For example traffic.streams.0.requests_per_second=100,200",
            )  # fmt: skip
        axes.append(Axis(field.strip(), kept))
    points = 1
    for axis in axes:
        points *= len(axis.values)
    if points > MOST_POINTS:
        raise UsageError(f"the sweep has {points} points", expected=f"at most {MOST_POINTS}")
    return axes


def plan_sweep(asked: Asked, texts: Sequence[str], out: Path, *, as_json: bool) -> None:
    """Every point of the grid, each kept in ``out`` once it is done; what is kept is not done again."""
    axes = axes_of(texts)
    points = [
        tuple(Override(axis.field, value) for axis, value in zip(axes, values, strict=True))
        for values in itertools.product(*(axis.values for axis in axes))
    ]
    done = _kept(out)
    rows = []
    try:
        with bar("sweeping") as progress:
            for number, point in enumerate(points):
                key = _key(asked, point)
                if key not in done:
                    done[key] = _row(point, outlook_of(asked, point, _part(progress, number, len(points))))
                    _keep(out, key, done[key])
                rows.append(done[key] | {"point": _named(point)})
                progress(number + 1, len(points))
    except KeyboardInterrupt:
        there = (
            f"{len(rows)} of {len(points)} points are in {escape(str(out))}; the same command goes on there."
        )
        stderr().print(f"\n[yellow]–[/yellow] {there if rows else 'No point was finished yet.'}")
        raise SystemExit(130) from None
    if as_json:
        print_json({"format": FORMAT, "points": rows})
        return
    _show_sweep(stdout(), axes, rows, out)


def _part(
    progress: Callable[[float, float], None], number: int, count: int
) -> Callable[[float, float], None]:
    return lambda done, whole: progress(number + done / whole, count)


def _key(asked: Asked, point: Sequence[Override]) -> str:
    """Of all that the point's outcome depends on; raises ``SpecError`` for a value that does not fit."""
    factory, traffic = asked.load(point)
    traces = [
        (traffic.file.parent / stream.trace).read_bytes().hex() if stream.trace else ""
        for stream in traffic.model.streams
    ]
    known = to_json(read_profile(asked.profile))
    return digest_of((to_plain(factory), traffic.model.model_dump(mode="json"), asked.seed, traces, known))


def _row(point: Sequence[Override], found: Outlook) -> dict[str, Any]:
    made = plain(found)
    made.pop("series")
    return {"point": _named(point), **made}


def _named(point: Sequence[Override]) -> dict[str, str]:
    """A point's values by field. Another sweep may have come to the same factory by other fields."""
    return {one.field: one.text for one in point}


def _kept(out: Path) -> dict[str, dict[str, Any]]:
    """Finished points by key. A last line that was cut off by a crash is done again."""
    kept: dict[str, dict[str, Any]] = {}
    if not out.exists():
        return kept
    text = out.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        out.write_text(whole, encoding="utf-8")
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            kept[row["key"]] = row["row"]
        except (ValueError, TypeError, KeyError):
            raise UsageError(
                f"{out}:{number} is no point of a sweep",
                expected="a file that --sweep wrote",
                fix="Name another --out.",
            ) from None
    return kept


def _keep(out: Path, key: str, row: dict[str, Any]) -> None:
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": key, "row": row}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _show_sweep(console: Console, axes: Sequence[Axis], rows: Sequence[dict[str, Any]], out: Path) -> None:
    names = [axis.field for axis in axes]
    figures = (
        ">tokens/s",
        ">good",
        ">worst TTFT p99",
        ">worst TPOT p99",
        ">peak power",
        ">J/token",
        ">per M tokens",
        ">OEE",
    )
    made = table(*(f">{name}" for name in names), *figures)
    cells = []
    for row in rows:
        services = row["services"]
        cost = row["cost_micros_per_mtok"]
        cells.append(
            (
                *(row["point"][name] for name in names),
                short(row["tokens_per_s"]["value"]),
                short(row["good_per_s"]["value"]),
                _worst(services, "ttft_p99_ms"),
                _worst(services, "tpot_p99_ms"),
                watts(row["peak_w"]),
                "-" if row["joules_per_token"] is None else short(row["joules_per_token"]["value"]),
                "-" if cost is None else format_money(cents(cost), row["currency"]),
                f"{row['oee']['oee']:.1%}",
            )
        )
    console.print(add_rows(made, cells, "no points"))
    console.print(f"[dim]{len(rows)} points, kept in {escape(str(out))}[/dim]")


def _worst(services: list[dict[str, Any]], name: str) -> str:
    """The longest time of all services that had any."""
    found = [one[name]["value"] for one in services if one[name] is not None]
    return milliseconds(max(found)) if found else "-"
