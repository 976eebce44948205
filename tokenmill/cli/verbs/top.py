"""``tokenmill top``: status and processes, live until Ctrl-C. Reads only."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live

from tokenmill.cli.client import Client, connect
from tokenmill.cli.options import AsJson, Directory, File, locate
from tokenmill.cli.output import examples, print_json, stdout, when_interrupted
from tokenmill.cli.verbs.events import event_table
from tokenmill.cli.verbs.ps import process_table
from tokenmill.cli.verbs.status import head, jobs, lines, models, nodes

EVENTS_SHOWN = 6

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("tokenmill top", "tokenmill top --once", "tokenmill top --interval 5"))
def top(
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
    once: Annotated[bool, typer.Option("--once", help="Print one picture and exit.")] = False,
    interval: Annotated[float, typer.Option(min=0.2, max=60, help="Seconds between two pictures.")] = 1.0,
) -> None:
    """Watch the factory live."""
    with connect(locate(directory, file)) as client:
        shown = _look(client)
        if as_json:
            print_json(shown)
            return
        console = stdout()
        if once or not console.is_terminal:
            console.print(_picture(shown))
            return
        with (
            when_interrupted("The factory goes on running.", 0),
            Live(_picture(shown), console=console, screen=True) as live,
        ):
            while True:
                time.sleep(interval)
                live.update(_picture(_look(client)))


def _look(client: Client) -> dict[str, Any]:
    return {
        "status": client.get("/api/status"),
        "processes": client.get("/api/processes"),
        "events": client.get("/api/events", limit=EVENTS_SHOWN),
    }


def _picture(shown: dict[str, Any]) -> Group:
    status = shown["status"]
    parts = (*nodes(status), process_table(shown["processes"]), models(status), lines(status), jobs(status))
    return Group(head(status), *parts, event_table(shown["events"]))
