"""``tokenmill captures``: what traffic is kept for lines, on whose consent, and how to erase from it.

Works on the files beside the factory, whether or not it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from tokenmill.cli.options import AsJson, Directory, File, Yes, locate
from tokenmill.cli.output import add_rows, examples, print_json, stdout, table
from tokenmill.cli.questions import confirm
from tokenmill.console.text import clock, size
from tokenmill.domain.errors import NotFoundError, UsageError
from tokenmill.domain.units import format_duration
from tokenmill.spec.capture_files import CaptureFiles, Row, user_digest

app = typer.Typer(add_completion=False, invoke_without_command=True)

Owner = Annotated[str, typer.Argument(metavar="TENANT/PROJECT", help="Whose captured traffic.")]


@app.callback(epilog=examples("tokenmill captures", "tokenmill captures --json"))
def captures(
    context: typer.Context, directory: Directory = None, file: File = None, as_json: AsJson = False
) -> None:
    """List the projects whose traffic is kept: rows, opinions, age, size and the consent."""
    if context.invoked_subcommand is not None:
        return
    found = [_summary(files) for files in CaptureFiles.all_below(locate(directory, file).paths.captures)]
    if as_json:
        print_json({"captures": found})
        return
    rows = [
        (
            escape(f"{one['tenant']}/{one['project']}"),
            ", ".join(f"{escape(alias)} {count:,}" for alias, count in one["aliases"].items()) or "none",
            f"{one['good']} good, {one['bad']} bad",
            clock(one["oldest_us"]) if one["oldest_us"] else "-",
            size(one["bytes"]),
            escape(f"{one['consent']} (kept {format_duration(one['keep_us'])})"),
        )
        for one in found
    ]
    heads = ("Project", "Rows", "Opinions", "Oldest", ">Size", "Consent")
    stdout().print(add_rows(table(*heads), rows, "nothing is captured; a project says so by `capture:`"))


@app.command(
    epilog=examples(
        "tokenmill captures erase bank/support --user customer-17",
        "tokenmill captures erase bank/support --request req-65a1b2c3d4e5f-0a1b2c3d000007",
        "tokenmill captures erase bank/support --all -y",
    )
)
def erase(
    owner: Owner,
    user: Annotated[str, typer.Option(help="Rows whose requests named this `user`.")] = "",
    request: Annotated[str, typer.Option(help="The row of this answer: x-request-id, or its id.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="All rows and opinions of the project.")] = False,
    yes: Yes = False,
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Delete captured rows and opinions. Runs and releases that have read them keep what they learned."""
    files = _files(locate(directory, file).paths.captures, owner)
    which, what = _chosen(user, request, everything)
    confirm(f"Erase {what} of {owner}? It cannot be undone.", yes)
    rows, opinions = files.erase(which)
    if as_json:
        print_json({"owner": owner, "erased": rows, "opinions": opinions})
        return
    found = f"{rows:,} {'row' if rows == 1 else 'rows'}"
    found += f" and {opinions:,} {'opinion' if opinions == 1 else 'opinions'}"
    stdout().print(f"{found} of {escape(owner)} erased.")


def _files(root: Path, owner: str) -> CaptureFiles:
    known = CaptureFiles.all_below(root)
    found = next((one for one in known if f"{one.tenant}/{one.project}" == owner), None)
    if found is None:
        raise NotFoundError(
            f"nothing of {owner!r} was ever captured",
            expected=", ".join(f"{one.tenant}/{one.project}" for one in known) or "a project that captures",
            fix="`tokenmill captures` lists what there is.",
        )
    return found


def _chosen(user: str, request: str, everything: bool) -> tuple[Callable[[Row], bool], str]:
    if sum((bool(user), bool(request), everything)) != 1:
        raise UsageError(
            "one of --user, --request and --all says what to erase",
            expected="exactly one of them",
            fix="tokenmill captures erase TENANT/PROJECT --user NAME",
        )
    if user:
        digest = user_digest(user)
        return lambda row: row.get("user") == digest, f"all rows of user {user!r}"
    if request:
        return lambda row: request in (row.get("request"), row.get("response")), f"the row of {request}"
    return lambda _: True, "all rows and opinions"


def _summary(files: CaptureFiles) -> dict[str, Any]:
    aliases: dict[str, int] = {}
    oldest = 0
    for row in files.rows():
        alias = str(row.get("alias"))
        aliases[alias] = aliases.get(alias, 0) + 1
        at_us = int(row.get("at_us") or 0)
        oldest = min(oldest or at_us, at_us)
    opinions = list(files.opinions().values())
    agreed = files.consents
    last = agreed[-1] if agreed else {}
    return {
        "tenant": files.tenant,
        "project": files.project,
        "aliases": dict(sorted(aliases.items())),
        "good": sum(opinions),
        "bad": len(opinions) - sum(opinions),
        "oldest_us": oldest,
        "bytes": files.size,
        "consent": last.get("consent", ""),
        "since_us": last.get("since_us", 0),
        "keep_us": last.get("keep_us", 0),
        "consents": agreed,
    }
