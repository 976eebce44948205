"""``tokenmill store``: which revision the database has, bring it up to date, copy it to another one."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from tokenmill.cli.options import AsJson, Directory, File, locate
from tokenmill.cli.output import add_rows, examples, print_json, stderr, stdout, table
from tokenmill.console.text import number
from tokenmill.domain.errors import NotFoundError
from tokenmill.store.copy import copy_store
from tokenmill.store.database import Database, sqlite_path
from tokenmill.store.migrate import check_revision, head_revision
from tokenmill.store.opening import open_store

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    epilog=examples(
        "tokenmill store status",
        "tokenmill store migrate",
        "tokenmill store copy sqlite:///.tokenmill/tokenmill.db postgresql+psycopg://user@host/factory",
    ),
)


@app.callback()
def store() -> None:
    """Look at, migrate or copy the store."""


@app.command("status", epilog=examples("tokenmill store status"))
def status(directory: Directory = None, file: File = None, as_json: AsJson = False) -> None:
    """Show where the store is, its revision and whether this version must migrate it. Changes nothing."""
    place = locate(directory, file)
    path = sqlite_path(place.paths.database_url(place.settings))
    if path is not None and not path.is_file():
        raise NotFoundError(
            f"there is no store at {path} yet", fix="tokenmill up, or tokenmill store migrate"
        )
    database = Database(place.paths.database_url(place.settings))
    try:
        with database.read() as connection:
            revision = check_revision(connection, database.where)
        found = {"where": database.where, "revision": revision, "newest": head_revision()}
    finally:
        database.close()
    _show({**found, "current": found["revision"] == found["newest"]}, as_json)


@app.command("migrate", epilog=examples("tokenmill store migrate"))
def migrate(directory: Directory = None, file: File = None, as_json: AsJson = False) -> None:
    """Bring the database to this version's revision. tokenmill up does the same."""
    place = locate(directory, file)
    place.paths.root.mkdir(parents=True, exist_ok=True)
    store = open_store(place.paths.database_url(place.settings))
    try:
        newest = head_revision()
        _show({"where": store.where, "revision": newest, "newest": newest, "current": True}, as_json)
    finally:
        store.close()


@app.command(
    "copy", epilog=examples("tokenmill store copy sqlite:////srv/a.db postgresql+psycopg://user@host/b")
)
def copy(
    source: Annotated[str, typer.Argument(help="SQLAlchemy URL to copy from.")],
    destination: Annotated[str, typer.Argument(help="SQLAlchemy URL to copy to. It must be empty.")],
    live: Annotated[bool, typer.Option("--live", help="Also while a controller leads the source.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy a whole store. Everything arrives and is compared, or nothing is written."""
    console = stderr()

    def progress(name: str, done: int, total: int) -> None:
        if done == total:
            console.print(f"[dim]{name}: {number(done)} rows[/dim]")

    report = copy_store(source, destination, progress, allow_live=live)
    if as_json:
        tables = [{"name": str(t.name), "rows": t.rows, "digest": t.digest} for t in report.tables]
        print_json({"revision": report.revision, "tables": tables})
    else:
        rows = [(found.name, number(found.rows), found.digest[:16]) for found in report.tables]
        stdout().print(add_rows(table("Table", ">Rows", "Digest"), rows, "nothing"))


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    state = (
        "up to date"
        if found["current"]
        else f"this version writes {found['newest']}: tokenmill store migrate"
    )
    stdout().print(f"{escape(found['where'])}\n  revision {found['revision'] or 'none'}: {state}")
