"""``tokenmill doctor``: what is right, missing or wrong here, each with its remedy. Changes nothing."""

from __future__ import annotations

import typer
from rich.markup import escape

from tokenmill.cli.checks import all_checks
from tokenmill.cli.options import AsJson, Directory, File, locate
from tokenmill.cli.output import examples, print_json, stdout, table
from tokenmill.domain.codec import to_plain
from tokenmill.domain.errors import ResourceError

app = typer.Typer(add_completion=False)

SHOWN = {
    "ok": "[green]✓ ok[/green]",
    "warn": "[yellow]◆ warn[/yellow]",
    "fail": "[red]✕ fail[/red]",
    "off": "[dim]– off[/dim]",
}


@app.command(epilog=examples("tokenmill doctor", "tokenmill doctor --json"))
def doctor(directory: Directory = None, file: File = None, as_json: AsJson = False) -> None:
    """Check this machine and the installation. Exits with 13 when something would stop the factory."""
    checks = all_checks(locate(directory, file))
    failed = [check for check in checks if check.status == "fail"]
    if as_json:
        print_json({"ok": not failed, "checks": to_plain(checks)})
    else:
        made = table("Check", "", "Found", "What to do")
        for check in checks:
            made.add_row(
                check.name, SHOWN[check.status], escape(check.found), f"[dim]{escape(check.fix)}[/dim]"
            )
        stdout().print(made)
    if failed:
        raise ResourceError(f"{len(failed)} check(s) failed: {', '.join(check.name for check in failed)}")
