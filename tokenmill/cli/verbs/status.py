"""``tokenmill status``: the factory in tables. Reads only."""

from __future__ import annotations

from collections import Counter
from typing import Any

import typer
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from tokenmill.cli.client import connect
from tokenmill.cli.options import AsJson, Directory, File, locate
from tokenmill.cli.output import add_rows, examples, print_json, status_text, stdout, table, why_cell
from tokenmill.console.text import ago, duration, number, size

app = typer.Typer(add_completion=False)

ENDED_JOBS = ("succeeded", "failed", "cancelled")
MOST_NODES = 40  # in the table; --json has all


@app.command(epilog=examples("tokenmill status", "tokenmill status --json | jq .deployments"))
def status(directory: Directory = None, file: File = None, as_json: AsJson = False) -> None:
    """Show the factory: health, models, lines, jobs."""
    with connect(locate(directory, file)) as client:
        shown = client.get("/api/status")
    if as_json:
        print_json(shown)
        return
    console = stdout()
    console.print(head(shown))
    for part in (*nodes(shown), models(shown), lines(shown), jobs(shown)):
        console.print(part)


def head(shown: dict[str, Any]) -> RenderableType:
    """Name, health with reasons, URL, throughput, power, memory."""
    state = status_text(shown["health"])
    name = escape(shown["factory"] or "no factory yet")
    title = (
        f"[bold]{name}[/bold]  {state}  [dim]up {duration(shown['uptime_s'] * 1e6)}, "
        f"file version {shown['spec_version']}, Tokenmill {shown['version']}, pid {shown['pid']}[/dim]"
    )
    rows = [title]
    rows += [f"  [yellow]-[/yellow] {escape(reason)}" for reason in shown["reasons"]]
    memory, energy = shown["memory"], shown["energy"]
    rows.append(f"  {shown['url'] or 'no gateway yet'}")
    rows.append(
        f"  {number(shown['throughput']['tokens_per_s'])} tokens/s, "
        f"{number(shown['throughput']['requests_per_s'])} requests/s, "
        f"{number(energy['watts'])} W [dim]({escape(energy['source'] or 'no source yet')})[/dim], "
        f"controller {size(memory['control_bytes'])}, gateway {size(memory['gateway_bytes'])}"
    )
    return Text.from_markup("\n".join(rows))


def nodes(shown: dict[str, Any]) -> list[RenderableType]:
    """Where work runs, as one table; none for one healthy node, which is the machine itself."""
    found = shown["nodes"]
    if len(found) < 2 and not any(node["lost"] or node["cordon"] or node.get("closed") for node in found):
        return []
    made = table("Node", "Status", "Stands in", ">Cores", ">Memory", "Accelerators", "Runs")
    rows: list[tuple[str, ...]] = []
    for node in found[:MOST_NODES]:
        what = node["node"]
        state = status_text("lost" if node["lost"] else "cordoned" if node["cordon"] else "alive")
        kinds = Counter(str(one["kind"]) for one in what["accelerators"])
        rows.append(
            (
                what["id"],
                f"{state} [dim]{escape(node['cordon'] or node.get('closed', ''))}[/dim]".removesuffix(
                    " [dim][/dim]"
                ),
                escape(" / ".join(part for part in (what["site"], what["row"], what["rack"]) if part)),
                number(what["cpu_millis"] / 1000),
                size(what["memory_bytes"]),
                ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items())) or "-",
                escape(", ".join(_runs_on(shown, what["id"]))) or "[dim]nothing[/dim]",
            )
        )
    if len(found) > MOST_NODES:
        rows.append((f"and {len(found) - MOST_NODES} more", *[""] * 6))
    return [add_rows(made, rows, "no node")]


def _runs_on(shown: dict[str, Any], node: str) -> list[str]:
    """Ids of what a node holds: replicas with their deployment, jobs with their name."""
    replicas = [
        f"{replica['id']} {deployment['name']}"
        for deployment in shown["deployments"]
        for replica in deployment["replicas"]
        if replica["node"] == node
    ]
    held = [job for job in shown["jobs"] if node in job["nodes"] and job["status"] not in ENDED_JOBS]
    return replicas + [f"{job['id']} {job['name']}" for job in held]


