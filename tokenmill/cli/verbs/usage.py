"""``tokenmill usage``: what was used and what it costs, from the ledger; also as CSV, Parquet or FOCUS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tokenmill.cli.client import connect
from tokenmill.cli.options import AsJson, Directory, File, Since, Until, locate, window
from tokenmill.cli.output import add_rows, examples, print_json, stdout, table
from tokenmill.cli.usage_files import write_csv, write_focus, write_parquet
from tokenmill.console.text import all_money, duration, energy, number
from tokenmill.domain.errors import UsageError

app = typer.Typer(add_completion=False)

GROUPS = ("tenant", "project", "key", "model", "day")


@app.command(
    epilog=examples(
        "tokenmill usage",
        "tokenmill usage --by tenant,project,day --since 30d",
        "tokenmill usage --by tenant,model,day --csv usage.csv",
        "tokenmill usage --since 2026-11-01 --until 2026-12-01 --focus november.csv",
    )
)
def usage(
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
    by: Annotated[
        str, typer.Option(help="Group by some of tenant, project, key, model, day.")
    ] = "tenant,model",
    tenant: Annotated[str, typer.Option(help="Only this tenant.")] = "",
    since: Since = "",
    until: Until = "",
    csv: Annotated[Path | None, typer.Option(help="Write these rows as CSV.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write these rows as Parquet.")] = None,
    focus: Annotated[Path | None, typer.Option(help="Write FOCUS cost rows, as .csv or .parquet.")] = None,
) -> None:
    """Show tokens, energy and money by tenant, project, key, model or day."""
    if sum(target is not None for target in (csv, parquet, focus)) > 1:
        raise UsageError("more than one file was asked for", expected="one of --csv, --parquet, --focus")
    place = locate(directory, file)
    with connect(place) as client:
        now_us = int(client.get("/api/status")["now_us"])
        since_us, until_us = window(since, until, now_us)
        query: dict[str, str | int] = {"by": by, "tenant": tenant, "since_us": since_us, "until_us": until_us}
        rows: list[dict[str, Any]] = client.get("/api/usage", **query)
    count = len(rows)
    if csv is not None:
        write_csv(rows, csv)
    if parquet is not None:
        write_parquet(rows, parquet)
    if focus is not None:
        count = write_focus(place, focus, since_us, until_us, tenant)
    if as_json:
        print_json(rows)
    elif csv or parquet or focus:
        stdout().print(f"wrote {count} rows to {csv or parquet or focus}")
    else:
        whose = f"tenant {tenant}, if there is one," if tenant else "anybody"
        when = " in this window" if since or until else ""
        _show(rows, by, f"nothing was used by {whose}{when}" if tenant or when else "")


def _show(rows: list[dict[str, Any]], by: str, empty: str) -> None:
    groups = [name for name in GROUPS if name in by.split(",")]
    made = table(
        *(name.capitalize() for name in groups),
        ">Requests", ">Tokens in", ">cached", ">Tokens out", ">Accelerator", ">CPU", ">Energy", ">Money",
    )  # fmt: skip
    cells = [
        (
            *(row[name] or "-" for name in groups),
            number(row["requests"]),
            number(row["input_tokens"]),
            number(row["cached_tokens"]),
            number(row["output_tokens"]),
            duration(row["accelerator_us"]) if row["accelerator_us"] else "-",
            duration(row["cpu_us"]) if row["cpu_us"] else "-",
            energy(row["energy_mj"]) if row["energy_mj"] else "-",
            all_money(row["micros"]),
        )
        for row in rows
    ]
    stdout().print(add_rows(made, cells, empty or "nothing has been used yet"))
