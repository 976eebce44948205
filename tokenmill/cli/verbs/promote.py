"""``tokenmill promote``: a person's word on a release's way to traffic. The schedule never goes past it."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenmill.cli.client import connect
from tokenmill.cli.options import AsJson, Directory, File, Yes, locate
from tokenmill.cli.output import examples, print_json, stdout
from tokenmill.cli.questions import post_if_sure
from tokenmill.domain.errors import UsageError

app = typer.Typer(add_completion=False)

SAID = {
    "hold": "{alias} is held: nothing moves forward by itself. To go on: tokenmill promote {alias} --resume",
    "resume": "{alias} goes on by its schedule.",
    "promote": "{alias} goes to [bold]{release}[/bold] with all its traffic as soon as it is ready.",
}


@app.command(
    epilog=examples(
        "tokenmill promote desk --hold",
        "tokenmill promote desk --resume",
        "tokenmill promote desk -y",
        "tokenmill promote desk --to rel-000012 -y",
    )
)
def promote(
    alias: Annotated[str, typer.Argument(help="The name that clients put in model.")],
    hold: Annotated[bool, typer.Option("--hold", help="Stop here: no step forward by itself.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Let the schedule go on.")] = False,
    to: Annotated[str, typer.Option(help="Release to promote. Default: the one that waits.")] = "",
    yes: Yes = False,
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Hold an alias, let it go on, or give a release all of its traffic now."""
    if hold + resume + bool(to) > 1:
        raise UsageError("--hold, --resume and --to exclude each other", fix="Give one of them, or none.")
    action = "hold" if hold else "resume" if resume else "promote"
    body = {"alias": alias, "action": action, "release": to}
    question = f"Give {to or 'the release that waits'} all traffic of {alias}?"
    with connect(locate(directory, file)) as client:
        found = post_if_sure(client, "/api/steer", body, question, yes or action != "promote")
    if as_json:
        print_json(found)
    else:
        stdout().print(SAID[action].format(alias=alias, release=found["release"]))
