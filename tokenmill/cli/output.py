"""What the verbs print: tables for people on stdout, JSON for programs, errors and progress on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from textwrap import shorten
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokenmill.cli.tables import table as table
from tokenmill.console.problems import body_of
from tokenmill.console.text import mark
from tokenmill.domain.errors import RefusedError, SpecError, TokenmillError

WIDE = 160
WHY_CHARACTERS = 100
PROBLEMS_SHOWN = 20
COLOURS = {"ok": "green", "busy": "blue", "warn": "yellow", "bad": "red", "wait": "dim", "off": "dim"}


def stdout() -> Console:
    """A console on today's stdout. Rich honours NO_COLOR, and uses colours only on a terminal."""
    return _console(sys.stdout.isatty(), stderr=False)


def stderr() -> Console:
    return _console(sys.stderr.isatty(), stderr=True)


def _console(terminal: bool, *, stderr: bool) -> Console:
    """Where no terminal says how wide it is, lines are wide enough not to break a table.

    ``:100:`` in ``factory.yaml:100:12`` is a line, no emoji.
    """
    width = None if terminal or os.environ.get("COLUMNS") else WIDE
    return Console(stderr=stderr, highlight=False, emoji=False, width=width, soft_wrap=not terminal)


def print_json(value: Any) -> None:
    """The one thing on stdout of a verb called with ``--json``."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def add_rows(made: Table, rows: Iterable[Iterable[object]], empty: str) -> Table:
    """Fill a table; ``empty`` says in its first cell that there is nothing."""
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    if not made.rows:
        made.add_row(f"[dim]{empty}[/dim]")
    return made


def why_cell(reason: str) -> str:
    """A reason as far as a list shows it; ``show`` and ``why`` have the rest."""
    return shorten(reason, WHY_CHARACTERS, placeholder=" …")


def status_text(status: str) -> str:
    """A status as shape, word and, where there are colours, colour."""
    kind, shape = mark(status)
    colour = COLOURS[kind]
    return f"[{colour}]{shape} {status}[/{colour}]"


def report_error(error: TokenmillError, *, as_json: bool) -> None:
    """What happened, where, what was expected and how to fix it, on stderr; with --json also on stdout."""
    if as_json:
        print_json(body_of(error))
    console = stderr()
    if isinstance(error, SpecError):
        console.print(f"[bold red]✕[/bold red] {escape(error.problem.message)}:")
        for line in error.lines(PROBLEMS_SHOWN):
            console.print(f"  {escape(line)}")
        return
    problem = error.problem
    console.print(f"[bold red]✕[/bold red] {escape(problem.message)}")
    if isinstance(error, RefusedError):
        for reason in error.reasons:
            console.print(f"    - {escape(reason)}")
    for name, text in (("where", problem.where), ("expected", problem.expected), ("fix", problem.fix)):
        if text:
            console.print(f"  [dim]{name}:[/dim] {escape(text)}")


def end_with(
    found: Mapping[str, Any], error: TokenmillError | None, *, as_json: bool, show: Callable[[], object]
) -> None:
    """Print what a verb found and, if it ended badly, why; with --json both as one document. Then exit so."""
    if as_json:
        print_json({**found, **(body_of(error) if error is not None else {})})
    else:
        show()
    if error is not None:
        report_error(error, as_json=False)
        raise SystemExit(error.exit_code)


@contextlib.contextmanager
def when_interrupted(note: str, exit_code: int = 130) -> Iterator[None]:
    """Ctrl-C inside says what goes on running, and exits with 130."""
    try:
        yield
    except KeyboardInterrupt:
        stderr().print(f"\n[yellow]–[/yellow] {note}")
        raise SystemExit(exit_code) from None


def examples(*lines: str) -> str:
    """An epilog for a verb's help."""
    return "Examples:\n\n" + "\n\n".join(f"  {line}" for line in lines)
