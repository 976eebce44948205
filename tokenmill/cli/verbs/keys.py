"""``tokenmill keys``: API keys of tenants. A secret is shown once, when it is made, and kept nowhere."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.markup import escape

from tokenmill.cli.client import Client, connect, segment
from tokenmill.cli.options import AsJson, Directory, File, locate
from tokenmill.cli.output import add_rows, examples, print_json, status_text, stderr, stdout, table
from tokenmill.console.text import clock
from tokenmill.domain.errors import NotFoundError, UsageError
from tokenmill.domain.units import parse_duration

app = typer.Typer(
    add_completion=False,
    epilog=examples(
        "tokenmill keys",
        "tokenmill keys create --tenant acme --project support --expires 90d",
        "tokenmill keys create --admin",
        "tokenmill keys rotate key-1f2e3d4c",
        "tokenmill keys disable key-1f2e3d4c",
    ),
)

Id = Annotated[str, typer.Argument(help="Id of the key, as in the list.")]


@app.callback(invoke_without_command=True)
def keys(ctx: typer.Context, directory: Directory = None, file: File = None, as_json: AsJson = False) -> None:
    """List, create, disable or rotate API keys."""
    if ctx.invoked_subcommand is None:
        list_keys(directory, file, as_json)


@app.command("list", epilog=examples("tokenmill keys list --json"))
def list_keys(directory: Directory = None, file: File = None, as_json: AsJson = False) -> None:
    """List keys, without their secrets."""
    with connect(locate(directory, file)) as client:
        found = client.get("/api/keys")
    if as_json:
        print_json(found)
        return
    rows = [
        (
            key["id"],
            f"{key['tenant']}/{key['project']}",
            key["scope"],
            f"…{key['hint']}",
            clock(key["created_us"]),
            clock(key["expires_us"]) if key["expires_us"] else "never",
            _status(key),
        )
        for key in found
    ]
    made = table("Key", "Tenant/project", "Scope", "Ends in", "Made", "Expires", "Status")
    stdout().print(add_rows(made, rows, "no key: tokenmill keys create"))


@app.command(
    "create",
    epilog=examples("tokenmill keys create --tenant acme --project support", "tokenmill keys create --admin"),
)
def create(
    tenant: Annotated[str, typer.Option(help="Whose key it is. Default: the file's first tenant.")] = "",
    project: Annotated[str, typer.Option(help="Its project. Default: the tenant's first.")] = "",
    admin: Annotated[
        bool, typer.Option("--admin", help="May also use the console and the admin API.")
    ] = False,
    expires: Annotated[str, typer.Option(help="Lifetime, for example 90d. Default: never.")] = "",
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print its secret, once."""
    until_us = _now_us() + parse_duration(expires) if expires else 0
    body = {
        "tenant": tenant,
        "project": project,
        "scope": "admin" if admin else "inference",
        "expires_us": until_us,
    }
    with connect(locate(directory, file)) as client:
        _show_new(client.post("/api/keys", body), as_json)


@app.command("disable", epilog=examples("tokenmill keys disable key-1f2e3d4c"))
def disable(key: Id, directory: Directory = None, file: File = None, as_json: AsJson = False) -> None:
    """Close a key for good. Requests with it are refused from now on."""
    with connect(locate(directory, file)) as client:
        found = client.delete(f"/api/keys/{segment(key)}")
    if as_json:
        print_json(found)
    else:
        stdout().print(f"{key} is disabled.")
        _warn_late(found)


@app.command("rotate", epilog=examples("tokenmill keys rotate key-1f2e3d4c"))
def rotate(key: Id, directory: Directory = None, file: File = None, as_json: AsJson = False) -> None:
    """Make a key like this one, then disable this one."""
    with connect(locate(directory, file)) as client:
        old = _find(client, key)
        if old["disabled"]:
            raise UsageError(f"{key} is disabled already", fix="tokenmill keys create")
        body = {name: old[name] for name in ("tenant", "project", "scope", "expires_us")}
        made = client.post("/api/keys", body)
        ended = client.delete(f"/api/keys/{segment(key)}")
    both = made["effective"] and ended["effective"]
    _show_new({**made, "replaces": key, "replaced": ended, "effective": both}, as_json)


def _find(client: Client, key: str) -> dict[str, Any]:
    for found in client.get("/api/keys"):
        if found["id"] == key:
            return dict(found)
    raise NotFoundError(f"there is no key {key!r}", fix="tokenmill keys list")


def _show_new(key: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(key)
        return
    console = stdout()
    console.print(f"{key['id']} for {escape(key['tenant'])}/{escape(key['project'])} ({key['scope']})")
    console.print(f"  [bold]{key['secret']}[/bold]")
    console.print("[dim]It is not shown again.[/dim]")
    _warn_late(key)


def _warn_late(found: dict[str, Any]) -> None:
    """A gateway that was busy or stopped has not heard of the key yet; it will."""
    if not found["effective"]:
        stderr().print("[yellow]–[/yellow] A gateway has not taken this in yet: tokenmill logs gateway")


def _status(key: dict[str, Any]) -> str:
    if key["disabled"]:
        return status_text("disabled")
    return "expired" if 0 < key["expires_us"] <= _now_us() else "live"


def _now_us() -> int:
    return time.time_ns() // 1000
