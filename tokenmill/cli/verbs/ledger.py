"""``tokenmill ledger verify``: double entry, tokens, spools, engines. Reads only; repairs nothing."""

from __future__ import annotations

from typing import Any

import typer
from rich.markup import escape

from tokenmill.cli.client import Client
from tokenmill.cli.options import AsJson, Directory, File, Place, locate
from tokenmill.cli.output import examples, print_json, status_text, stdout
from tokenmill.console.text import number
from tokenmill.domain.codec import to_plain
from tokenmill.domain.errors import StoreError
from tokenmill.store.opening import open_store

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    epilog=examples("tokenmill ledger verify", "tokenmill ledger verify --json"),
)


@app.callback()
def ledger() -> None:
    """Verify the ledger against the gateways' spools and the engines' own counters."""


@app.command("verify", epilog=examples("tokenmill ledger verify"))
def verify(directory: Directory = None, file: File = None, as_json: AsJson = False) -> None:
    """Check every posting and every settled request, and hold them against what each running engine counted.

    Exits with 8 when something does not add up. Without a running controller no engine is asked.
    """
    report = _report(locate(directory, file))
    if as_json:
        print_json(report)
    else:
        console = stdout()
        console.print(status_text("passed" if report["ok"] else "failed"))
        for name in ("settlements", "postings", "spool_lines", "pending", "in_flight", "unreconciled_tokens"):
            console.print(f"  [dim]{name.replace('_', ' ')}:[/dim] {number(report[name])}")
        for engine in report["engines"]:
            console.print(f"  [dim]{engine['replica']}:[/dim] {escape(_engine_text(engine))}")
        for problem in report["problems"]:
            console.print(f"  [red]-[/red] {escape(problem)}")
    if not report["ok"]:
        raise StoreError(
            f"the ledger has {len(report['problems'])} problem(s)",
            fix="Keep the spool files and the database as they are.",
        )


def _engine_text(engine: dict[str, Any]) -> str:
    """Tokens that the engine counted, and whether the same were settled."""
    counts = f"{number(engine['counted_input'])} in, {number(engine['counted_output'])} out"
    said = engine["difference"] or f"settled to the token in {number(engine['requests'])} requests"
    return f"{counts} by its own counters; {said}"


def _report(place: Place) -> dict[str, Any]:
    """From the controller, or from the store itself when none runs."""
    with Client(place, timeout_s=600) as client:
        if place.settings.url or client.running():
            found: dict[str, Any] = client.get("/api/ledger/verify")
            return found
    store = open_store(place.paths.database_url(place.settings))
    try:
        report = store.ledger.verify(place.paths.spool)
    finally:
        store.close()
    return {"ok": not report.problems, **to_plain(report)}
