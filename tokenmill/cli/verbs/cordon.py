"""``tokenmill cordon``: take a node out of use, moving what runs there, and into use again."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tokenmill.cli.client import connect
from tokenmill.cli.options import AsJson, Directory, File, Yes, locate
from tokenmill.cli.output import examples, print_json, stderr, stdout
from tokenmill.cli.questions import confirm

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
    body = {"node": node, "reason": reason, "undo": undo}
    with connect(locate(directory, file)) as client:
        if not (yes or undo):
            confirm(_question(client.post("/api/cordon", {**body, "dry_run": True})), yes)
        found = client.post("/api/cordon", body)
    if as_json:
        print_json(found)
    elif undo:
        stdout().print(f"{node} takes work again.")
    else:
        stdout().print(f"{node} takes no work.")
        if not found["elsewhere"]:
            what = f"{', '.join(found['moves'])} stopped" if found["moves"] else "nothing runs"
            stderr().print(f"No other node does: {what}, until `tokenmill cordon {node} --undo`.")


def _question(found: dict[str, Any]) -> str:
    node, moves = found["node"], ", ".join(found["moves"])
    if found["elsewhere"]:
        return f"Move everything away from {node}{f' ({moves})' if moves else ''}?"
    stops = f"{moves} would stop" if moves else "nothing would run"
    return f"{node} is the only node that takes work: {stops} until `tokenmill cordon {node} --undo`. Go on?"
