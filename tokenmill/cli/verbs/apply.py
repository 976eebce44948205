"""``tokenmill apply``: applies a factory file, or a saved plan that is refused once it is stale."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenmill.cli.client import connect
from tokenmill.cli.options import AsJson, Directory, File, Yes, locate
from tokenmill.cli.output import examples, print_json, stderr, stdout
from tokenmill.cli.questions import post_if_sure
from tokenmill.cli.verbs.plan import FORMAT, make_plan, seal_of, show_plan
from tokenmill.domain.codec import parse_json
from tokenmill.domain.errors import DataError, NotFoundError
from tokenmill.spec.factory_file import load

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("tokenmill apply", "tokenmill apply -y", "tokenmill apply plan.json"))
def apply(
    plan: Annotated[
        Path | None, typer.Argument(help="A plan saved by tokenmill plan --out.", show_default=False)
    ] = None,
    yes: Yes = False,
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Apply a factory file or a saved plan. Exits with 5 when the plan is stale, with 10 if it was edited."""
    place = locate(directory, file)
    made = read_plan(plan) if plan else make_plan(place, load([place.need_file()], os.environ))
    if not made["running"] and not plan:
        raise NotFoundError(f"the factory in {place.file.parent} is not running", fix="tokenmill up")
    body = {"factory": made["factory"], "base_version": made["base_version"]}
    if not made["changes"]:
        if plan:  # it may be stale all the same
            with connect(place) as client:
                client.post("/api/apply", {**body, "dry_run": True})
        _done({"version": made["base_version"], "changed": False}, as_json, "Nothing to change.")
        return
    if not yes:
        show_plan(stderr(), made)
    with connect(place) as client:
        found = post_if_sure(client, "/api/apply", body, f"Apply {len(made['changes'])} change(s)?", yes)
    _done({**found, "changed": True}, as_json, f"Applied as version {found['version']}: tokenmill status")


def read_plan(path: Path) -> dict[str, Any]:
    """A saved plan, as ``plan`` wrote it. Raises ``NotFoundError`` or ``DataError`` naming the file."""
    try:
        made = parse_json(path.read_bytes())
    except OSError as error:
        raise NotFoundError(f"the plan {path} cannot be read: {error.strerror}") from error
    except DataError as error:
        raise DataError(f"this is not a plan: {error.problem.message}", where=str(path)) from error
    if not isinstance(made, dict) or made.get("format") != FORMAT:
        raise DataError("this is not a plan", where=str(path), expected="a file from tokenmill plan --out")
    if made.get("seal") != seal_of(made):
        raise DataError(
            "this plan is not as tokenmill plan wrote it: what it shows may not be what it would do",
            where=str(path),
            expected="the file of tokenmill plan --out, unchanged",
            fix="Change the factory file instead, plan again with --out, and apply that.",
        )
    return made


def _done(found: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        print_json(found)
    else:
        stdout().print(text)
