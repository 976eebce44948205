"""``tokenmill recall``: a release that turned out bad serves nowhere, ever again; and whom it has served."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.markup import escape

from tokenmill.cli.client import connect
from tokenmill.cli.options import AsJson, Directory, File, Yes, locate
from tokenmill.cli.output import add_rows, examples, print_json, stdout, table
from tokenmill.cli.questions import post_if_sure
from tokenmill.console.text import ago

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        'tokenmill recall rel-000012 --reason "trained on a leaked file"',
        "tokenmill recall rel-000012 -y",
    )
)
def recall(
    release: Annotated[str, typer.Argument(help="Release to recall, as in `tokenmill models`.")],
    reason: Annotated[str, typer.Option(help="Why, for those who ask later.")] = "",
    yes: Yes = False,
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Take a release out of every alias for ever, and list whom it served. It cannot be undone."""
    body, question = {"release": release, "reason": reason}, f"Recall {release}? It never serves again."
    with connect(locate(directory, file)) as client:
        found = post_if_sure(client, "/api/recall", body, question, yes)
    if as_json:
        print_json(found)
        return
    out = stdout()
    out.print(f"{release} is recalled.")
    for alias, desired in found["aliases"].items():
        out.print(f"{alias} goes to {desired or 'nothing: it has no other release'}.")
    now_us = time.time_ns() // 1000
    rows = [
        (
            escape(served["tenant"] or "(copies)"),
            escape(served["project"] or "-"),
            served["key"] or "-",
            escape(served["alias"]),
            f"{served['requests']:,}",
            ago(served["first_us"], now_us),
            ago(served["last_us"], now_us),
        )
        for served in found["served"]
    ]
    made = table("Tenant", "Project", "Key", "Model", ">Answers", ">First", ">Last")
    out.print(add_rows(made, rows, "It has served nobody."))
