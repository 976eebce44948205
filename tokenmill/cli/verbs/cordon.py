"""``tokenmill cordon``: take a node out of use, moving what runs there, and into use again."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenmill.cli.client import connect
from tokenmill.cli.options import AsJson, Directory, File, Yes, locate
from tokenmill.cli.output import examples, print_json, stdout
from tokenmill.cli.questions import post_if_sure

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("tokenmill cordon n3 --reason slow", "tokenmill cordon n3 --undo"))
def cordon(
    node: Annotated[str, typer.Argument(help="The node, as `tokenmill status` names it.")],
    reason: Annotated[str, typer.Option(help="Why, for `tokenmill why`.")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Let it take work again.")] = False,
    yes: Yes = False,
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Take a node out of use: replicas are replaced elsewhere, jobs start again from their checkpoint."""
    body, question = {"node": node, "reason": reason, "undo": undo}, f"Move everything away from {node}?"
    with connect(locate(directory, file)) as client:
        found = post_if_sure(client, "/api/cordon", body, question, yes or undo)
    if as_json:
        print_json(found)
    else:
        stdout().print(f"{node} {'takes work again' if undo else 'takes no work'}.")
