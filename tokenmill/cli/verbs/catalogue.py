"""``tokenmill catalogue``: the types that factory files and questions of size may name. Needs no factory."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape

from tokenmill.cli.options import AsJson, TypesFile
from tokenmill.cli.output import add_rows, examples, print_json, stdout, table
from tokenmill.domain.catalogue import NO_TYPES, Catalogue
from tokenmill.domain.errors import NotFoundError
from tokenmill.domain.units import did_you_mean
from tokenmill.spec.catalogue import catalogue as types_of
from tokenmill.spec.catalogue.listing import KINDS, LISTED, values_of
from tokenmill.spec.factory_file import load_types

app = typer.Typer(add_completion=False)

Found = dict[str, list[Any]]


def _names(incomplete: str) -> list[str]:
    """For the shell: nouns and shipped types that begin so."""
    every = [*KINDS, *(name for noun in KINDS for name in getattr(types_of(), noun))]
    return [name for name in every if name.startswith(incomplete)]


@app.command(
    epilog=examples(
        "tokenmill catalogue",
        "tokenmill catalogue racks",
        "tokenmill catalogue h200-sxm",
        "tokenmill catalogue -f ours.yaml --json",
    )
)
def catalogue(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[TYPE]",
            help=f"A type, or all of one noun: {', '.join(KINDS)}.",
            autocompletion=_names,
            show_default=False,
        ),
    ] = None,
    file: TypesFile = None,
    as_json: AsJson = False,
) -> None:
    """List the types that a factory file, plan and calibrate may name, with units and sources.

    One type is shown with each of its values and where that is from.
    """
    known = types_of(load_types(file, os.environ) if file else NO_TYPES)
    found = _found(what, known)
    if as_json:
        print_json({noun: [_plain(one, known) for one in rows] for noun, rows in found.items()})
    elif what is None or what in KINDS:
        _list(found)
    else:
        _show(found, known)


def _found(what: str | None, known: Catalogue) -> Found:
    every: Found = {noun: list(getattr(known, noun).values()) for noun in KINDS}
    if what is None or what in every:
        return {noun: rows for noun, rows in every.items() if what in (None, noun)}
    found = {noun: [one for one in rows if one.id == what] for noun, rows in every.items()}
    if not any(found.values()):
        names = [*every, *(one.id for rows in every.values() for one in rows)]
        raise NotFoundError(
            f"the catalogue has no {what!r}",
            expected=f"a type, or one of {', '.join(KINDS)}",
            fix=did_you_mean(what, names) or "`tokenmill catalogue` lists all; -f FILE adds your own.",
        )
    return {noun: rows for noun, rows in found.items() if rows}


def _plain(one: Any, known: Catalogue) -> dict[str, Any]:
    """Units are the last words of the fields' names; ``values`` has each as a row writes it."""
    return {**asdict(one), "values": [asdict(value) for value in values_of(one, known)]}


def _list(found: Found) -> None:
    console = stdout()
    for noun, rows in found.items():
        columns, cells = LISTED[noun]
        made = table(noun, *columns, "source")
        lines = [(escape(one.id), *map(escape, cells(one)), escape(one.source)) for one in rows]
        console.print(add_rows(made, lines, "none"))


def _show(found: Found, known: Catalogue) -> None:
    console = stdout()
    for noun, rows in found.items():
        for one in rows:
            console.print(f"[bold]{escape(one.id)}[/bold], of {noun}\n")
            lines = [map(escape, (row.field, row.value, row.source)) for row in values_of(one, known)]
            console.print(add_rows(table("field", "value", "source"), lines, "no values"))
