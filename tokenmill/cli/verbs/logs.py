"""``tokenmill logs``: the log of one process, once or followed; also while the controller is down."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from tokenmill.cli.client import Client, segment
from tokenmill.cli.options import AsJson, Directory, Place, locate
from tokenmill.cli.output import examples, print_json, when_interrupted
from tokenmill.console.reading import read_log
from tokenmill.domain.errors import NotFoundError

app = typer.Typer(add_completion=False)

POLL_S = 0.5


@app.command(
    epilog=examples("tokenmill logs", "tokenmill logs gateway -f", "tokenmill logs run-000001 --tail 50")
)
def logs(
    name: Annotated[
        str, typer.Argument(help="control, gateway, or the id of a replica, job or run.")
    ] = "control",
    directory: Directory = None,
    as_json: AsJson = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    tail: Annotated[int, typer.Option(min=0, max=100_000, help="Lines to start with.")] = 200,
) -> None:
    """Show the log of the controller, the gateway, a replica, a job or a run."""
    place = locate(directory, None)
    with Client(place) as client:
        part = _read(client, place, name, tail, None)
        if as_json:
            print_json(part)
            return
        sys.stdout.write(part["text"])
        sys.stdout.flush()
        if not follow:
            return
        with when_interrupted("The factory goes on running.", 0):
            while True:
                time.sleep(POLL_S)
                part = _read(client, place, part["id"], 0, part["next_offset"])
                sys.stdout.write(part["text"])
                sys.stdout.flush()


def _read(client: Client, place: Place, name: str, tail: int, offset: int | None) -> dict[str, Any]:
    """From the API, which also knows runs; from the file when the controller is down."""
    try:
        query = {"tail": tail} if offset is None else {"offset": offset}
        found: dict[str, Any] = client.get(f"/api/logs/{segment(name)}", **query)
    except NotFoundError:
        found = read_log(place.paths, name, tail, offset)
    return found
