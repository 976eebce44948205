"""``tokenmill jobs``: commands that run on the factory's floor, beside what it serves."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.markup import escape

from tokenmill.cli.client import Client, connect, segment
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
from tokenmill.cli.verbs.why import explain
from tokenmill.console.text import ago, duration
from tokenmill.domain.errors import RunFailedError, UsageError
from tokenmill.domain.units import parse_cpu, parse_duration, parse_size

app = typer.Typer(
    add_completion=False,
    epilog=examples(
        "tokenmill jobs",
        "tokenmill jobs submit --cpu 1 --memory 512MiB -- python3 -c 'print(1)'",
        "tokenmill jobs submit --workers 2 --wait -- torchrun train.py",
        "tokenmill jobs show job-000001",
        "tokenmill jobs cancel job-000001",
    ),
)

Id = Annotated[str, typer.Argument(help="Id of the job, as in the list.")]
ENDED = ("succeeded", "failed", "cancelled")
POLL_S = 0.5


@app.callback(invoke_without_command=True)
def jobs(ctx: typer.Context, directory: Directory = None, file: File = None, as_json: AsJson = False) -> None:
    """List, submit, show or cancel jobs."""
    if ctx.invoked_subcommand is None:
        list_jobs(directory, file, as_json)


@app.command("list", epilog=examples("tokenmill jobs list"))
def list_jobs(directory: Directory = None, file: File = None, as_json: AsJson = False) -> None:
    """List jobs, those that have not ended first."""
    with connect(locate(directory, file)) as client:
        found = client.get("/api/jobs")
    if as_json:
        print_json(found)
        return
    now_us = time.time_ns() // 1000
    rows = [
        (
            job["id"],
            escape(job["name"]),
            job["kind"],
            status_text(job["status"]),
            f"{job['tenant']}/{job['project']}",
            duration(job["seconds"] * 1e6) if job["seconds"] else "-",
            ago(job["submitted_us"], now_us),
            escape(why_cell(job["reason"])),
        )
        for job in found
    ]
    made = table("Job", "Name", "Kind", "Status", "Tenant/project", ">Time", ">Submitted", "Why")
    stdout().print(add_rows(made, rows, "no job yet"))


@app.command(
    "submit", epilog=examples("tokenmill jobs submit --cpu 1 --memory 512MiB --wait -- python3 prepare.py")
)
def submit(
    command: Annotated[list[str], typer.Argument(help="The command and its words, after --.")],
    tenant: Annotated[str, typer.Option(help="Who pays. Default: the file's first tenant.")] = "",
    project: Annotated[str, typer.Option(help="Its project. Default: the tenant's first.")] = "",
    name: Annotated[str, typer.Option(help="A name for people.")] = "",
    cpu: Annotated[str, typer.Option(help="Cores of each worker: 1, 0.5 or 500m.")] = "1",
    memory: Annotated[
        str, typer.Option(help="Memory of each worker; 0 keeps none, and bounds none.")
    ] = "512MiB",
    gpus: Annotated[int, typer.Option(min=0, help="Accelerators of each worker.")] = 0,
    workers: Annotated[int, typer.Option(min=1, max=4096, help="Gang size: all start together or none.")] = 1,
    timeout: Annotated[str, typer.Option(help="Longest run.")] = "1h",
    wait: Annotated[bool, typer.Option("--wait", help="Return when the job has ended.")] = False,
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Run a command on the floor."""
    with connect(locate(directory, file)) as client:
        tenant, project = _owner(client, tenant, project)
        resources = {"cpu_millis": parse_cpu(cpu), "memory_bytes": parse_size(memory), "accelerators": gpus}
        body = {
            "tenant": tenant,
            "project": project,
            "name": name,
            "command": command,
            "resources": resources,
            "workers": workers,
            "timeout_us": parse_duration(timeout),
        }
        started = client.post("/api/jobs", body)
        if not wait:
            if as_json:
                print_json(started)
            else:
                stdout().print(f"{started['job']} submitted: tokenmill logs {started['job']} -f")
            return
        with when_interrupted(f"{started['job']} goes on: tokenmill jobs show {started['job']}"):
            found = _wait(client, started["job"])
    said, error = f"{found['id']} {status_text(found['status'])} {escape(found['reason'])}", None
    if found["status"] != "succeeded":
        error = RunFailedError(f"{found['id']} {found['status']}", fix=f"tokenmill logs {found['id']}")
    end_with(found, error, as_json=as_json, show=lambda: stdout().print(said))


@app.command("show", epilog=examples("tokenmill jobs show job-000001"))
def show(job: Id, directory: Directory = None, file: File = None, as_json: AsJson = False) -> None:
    """Show everything that is known of a job."""
    with connect(locate(directory, file)) as client:
        found = client.get(f"/api/jobs/{segment(job)}")
    if as_json:
        print_json(found)
    else:
        explain(stdout(), found)


@app.command("cancel", epilog=examples("tokenmill jobs cancel job-000001 -y"))
def cancel(
    job: Id, yes: Yes = False, directory: Directory = None, file: File = None, as_json: AsJson = False
) -> None:
    """Stop a job."""
    with connect(locate(directory, file)) as client:
        found = post_if_sure(client, f"/api/jobs/{segment(job)}/cancel", {}, f"Cancel {job}?", yes)
    if as_json:
        print_json(found)
    else:
        stdout().print(f"{job} is cancelled.")


def _wait(client: Client, job: str) -> dict[str, Any]:
    while True:
        found: dict[str, Any] = client.get(f"/api/jobs/{segment(job)}")
        if found["status"] in ENDED:
            return found
        time.sleep(POLL_S)


def _owner(client: Client, tenant: str, project: str) -> tuple[str, str]:
    """The tenant and project that were named, else the factory's first ones."""
    tenants = client.get("/api/tenants")
    chosen = next((found for found in tenants if found["name"] == tenant or not tenant), None)
    if chosen is None:
        names = ", ".join(found["name"] for found in tenants)
        raise UsageError(f"there is no tenant {tenant!r}", expected=f"one of {names}" if names else "")
    return chosen["name"], project or next(iter(chosen["projects"]), "")
