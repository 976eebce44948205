"""``tokenmill down``: ends the factory cleanly, also what a dead controller left, and waits until it has."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenmill.cli.client import Client
from tokenmill.cli.options import AsJson, Directory, File, locate
from tokenmill.cli.output import examples, print_json, stderr, stdout, when_interrupted
from tokenmill.floor.controller import stop

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("tokenmill down", "tokenmill down --timeout 120"))
def down(
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
    timeout: Annotated[
        float, typer.Option(min=1, max=3600, help="Seconds until what is left is killed.")
    ] = 90.0,
) -> None:
    """Stop the factory: finish open requests, stop engines and jobs, settle, end the controller."""
    place = locate(directory, file)
    if place.settings.url:
        with Client(place) as client:
            client.post("/api/down", {"stop": True})
        stopped = True
    else:
        if not as_json:
            stderr().print("[dim]Stopping: open requests finish first.[/dim]")
        with when_interrupted("The factory goes on stopping."):
            stopped = stop(place.paths, timeout)
    if as_json:
        print_json({"stopped": stopped})
    else:
        stdout().print("Stopped. Its state is kept: tokenmill up" if stopped else "Nothing runs here.")
