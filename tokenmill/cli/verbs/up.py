"""``tokenmill up``: starts the controller of this folder's factory, waits for it and prints its URL.

Starts nothing twice: when it runs already with this file, it says so; with a changed file, it points to plan
and apply. The key that it makes on the first start is shown once.
"""

from __future__ import annotations

import os
import time
from typing import Annotated, Any

import typer
from rich.markup import escape

from tokenmill.cli.checks import port
from tokenmill.cli.client import Client
from tokenmill.cli.launch import lives, start, wait_until_ready, wait_until_up
from tokenmill.cli.options import AsJson, Directory, File, Place, locate
from tokenmill.cli.output import examples, print_json, stderr, stdout, when_interrupted
from tokenmill.domain.codec import to_plain
from tokenmill.domain.errors import ConflictError, ResourceError
from tokenmill.domain.factory import Factory
from tokenmill.floor.controller import stop
from tokenmill.spec.factory_file import load
from tokenmill.spec.settings import GATEWAYS_MOST

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "tokenmill up",
        "tokenmill up -C demo --timeout 600",
        "tokenmill up --foreground",
        "tokenmill up --gateways 2",
        "tokenmill up --floor ray",
        "tokenmill up --floor 10.0.0.5:6379",
        "tokenmill up --json --no-wait",
    )
)
def up(
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Return when it is ready, or when it answers.")
    ] = True,
    timeout: Annotated[float, typer.Option(min=1, max=86400, help="Seconds to wait for engines.")] = 300.0,
    floor: Annotated[
        str,
        typer.Option(
            envvar="TOKENMILL_FLOOR",
            help="Where work runs: local, ray (a cluster started here), or a Ray cluster's address. "
            "Default: as the last time.",
        ),
    ] = "",
    gateways: Annotated[
        int,
        typer.Option(
            min=0,
            max=GATEWAYS_MOST,
            envvar="TOKENMILL_GATEWAYS",
            help="Gateway processes that share the port, one for each core that clients keep busy. "
            "Default: as the last time.",
            show_default=False,
        ),
    ] = 0,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay; Ctrl-C stops the factory.")] = False,
) -> None:
    """Start the factory of this folder and print its URL."""
    if floor:
        os.environ["TOKENMILL_FLOOR"] = floor  # the controller reads the environment that it inherits
    if gateways:
        os.environ["TOKENMILL_GATEWAYS"] = str(gateways)
    place = locate(directory, file)
    factory = load([place.need_file()], os.environ)
    with Client(place) as client:
        if client.running():
            _show_running(client, factory, as_json)
            return
        _check_port(place)
        if not as_json:
            stderr().print(f"[dim]Starting {escape(factory.name)} ({_in_short(factory)})[/dim]")
        if foreground:
            _up_in_foreground(client, factory, wait, timeout, as_json)
            return
        pid = start(place, detached=True)
        with when_interrupted("The factory goes on starting: tokenmill status. To stop it: tokenmill down"):
            _bring_up(client, factory, pid, wait, timeout, as_json)


def _bring_up(client: Client, factory: Factory, pid: int, wait: bool, timeout: float, as_json: bool) -> None:
    """Wait for the controller, give it its file, make the first key, wait for engines, say where it is."""
    until = time.monotonic() + timeout
    wait_until_up(client, pid, until)
    _bring_to(client, factory)
    key = _first_key(client, factory)
    shown = wait_until_ready(client, pid, until) if wait else client.get("/api/status")
    _show_started(shown, key, as_json)


def _up_in_foreground(client: Client, factory: Factory, wait: bool, timeout: float, as_json: bool) -> None:
    """Stay until the controller ends. Ctrl-C, at any moment, and any error end it cleanly first."""
    pid = start(client.place, detached=False)
    with when_interrupted("The factory is stopped."):
        try:
            _bring_up(client, factory, pid, wait, timeout, as_json)
            while lives(pid):
                time.sleep(0.2)
        finally:
            if lives(pid):
                stderr().print("\n[dim]Stopping: open requests finish first.[/dim]")
                stop(client.place.paths)


def _show_running(client: Client, factory: Factory, as_json: bool) -> None:
    """Nothing is started. Raises ``ConflictError`` when the file says something else than what runs."""
    shown = client.get("/api/status")
    changes = client.post("/api/plan", {"factory": to_plain(factory)}, timeout_s=300)["changes"]
    if changes:
        raise ConflictError(
            f"{shown['factory']} is already running at {shown['url']} (pid {shown['pid']}), "
            f"and the file has {len(changes)} change(s) since",
            expected="the file that is running",
            fix="tokenmill plan, then tokenmill apply",
        )
    if as_json:
        print_json(
            {"already_running": True, "url": shown["url"], "pid": shown["pid"], "ready": shown["ready"]}
        )
    else:
        stdout().print(
            f"{escape(shown['factory'])} is already running at [bold]{shown['url']}[/bold] "
            f"(pid {shown['pid']})"
        )


def _check_port(place: Place) -> None:
    """Raise ``ResourceError`` when another program has the gateway's port, before anything is started."""
    for check in port(place):
        if check.status == "fail":
            raise ResourceError(check.found, expected="a port that nobody uses", fix=check.fix)


def _bring_to(client: Client, factory: Factory) -> None:
    """Apply the file when what is applied is not what it says: on the first start, or edited while down."""
    plain = to_plain(factory)
    made = client.post("/api/plan", {"factory": plain}, timeout_s=300)
    if made["changes"]:
        client.post("/api/apply", {"factory": plain, "base_version": made["base_version"]}, timeout_s=300)


def _first_key(client: Client, factory: Factory) -> dict[str, Any] | None:
    """An admin key for the first tenant, when there is no key at all yet."""
    if client.get("/api/keys") or not any(tenant.projects for tenant in factory.tenants):
        return None
    made: dict[str, Any] = client.post("/api/keys", {"scope": "admin"})
    return made


def _show_started(shown: dict[str, Any], key: dict[str, Any] | None, as_json: bool) -> None:
    if as_json:
        made = {"already_running": False, "url": shown["url"], "pid": shown["pid"], "ready": shown["ready"]}
        print_json({**made, "key": key})
        return
    console = stdout()
    state = shown["health"]
    console.print(
        f"[bold]{escape(shown['factory'])}[/bold] is {state} at [bold]{shown['url'] or 'its socket'}[/bold]"
    )
    if key:
        console.print(f"Key (shown once, opens the page and the API): [bold]{key['secret']}[/bold]")


def _in_short(factory: Factory) -> str:
    parts = [
        (len(factory.deployments), "deployment"),
        (len(factory.lines), "line"),
        (len(factory.tenants), "tenant"),
    ]
    return ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for count, name in parts)
