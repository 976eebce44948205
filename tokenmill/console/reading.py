"""Reads log files for the API: one file of the log folder by name, a tail or a part from an offset.

Opens nothing outside the log folder, and no file that a link there points to.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tokenmill.control.state import State
from tokenmill.domain.errors import NotFoundError, UsageError
from tokenmill.spec.paths import Paths

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
PART_BYTES = 256 * 1024


def log_name(state: State, name: str) -> str:
    """The log that ``name`` means: a run's is that of the station which it is at, or was last at."""
    run = state.runs.get(name)
    if run is None:
        return name
    jobs = [station.job for station in run.stations if station.job]
    if not jobs:
        raise NotFoundError(f"{name} has not started a station yet", fix=f"tokenmill why {name}")
    return jobs[-1]


def read_log(paths: Paths, name: str, tail: int, offset: int | None) -> dict[str, object]:
    """``{text, next_offset}``: the last ``tail`` lines, or what follows byte ``offset`` (at most 256 KiB)."""
    if not NAME.fullmatch(name) or ".." in name:
        raise UsageError(f"{name!r} is not the name of a log", expected="an id, control or gateway")
    path = paths.log(name)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise NotFoundError(
            f"there is no log of {name!r}",
            expected=f"one of {', '.join(_present(paths.logs)) or 'none yet'}",
            fix="tokenmill ps shows what runs.",
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        start = min(offset, length) if offset is not None else max(0, length - PART_BYTES)
        file.seek(start)
        data = file.read(PART_BYTES)
    text = data.decode(errors="replace")
    if offset is None:
        text = "".join(text.splitlines(keepends=True)[-tail:]) if tail else ""
    return {"id": name, "text": text, "next_offset": start + len(data)}


def _present(logs: Path) -> list[str]:
    return sorted(path.stem for path in logs.glob("*.log"))[:20]
