"""Options that all verbs share, and the place that they lead to: a factory file and its data directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tokenmill.domain.calendar import parse_moment
from tokenmill.domain.errors import NotFoundError, UsageError
from tokenmill.domain.units import parse_duration
from tokenmill.spec.paths import Paths
from tokenmill.spec.settings import Settings, load_settings

FACTORY_FILE = "factory.yaml"

Directory = Annotated[
    Path | None,
    typer.Option("--dir", "-C", help="Folder of the factory. Default: this one.", show_default=False),
]
File = Annotated[
    Path | None,
    typer.Option(
        "--file", "-f", help=f"Factory file. Default: {FACTORY_FILE} in the folder.", show_default=False
    ),
]
TypesFile = Annotated[
    list[Path] | None,
    typer.Option("--file", "-f", help="File with types of your own (kind: catalogue).", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Since = Annotated[
    str, typer.Option(help="Only the last so much, or from a date: 24h, 30d, 2026-11-01 (UTC).")
]
Until = Annotated[str, typer.Option(help="Only before so long ago, or before a date: 2026-12-01.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@dataclass(frozen=True, slots=True)
class Place:
    """One factory on this machine."""

    file: Path
    settings: Settings
    paths: Paths

    def need_file(self) -> Path:
        """The factory file. Raises ``NotFoundError`` that says how to get one."""
        if not self.file.exists():
            raise NotFoundError(
                f"there is no factory file {self.file}",
                expected=f"a {FACTORY_FILE} in the folder, or -f FILE",
                fix="tokenmill init",
            )
        return self.file


def need_file_place(option: str, path: Path | None, example: str) -> None:
    """Refuse before long work a place that no file can be written to."""
    if path is not None and not path.parent.is_dir():
        raise UsageError(
            f"{option} is {path}: there is no folder {path.parent}", fix=f"mkdir -p {path.parent}"
        )
    if path is not None and path.is_dir():
        fix = f"{option} {path}/{example}"
        raise UsageError(f"{option} is {path}: that is a folder", expected="a file", fix=fix)


def locate(directory: Path | None, file: Path | None) -> Place:
    """The factory that ``-C`` and ``-f`` mean, with the settings of the environment."""
    settings = load_settings(os.environ)
    found = ((directory or Path()) / (file or FACTORY_FILE)).absolute()
    return Place(found, settings, Paths.of(settings, found))


def window(since: str, until: str, now_us: int) -> tuple[int, int]:
    """``--since`` and ``--until`` in microseconds since the epoch; 0 where nothing is written."""
    since_us, until_us = _moment("--since", since, now_us), _moment("--until", until, now_us)
    if until_us and until_us <= since_us:
        raise UsageError("--until is not after --since", expected="a window, such as --since 30d --until 1d")
    return since_us, until_us


def _moment(option: str, text: str, now_us: int) -> int:
    """Microseconds of a date, or of so long before now; 0 when nothing is written."""
    if not text:
        return 0
    try:
        return parse_moment(text) if "-" in text else max(1, now_us - parse_duration(text))
    except UsageError:
        raise UsageError(
            f"{option} is {text!r}", expected="a time before now or a date in UTC: 24h, 30d, 2026-11-01"
        ) from None