def models(shown: dict[str, Any]) -> RenderableType:
    promises = any(deployment["objective"] for deployment in shown["deployments"])
    made = table("Alias", "Serves", "Points at", "Replicas", *(("In time",) if promises else ()))
    rows = []
    for deployment in shown["deployments"]:
        serves = deployment["model"] or f"line {deployment['line']}"
        targets = ", ".join(target["release"] for target in deployment["weights"])
        replicas = "\n".join(_replica(replica) for replica in deployment["replicas"])
        rows.append(
            (
                deployment["name"],
                serves,
                targets or f"[dim]{escape(deployment['reason'] or '-')}[/dim]",
                replicas or (status_text("asleep") if deployment["asleep"] else "[dim]none[/dim]"),
                *((_in_time(deployment["objective"]),) if promises else ()),
            )
        )
    for peer in shown.get("peers", ()):
        state = status_text(peer["status"])
        about = (f"peer {peer['name']}", peer["jurisdiction"], state, *([""] * promises))
        rows += [(name, *about) for name in peer["aliases"]]
    return add_rows(made, rows, "no deployment")


def _in_time(objective: dict[str, Any] | None) -> str:
    """The share of the last minute's answers that kept what the deployment promises."""
    if objective is None:
        return ""
    promised, attained = objective["attainment_milli"], objective["attained_milli"]
    if attained is None:
        return f"[dim]no answers, {promised / 10:g} % promised[/dim]"
    sign = "[green]✓[/green]" if attained >= promised else "[yellow]▼[/yellow]"
    answers = objective["met"] + objective["missed"]
    return f"{sign} {attained / 10:g} % of {answers}, {promised / 10:g} % promised"


def _replica(replica: dict[str, Any]) -> str:
    note = escape(replica["reason"] or replica["address"])
    return f"{replica['id']} {status_text(replica['status'])} [dim]{note}[/dim]"


def lines(shown: dict[str, Any]) -> RenderableType:
    parts: list[RenderableType] = []
    for line in shown["lines"]:
        last = line["last_run"]
        title = f"[bold]{line['name']}[/bold]  "
        title += f"{last['id']} {status_text(last['status'])}" if last else "[dim]has not run yet[/dim]"
        parts.append(Text.from_markup(title))
        if last:
            made = table("Station", "Status", ">Time", "Progress")
            rows = [
                (s["name"], status_text(s["status"]), station_time(s), escape(station_progress(s)))
                for s in line["stations"]
            ]
            parts.append(add_rows(made, rows, "no station"))
    return Group(*parts)


def jobs(shown: dict[str, Any]) -> RenderableType:
    live = [job for job in shown["jobs"] if job["status"] not in ENDED_JOBS]
    if not live:
        return Text("")
    made = table("Job", "Name", "Status", "Tenant", ">Submitted", "Why")
    rows = [
        (
            job["id"],
            escape(job["name"]),
            status_text(job["status"]),
            job["tenant"],
            ago(job["submitted_us"], shown["now_us"]),
            escape(why_cell(job["reason"])),
        )
        for job in live
    ]
    return add_rows(made, rows, "no job")


def station_time(station: dict[str, Any]) -> str:
    return duration(station["seconds"] * 1e6) if station.get("seconds") else "-"


def station_progress(station: dict[str, Any]) -> str:
    """``40 of 120 steps, about 1 min 20 s to go``."""
    progress = station.get("progress") or {}
    if not progress:
        return str(station.get("reason", ""))
    parts = []
    if progress.get("total"):
        parts.append(
            " ".join(
                [number(progress.get("done", 0)), "of", number(progress["total"]), progress.get("unit", "")]
            ).strip()
        )
    if progress.get("message"):
        parts.append(str(progress["message"]))
    if station.get("eta_s"):
        parts.append(f"about {duration(station['eta_s'] * 1e6)} to go")
    return ", ".join(parts)
