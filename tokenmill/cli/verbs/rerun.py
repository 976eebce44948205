"""``tokenmill rerun``: a run once more, from one station on; what came before is taken over as it was."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenmill.cli.client import connect, segment
from tokenmill.cli.follow import bad_end, follow_run, run_picture
from tokenmill.cli.options import AsJson, Directory, File, locate
from tokenmill.cli.output import end_with, examples, print_json, stdout, when_interrupted

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "tokenmill rerun run-000003 --from tune", "tokenmill rerun run-000003 --from evaluate --detach"
    )
)
def rerun(
    run: Annotated[str, typer.Argument(help="Id of the run, as in `tokenmill runs`.")],
    station: Annotated[str, typer.Option("--from", help="Station from which on everything is done anew.")],
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Start it and return.")] = False,
) -> None:
    """Run a line again from one station on, with what an earlier run did before it: the same rows, too."""
    with connect(locate(directory, file)) as client:
        line = client.get(f"/api/runs/{segment(run)}")["line"]
        started = client.post("/api/runs", {"line": line, "force": station, "parent": run})
        name = started["run"]
        if detach:
            if as_json:
                print_json(started)
            else:
                stdout().print(f"{name} started: tokenmill runs show {name}")
            return
        with when_interrupted(f"{name} goes on: tokenmill runs show {name}"):
            found = follow_run(client, name)
    end_with(found, bad_end(found), as_json=as_json, show=lambda: stdout().print(run_picture(found)))
