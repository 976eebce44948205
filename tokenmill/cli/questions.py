"""Asks a person before something is changed. Where nobody can answer, ``-y`` is needed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import typer

from tokenmill.cli.client import Client
from tokenmill.domain.errors import UsageError


def post_if_sure(client: Client, path: str, body: Mapping[str, Any], question: str, yes: bool) -> Any:
    """Post ``body`` after a yes. Nobody is asked about what would be refused anyway."""
    if not yes:
        client.post(path, {**body, "dry_run": True})
    confirm(question, yes)
    return client.post(path, body)


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
