"""``tokenmill runs``: list, show (and follow), pause, resume or cancel runs of lines."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.markup import escape

from tokenmill.cli.client import connect, segment
from tokenmill.cli.follow import bad_end, follow_run, run_picture
from tokenmill.cli.options import AsJson, Directory, File, Yes, locate
from tokenmill.cli.output import (
    add_rows,
    end_with,
    examples,
    print_json,
    status_text,
    stdout,
    table,
    when_interrupted,
    why_cell,
)
from tokenmill.cli.questions import post_if_sure
from tokenmill.console.text import ago, duration, percent

app = typer.Typer(
    add_completion=False,
    epilog=examples(
        "tokenmill runs", "tokenmill runs show run-000001 --follow", "tokenmill runs cancel run-000002"
    ),
)

Id = Annotated[str, typer.Argument(help="Id of the run, as in the list.")]


@app.callback(invoke_without_command=True)
def runs(ctx: typer.Context, directory: Directory = None, file: File = None, as_json: AsJson = False) -> None:
    """List, show, pause, resume or cancel runs."""
    if ctx.invoked_subcommand is None:
        list_runs(directory, file, as_json)


@app.command("list", epilog=examples("tokenmill runs list --limit 5"))
def list_runs(
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many, newest first.")] = 50,
) -> None:
    """List runs, newest first."""
    with connect(locate(directory, file)) as client:
        found = client.get("/api/runs", limit=limit)
    if as_json:
        print_json(found)
        return
    now_us = time.time_ns() // 1000
    rows = [
        (
            run["id"],
            run["line"],
            status_text(run["status"]),
            duration(run["seconds"] * 1e6),
            ago(run["submitted_us"], now_us),
            _shares(run["verdict"]),
            run["release"] or "-",
            escape(why_cell(run["reason"])),
        )
        for run in found
    ]
    made = table("Run", "Line", "Status", ">Time", ">Started", "Base, tuned", "Release", "Why")
    stdout().print(add_rows(made, rows, "no run yet: tokenmill run LINE"))


@app.command(
    "show", epilog=examples("tokenmill runs show run-000001", "tokenmill runs show run-000001 --follow")
)
def show(
    run: Id,
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run ends.")] = False,
) -> None:
    """Show one run with its stations and its verdict."""
    with connect(locate(directory, file)) as client:
        if follow:
            with when_interrupted(f"{run} goes on."):
                found = follow_run(client, run)
        else:
            found = client.get(f"/api/runs/{segment(run)}")
    error = bad_end(found) if follow else None
    end_with(found, error, as_json=as_json, show=lambda: stdout().print(run_picture(found)))


@app.command("cancel", epilog=examples("tokenmill runs cancel run-000002 -y"))
def cancel(
    run: Id, yes: Yes = False, directory: Directory = None, file: File = None, as_json: AsJson = False
) -> None:
    """Stop a run. Stations that are done stay done and can be reused."""
    with connect(locate(directory, file)) as client:
        found = post_if_sure(client, f"/api/runs/{segment(run)}/cancel", {}, f"Cancel {run}?", yes)
    if as_json:
        print_json(found)
    else:
        stdout().print(f"{run} is cancelled.")


@app.command("pause", epilog=examples("tokenmill runs pause run-000002"))
def pause(run: Id, directory: Directory = None, file: File = None, as_json: AsJson = False) -> None:
    """Stop a run at its checkpoint; it holds no resources until it is resumed."""
    _steer(run, "pause", directory, file, as_json)


@app.command("resume", epilog=examples("tokenmill runs resume run-000002"))
def resume(run: Id, directory: Directory = None, file: File = None, as_json: AsJson = False) -> None:
    """Let a paused run go on from its checkpoint."""
    _steer(run, "resume", directory, file, as_json)


def _steer(run: str, action: str, directory: Directory, file: File, as_json: bool) -> None:
    with connect(locate(directory, file)) as client:
        found = client.post(f"/api/runs/{segment(run)}/{action}")
    if as_json:
        print_json(found)
    else:
        stdout().print(f"{run} is {'paused' if found['paused'] else 'going on'}.")


def _shares(verdict: dict[str, Any] | None) -> str:
    if not verdict or not verdict["n"]:
        return "-"
    return f"{percent(verdict['reference_milli'])}, {percent(verdict['candidate_milli'])}"
