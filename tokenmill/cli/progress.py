"""Progress of long work, for those who wait at a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tokenmill.cli.output import stderr


@contextlib.contextmanager
def bar(name: str) -> Iterator[Callable[[float, float], None]]:
    """A progress bar on a terminal's stderr; silence elsewhere."""
    console = stderr()
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task(name, total=1.0)
        yield lambda done, whole: bar.update(task, completed=done / whole)
