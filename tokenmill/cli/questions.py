"""Asks a person before something is changed. Where nobody can answer, ``-y`` is needed."""

from __future__ import annotations

import sys

import typer

from tokenmill.domain.errors import UsageError


def confirm(question: str, yes: bool) -> None:
    """Return when the answer is yes. Raises ``UsageError`` without a terminal, ``typer.Exit`` for a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            f"{question} Nobody is there to answer.", expected="a terminal, or -y", fix="Add -y."
        )
    if not typer.confirm(question, err=True):
        sys.stderr.write("Nothing was changed.\n")
        raise typer.Exit(1)
