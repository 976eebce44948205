"""``tokenmill events``: the tail of the journal, as sentences. Reads only."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from tokenmill.cli.client import connect
from tokenmill.cli.options import AsJson, Directory, File, locate
from tokenmill.cli.output import add_rows, examples, print_json, stdout, table
from tokenmill.console.text import clock

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "tokenmill events", "tokenmill events --limit 1000 --json", "tokenmill events --after 120"
    )
)
def events(
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
    after: Annotated[int, typer.Option(min=-1, help="Only events after this number.")] = -1,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 50,
) -> None:
    """Show what happened, from the journal."""
    query = {"limit": limit} if after < 0 else {"limit": limit, "after": after}
    with connect(locate(directory, file)) as client:
        found = client.get("/api/events", **query)
    if as_json:
        print_json(found)
        return
    stdout().print(event_table(found))


def event_table(found: list[dict[str, Any]]) -> Table:
    """Events with what was decided at each."""
    rows = [
        (event["seq"], clock(event["at_us"]), "\n→ ".join(map(escape, (event["text"], *event["decided"]))))
        for event in found
    ]
    return add_rows(
        table(">Number", "Time (UTC)", "What happened, and → what was decided"), rows, "nothing yet"
    )
