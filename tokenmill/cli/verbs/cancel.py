"""``tokenmill cancel``: stops a run or a job, whichever the id names."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenmill.cli.client import connect, segment
from tokenmill.cli.options import AsJson, Directory, File, Yes, locate
from tokenmill.cli.output import examples, print_json, stdout
from tokenmill.cli.questions import post_if_sure

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("tokenmill cancel run-000002 -y", "tokenmill cancel job-000007 -y"))
def cancel(
    name: Annotated[str, typer.Argument(metavar="RUN|JOB", help="Id of a run or a job.")],
    yes: Yes = False,
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Stop a run or a job. Stations of a run that are done stay done and can be reused."""
    kind = "runs" if name.startswith("run-") else "jobs"
    with connect(locate(directory, file)) as client:
        found = post_if_sure(client, f"/api/{kind}/{segment(name)}/cancel", {}, f"Cancel {name}?", yes)
    if as_json:
        print_json(found)
    else:
        stdout().print(f"{name} is cancelled.")
