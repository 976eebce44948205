"""``tokenmill why``: reasons, as the control core gives them. Reads only."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from tokenmill.cli.client import connect, segment
from tokenmill.cli.options import AsJson, Directory, File, locate
from tokenmill.cli.output import examples, print_json, status_text, stdout

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("tokenmill why desk", "tokenmill why run-000001", "tokenmill why r-000001"))
def why(
    name: Annotated[
        str, typer.Argument(help="An alias, or the id of a run, job, replica, release, lease or key.")
    ],
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Explain why something is as it is: pending, placed there, rejected by a gate."""
    with connect(locate(directory, file)) as client:
        found = client.get(f"/api/why/{segment(name)}")
    if as_json:
        print_json(found)
    else:
        show(stdout(), found)


def show(console: Console, found: dict[str, Any]) -> None:
    """The decision: what it is about, the rule, the reasons, each candidate, and what would change it."""
    console.print(
        f"[bold]{escape(found['id'])}[/bold] {escape(found['kind'])} {status_text(found['status'])}"
    )
    if found["rule"]:
        console.print(f"  [dim]rule:[/dim] {escape(found['rule'])}")
    for reason in found["reasons"]:
        console.print(f"  - {escape(reason)}")
    if found["candidates"]:
        console.print("  [dim]looked at:[/dim]")
    for candidate in found["candidates"]:
        shape = "[green]✓[/green]" if candidate["accepted"] else "[dim]–[/dim]"
        console.print(f"    {shape} {escape(candidate['name'])}: {escape(candidate['reason'])}")
    for change in found["changes"]:
        console.print(f"  [green]→[/green] {escape(change)}")


def explain(console: Console, found: Any, depth: int = 0) -> None:
    """Print an explanation of whatever depth: sentences as they are, names in front of lists."""
    indent = "  " * depth
    if isinstance(found, dict):
        for name, value in found.items():
            if value in ("", [], {}, None):
                continue
            label = name.replace("_", " ")
            if isinstance(value, dict | list):
                console.print(f"{indent}[dim]{escape(label)}[/dim]")
                explain(console, value, depth + 1)
            else:
                console.print(f"{indent}[dim]{escape(label)}:[/dim] {escape(str(value))}")
    elif isinstance(found, list):
        for value in found:
            if isinstance(value, dict):
                explain(console, value, depth)
            else:
                console.print(f"{indent}- {escape(str(value))}")
    else:
        console.print(f"{indent}{escape(str(found))}")
