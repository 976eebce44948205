"""``tokenmill ps``: the factory's processes. Reads only."""

from __future__ import annotations

import time
from typing import Any

import typer
from rich.table import Table

from tokenmill.cli.client import connect
from tokenmill.cli.options import AsJson, Directory, File, locate
from tokenmill.cli.output import add_rows, examples, print_json, status_text, stdout, table
from tokenmill.console.text import ago, size

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("tokenmill ps", "tokenmill ps --json"))
def ps(directory: Directory = None, file: File = None, as_json: AsJson = False) -> None:
    """List processes with CPU and memory."""
    with connect(locate(directory, file)) as client:
        rows = client.get("/api/processes")
    if as_json:
        print_json(rows)
    else:
        stdout().print(process_table(rows))


def process_table(rows: list[dict[str, Any]]) -> Table:
    made = table("Process", "Kind", "Status", ">PID", ">CPU", ">Memory", ">Started", "Address")
    cells = [
        (
            row["id"],
            row["kind"],
            status_text(row["status"]),
            row["pid"],
            f"{row['cpu_percent']:.0f} %",
            size(row["memory_bytes"]),
            ago(row["since_us"], time.time_ns() // 1000),
            row["address"],
        )
        for row in rows
    ]
    return add_rows(made, cells, "nothing runs")
