"""``tokenmill run``: starts a line and follows it. The factory works, so Ctrl-C only stops the watching."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenmill.cli.client import connect
from tokenmill.cli.follow import bad_end, follow_run, run_picture
from tokenmill.cli.options import AsJson, Directory, File, locate
from tokenmill.cli.output import end_with, examples, print_json, stdout, when_interrupted

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "tokenmill run desk", "tokenmill run desk --force tune", "tokenmill run desk --detach --json"
    )
)
def run(
    line: Annotated[str, typer.Argument(help="Name of the line in the factory file.")],
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
    force: Annotated[str, typer.Option(help="Station from which on nothing is reused.")] = "",
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Start it and return.")] = False,
) -> None:
    """Run a line: data in, released model out. Exits with 12 when the gate rejects the candidate."""
    with connect(locate(directory, file)) as client:
        started = client.post("/api/runs", {"line": line, "force": force})
        name = started["run"]
        if detach:
            if as_json:
                print_json(started)
            else:
                stdout().print(f"{name} started: tokenmill runs show {name}")
            return
        with when_interrupted(
            f"{name} goes on: tokenmill runs show {name}. To stop it: tokenmill runs cancel {name}"
        ):
            found = follow_run(client, name)
    end_with(found, bad_end(found), as_json=as_json, show=lambda: stdout().print(run_picture(found)))
