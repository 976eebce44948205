"""``tokenmill peers``: the factories that answer for ours, and whether their bills are what we settled."""

from __future__ import annotations

from typing import Any

import typer
from rich.markup import escape

from tokenmill.cli.client import connect
from tokenmill.cli.options import AsJson, Directory, File, Since, Until, locate, window
from tokenmill.cli.output import add_rows, examples, print_json, status_text, stdout, table
from tokenmill.console.text import number

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "tokenmill peers",
        "tokenmill peers --since 2026-11-01 --until 2026-12-01",
        "tokenmill peers --since 24h --json",
    )
)
def peers(
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
    since: Since = "",
    until: Until = "",
) -> None:
    """Show peer factories: what they answered for us as we settled it, and as they will bill it.

    Exits with 1 where the two differ.
    """
    with connect(locate(directory, file)) as client:
        now_us = int(client.get("/api/status")["now_us"])
        since_us, until_us = window(since, until, now_us)
        found: list[dict[str, Any]] = client.get("/api/peers", since_us=since_us, until_us=until_us)
    if as_json:
        print_json(found)
    else:
        _show(found)
    if any(peer["differs"] for peer in found):
        raise typer.Exit(1)


def _show(found: list[dict[str, Any]]) -> None:
    made = table(
        "Peer", "Law", "Answers for", "State", "", ">Requests", ">Tokens in", ">Tokens out", ">Money"
    )
    cells: list[tuple[str, ...]] = []
    for peer in found:
        cells.append((*_about(peer), "settled here", *_counts(peer["here"]), ""))
        if peer["there"] is not None:
            money = " + ".join(f"{amount} {unit}" for unit, amount in peer["there"]["cost"].items())
            cells.append(("", "", "", _verdict(peer), "billed there", *_counts(peer["there"]), money or "–"))
    stdout().print(add_rows(made, cells, "no peer: a document of kind peer in the factory file names one"))
    for peer in found:
        problem = peer["reason"] or peer["problem"]
        if problem:
            stdout().print(f"  {escape(peer['name'])}: {escape(problem)}")


def _about(peer: dict[str, Any]) -> tuple[str, str, str, str]:
    return peer["name"], peer["jurisdiction"], ", ".join(peer["aliases"]), status_text(peer["status"])


def _verdict(peer: dict[str, Any]) -> str:
    words = ", ".join(name.replace("_", " ") for name in peer["differs"])
    return f"differs in {words}" if words else "the same"


def _counts(counts: dict[str, int]) -> tuple[str, str, str]:
    return number(counts["requests"]), number(counts["input_tokens"]), number(counts["output_tokens"])
