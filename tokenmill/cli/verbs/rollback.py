"""``tokenmill rollback``: move an alias's pointer back. Nothing is rebuilt."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenmill.cli.client import connect
from tokenmill.cli.options import AsJson, Directory, File, Yes, locate
from tokenmill.cli.output import examples, print_json, stdout
from tokenmill.cli.questions import post_if_sure

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("tokenmill rollback desk", "tokenmill rollback desk --to rel-000012 -y"))
def rollback(
    alias: Annotated[str, typer.Argument(help="The name that clients put in model.")],
    to: Annotated[str, typer.Option(help="Release to point at. Default: the one before.")] = "",
    yes: Yes = False,
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias back at an earlier release and hold it there: `promote --resume` lets it go on."""
    question = f"Point {alias} at {to or 'the release before'}?"
    with connect(locate(directory, file)) as client:
        found = post_if_sure(client, "/api/rollback", {"alias": alias, "to": to}, question, yes)
    if as_json:
        print_json(found)
    else:
        stdout().print(
            f"{alias} now points at [bold]{found['to']}[/bold] (before: {found['from'] or 'nothing'})."
            f" It stays there until: tokenmill promote {alias} --resume"
        )
