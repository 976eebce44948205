"""``tokenmill calibrate``: fit the twin's profile to measured serving rows. Needs no factory."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tokenmill.cli.options import AsJson, TypesFile, need_file_place
from tokenmill.cli.output import add_rows, examples, print_json, stdout, table
from tokenmill.cli.progress import bar
from tokenmill.domain.catalogue import NO_TYPES
from tokenmill.domain.errors import UsageError
from tokenmill.spec.factory_file import load_types
from tokenmill.spec.files import write_atomically
from tokenmill.twin.accuracy import Score, doubts, scores
from tokenmill.twin.bench_rows import Serving, ServingRow, read_serving
from tokenmill.twin.contradictions import contradictions
from tokenmill.twin.fit import Foretold, fit_profile
from tokenmill.twin.profiles import ROWS_OF, Profile, profile, to_json

app = typer.Typer(add_completion=False)

Unseen = dict[str, list[Foretold]]

PACKAGE = "aiconfigurator_core"
MOST_SHOWN = 5
TABLE = "systems/silicon_sample.csv"


@app.command(
    epilog=examples(
        "tokenmill calibrate mine.csv --out mine.json",
        "tokenmill calibrate mine.csv -f ours.yaml --out mine.json",
        "tokenmill calibrate published.csv.gz --fresh --skip-unknown --out ours.json --json",
    )
)
def calibrate(
    rows: Annotated[
        list[Path] | None,
        typer.Argument(
            help=f"CSV of measured deployments, plain or .gz. Default: {PACKAGE}'s, if installed."
        ),
    ] = None,
    file: TypesFile = None,
    out: Annotated[Path | None, typer.Option(help="Write the profile here, for plan --profile.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Fit anew from these rows alone, not from the shipped profile.")
    ] = False,
    skip_unknown: Annotated[
        bool,
        typer.Option("--skip-unknown", help="Leave out models and accelerators that the catalogue lacks."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fit the twin to measured rows, and say by how much it misses rows that the fit had not seen.

    Columns are those of aiconfigurator's table: backend, backend_version, model_path, system, precision,
    mode, isl, osl, batch_size, tp_size ..., silicon_ttft_ms, silicon_tpot_ms. Sweeps are never split: each is
    foretold by a fit of the others.
    """
    paths, lenient = (rows, skip_unknown) if rows else ([_published()], True)
    need_file_place("--out", out, "mine.json")
    own = load_types(file, os.environ) if file else NO_TYPES
    read = _joined([read_serving(path, own, skip_unknown=lenient) for path in paths])
    made, foretold = _fit(read.rows, ", ".join(path.name for path in paths), fresh=fresh)
    if out is not None:
        write_atomically(out, to_json(made).encode())
    warnings = doubts(foretold[""], None if fresh else profile())
    if as_json:
        print_json(_plain(read, foretold, made) | {"warnings": warnings})
    else:
        _show(read, foretold, warnings, out)


def _published() -> Path:
    found = find_spec(PACKAGE)
    path = Path(found.origin or "").parent / TABLE if found else None
    if path is None or not path.is_file():
        raise UsageError(
            "no measured rows are named",
            expected="a CSV file of measured deployments",
            fix="Name one, or: pip install --no-deps aiconfigurator-core",
        )
    return path


def _joined(read: Sequence[Serving]) -> Serving:
    rows = tuple(row for one in read for row in one.rows)
    unknown = sum((Counter(one.unknown) for one in read), Counter[str]())
    return Serving(rows, sum(one.unstated for one in read), unknown)


def _fit(measured: Sequence[ServingRow], source: str, *, fresh: bool) -> tuple[Profile, Unseen]:
    with bar("fit and cross-validation") as progress:
        return fit_profile(measured, source, None if fresh else profile(), progress)


def _plain(read: Serving, foretold: Unseen, made: Profile) -> dict[str, object]:
    return {
        "source": made.source,
        "rows": len(foretold[""]),
        "unstated": read.unstated,
        "unknown": dict(read.unknown),
        "coverage": round(read.coverage, 4),
        "contradictions": [
            {
                "rows": [one.low.where, one.high.where],
                "quantity": one.quantity,
                "ms": [round(value * 1000, 6) for value in (one.low_s, one.high_s)],
                "times": round(one.times, 3),
            }
            for one in contradictions(read.rows)
        ],
        "scores": [asdict(score) for score in scores(foretold[""])],
        "beyond": {
            of.rstrip("_"): [asdict(score) for score in scores(found)] for of, found in foretold.items() if of
        },
    }


def _scores_table(found: list[Score]) -> Table:
    made = table("quantity", ">rows", ">mean", ">median", ">9 of 10", ">bias")
    lines = [
        (
            one.name,
            f"{one.rows:,}",
            f"{one.mape:.1%}",
            f"{one.median:.1%}",
            "-" if one.p90 is None else f"{one.p90:.1%}",
            f"{one.bias:+.1%}",
        )
        for one in found
    ]
    add_rows(made, lines, "no rows")
    return made


def _show(read: Serving, foretold: Unseen, warnings: list[str], out: Path | None) -> None:
    console = stdout()
    for of, rows in foretold.items():
        if rows:
            console.print(f"Errors on rows {ROWS_OF[of]}:\n")
            console.print(_scores_table(scores(rows)))
    for said in warnings:
        console.print(f"[yellow]![/yellow] {escape(said)}", soft_wrap=True)
    if apart := contradictions(read.rows):
        console.print(
            f"[yellow]{len(apart)} contradictions[/yellow]: no fit meets both rows. They stay in it."
        )
        for one in apart[:MOST_SHOWN]:
            console.print(escape(f"- {one}"), soft_wrap=True)
        if len(apart) > MOST_SHOWN:
            console.print(f"- and {len(apart) - MOST_SHOWN} more, less far apart: --json lists all")
    if read.unstated:
        lack = "row lacks" if read.unstated == 1 else "rows lack"
        console.print(f"{read.unstated:,} {lack} a batch size: no model could answer them.")
    if read.unknown:
        console.print(
            f"{read.coverage:.1%} of the rows that state a configuration are answered. Left out, not in the "
            f"catalogue: {escape(', '.join(sorted(read.unknown)))}"
        )
    if out is not None:
        console.print(f"Written: {escape(str(out))}. Use it: tokenmill plan --profile {escape(str(out))}")
