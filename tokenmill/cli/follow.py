"""Follows one run to its end: a line per change where nobody watches, a live table on a terminal."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from tokenmill.cli.client import Client, segment
from tokenmill.cli.output import add_rows, status_text, stderr, table
from tokenmill.cli.verbs.status import station_progress, station_time
from tokenmill.console.text import duration, energy, percent, points
from tokenmill.domain.errors import GateRejectedError, RunFailedError, TokenmillError

POLL_S = 0.5
SAY_EVERY_S = 15.0


def follow_run(client: Client, run_id: str) -> dict[str, Any]:
    """Show a run on stderr until it ends, and return its last view."""
    console = stderr()
    if console.is_terminal:
        return _follow_live(client, run_id, console)
    return _follow_lines(client, run_id, console)


def _follow_live(client: Client, run_id: str, console: Console) -> dict[str, Any]:
    run: dict[str, Any] = client.get(f"/api/runs/{segment(run_id)}")
    with Live(run_picture(run), console=console, refresh_per_second=4) as live:
        while run["status"] == "running":
            time.sleep(POLL_S)
            run = client.get(f"/api/runs/{segment(run_id)}")
            live.update(run_picture(run))
    return run


def _follow_lines(client: Client, run_id: str, console: Console) -> dict[str, Any]:
    shown: dict[str, str] = {}
    said_at = time.monotonic()
    while True:
        run: dict[str, Any] = client.get(f"/api/runs/{segment(run_id)}")
        for station in run["stations"]:
            before = shown.get(station["name"], "waiting")
            if station["status"] != before:
                shown[station["name"]] = station["status"]
                note = f" after {station_time(station)}" if station["ended_us"] and station["seconds"] else ""
                why = f": {escape(station['reason'])}" if station["reason"] else ""
                console.print(f"{run_id} {station['name']}: {status_text(station['status'])}{note}{why}")
            if station["status"] == "running" and time.monotonic() - said_at > SAY_EVERY_S:
                said_at = time.monotonic()
                note = station_progress(station) or f"at work for {station_time(station)}"
                console.print(f"{run_id} {station['name']}: {escape(note)}")
        if run["status"] != "running":
            return run
        time.sleep(POLL_S)


def run_picture(run: dict[str, Any]) -> RenderableType:
    """Stations as a table with progress and time to go."""
    made = table("Station", "Status", ">Time", ">Energy", "Progress")
    rows = [
        (
            s["name"],
            status_text(s["status"]),
            station_time(s),
            energy(s["usage"]["energy_mj"]) if s["usage"]["energy_mj"] else "-",
            escape(station_progress(s)),
        )
        for s in run["stations"]
    ]
    head = f"[bold]{escape(run['line'])}[/bold] {run['id']} {status_text(run['status'])}"
    if run.get("paused"):
        head += f", {escape(run['reason'])}: tokenmill runs resume {run['id']}"
    elif run.get("eta_s"):
        head += f", about {duration(run['eta_s'] * 1e6)} to go"
    parts: list[RenderableType] = [Text.from_markup(head), add_rows(made, rows, "no station")]
    if run["verdict"]:
        parts.append(verdict_text(run["verdict"]))
    if run["release"]:
        serving = ", ".join(run["serving"]) or "nothing yet, its replica is starting"
        parts.append(Text.from_markup(f"Release [bold]{run['release']}[/bold], served as: {escape(serving)}"))
    return Group(*parts)


def verdict_text(verdict: dict[str, Any]) -> Text:
    """The gate's decision with both shares, the interval of their difference, and every reason."""
    lines = [f"Gate: {status_text('passed' if verdict['passed'] else 'rejected')}"]
    if verdict["n"]:
        lines.append(
            f"  {verdict['reference']} {percent(verdict['reference_milli'])}, "
            f"tuned [bold]{percent(verdict['candidate_milli'])}[/bold]: "
            f"{points(verdict['difference_milli'])} points on {verdict['n']} questions, 95 % interval "
            f"{points(verdict['low_milli'])} to {points(verdict['high_milli'])}"
        )
    lines += [f"  - {escape(reason)}" for reason in verdict["reasons"]]
    return Text.from_markup("\n".join(lines))


def bad_end(run: dict[str, Any]) -> TokenmillError | None:
    """A run's bad end as the error with its exit code."""
    if run["status"] == "rejected":
        return GateRejectedError(
            f"the gate rejected {run['id']}: {run['reason'] or 'the candidate is not better'}",
            expected="a candidate that is better than what it is compared with",
            fix=f"More data or another recipe; what serves is unchanged. tokenmill why {run['id']}",
        )
    if run["status"] in ("failed", "cancelled"):
        return RunFailedError(
            f"{run['id']} {run['status']}{': ' + run['reason'] if run['reason'] else ''}",
            fix=f"tokenmill logs {run['id']}; after the repair, finished stations are reused.",
        )
    return None
