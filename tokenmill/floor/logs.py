"""Log files of supervised processes: appended to by the process itself, bounded by us."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

LOG_LIMIT_BYTES = 64 * 1024 * 1024


def open_log(path: Path) -> int:
    """Open a log for appending and return the descriptor, which the new process inherits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)


def bound(path: Path, limit_bytes: int = LOG_LIMIT_BYTES) -> bool:
    """Move a log that has grown past its limit to ``<name>.1`` and empty it. Returns whether it did.

    The writer keeps its descriptor: in append mode it goes on at the new end. What it writes between the
    copy and the cut is lost, which is better than a full disk.
    """
    try:
        if path.stat().st_size <= limit_bytes:
            return False
        shutil.copyfile(path, path.with_name(path.name + ".1"))
        os.truncate(path, 0)
    except FileNotFoundError:
        return False
    return True


def last_words(path: Path) -> str:
    """The last line of a log as part of a reason: short, and without what would drive a terminal."""
    return printable(tail(path, 1))


def printable(text: str, most: int = 300) -> str:
    """What a process said, cut, with what cannot be printed left out."""
    return "".join(c if c.isprintable() else " " for c in text[:most]).strip()


def tail(path: Path, lines: int, most_bytes: int = 65_536) -> str:
    """Return the last lines of a log, at most ``most_bytes`` of it; "" when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
