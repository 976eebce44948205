"""``tokenmill init``: writes a first factory file and a ``.gitignore``. Overwrites nothing unless told to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenmill.cli.options import FACTORY_FILE, AsJson
from tokenmill.cli.output import examples, print_json, stdout
from tokenmill.domain.errors import ConflictError
from tokenmill.spec.factory_file import template

app = typer.Typer(add_completion=False)

IGNORED = (".tokenmill/",)


@app.command(epilog=examples("tokenmill init", "tokenmill init my-factory", "tokenmill init --force"))
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write it; made when it is absent.")] = Path(),
    directory: Annotated[
        Path | None, typer.Option("--dir", "-C", help="The same, as other verbs take it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a factory file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented factory.yaml to start from."""
    target = (directory or Path()) / folder
    file = target / FACTORY_FILE
    if file.exists() and not force:
        raise ConflictError(
            f"{file} is there already", expected="a folder without one", fix="Add --force to overwrite it."
        )
    target.mkdir(parents=True, exist_ok=True)
    file.write_text(template(), encoding="utf-8")
    written = [str(file)]
    ignore = target / ".gitignore"
    have = ignore.read_text(encoding="utf-8").splitlines() if ignore.exists() else []
    missing = [name for name in IGNORED if name not in have]
    if missing:
        ignore.write_text("\n".join([*have, *missing]) + "\n", encoding="utf-8")
        written.append(str(ignore))
    if as_json:
        print_json({"written": written})
        return
    console = stdout()
    for name in written:
        console.print(f"wrote {name}")
    console.print("Look at it, put the line's data where it says, then: [bold]tokenmill up[/bold]")
