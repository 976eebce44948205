"""Looks at the data of lines that start by themselves: how many rows there are, and what they are like.

Counts physical lines, or the rows of Parquet, as the intake station's profile does. Of plain files only what
was added since the last look is read; packed ones and Parquet are read again when they changed. Of captured
traffic all rows of the line's alias count, whatever was said of them. Remote stores are not looked at; such
lines start by hand or by cron. Decides nothing.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, cast

from tokenmill.domain.errors import TokenmillError
from tokenmill.domain.events import LineObserved
from tokenmill.domain.factory import Line
from tokenmill.domain.profile import Profile
from tokenmill.spec.capture_files import CAPTURE, CaptureFiles, alias_of
from tokenmill.store.parquet import parquet_lines

LINE_BYTES = 1 << 20  # of one line, held at a time
EVERY_US = 30_000_000
MAX_FILES = 10_000

Opinions = Sequence[tuple[str, int, int]]


@dataclass(slots=True)
class _Counted:
    """One file as far as it was read, and the profile of its lines."""

    inode: int
    size: int = 0
    changed_ns: int = 0
    profile: Profile = field(default_factory=Profile)


class LineWatch:
    """Observes every line with a trigger, at most each ``EVERY_US``."""

    def __init__(self, factory_dir: Path, captures: Path) -> None:
        self._factory_dir = factory_dir
        self._captures = captures
        self._files: dict[tuple[Path, str], _Counted] = {}
        self._looked_us = 0

    def look(
        self, lines: Sequence[Line], now_us: int, opinions: Callable[[str], Opinions] = lambda _: ()
    ) -> list[LineObserved]:
        """What is to be reported now. ``opinions`` gives those on a line's answers since its last run."""
        if now_us - self._looked_us < EVERY_US:
            return []
        self._looked_us = now_us
        return [
            replace(self._observed(line, now_us), opinions=tuple(opinions(line.name)))
            for line in lines
            if line.trigger is not None
        ]

    def _observed(self, line: Line, now_us: int) -> LineObserved:
        profile = Profile()
        text = next((str(s.params.get("path", "")) for s in line.stations if s.kind == "intake"), "")
        alias = text.removeprefix(CAPTURE) if text.startswith(CAPTURE) else ""
        for path in self._paths(line, text):
            profile.join(self._count(path, alias))
        return LineObserved(now_us, line.name, tuple(profile.lengths), tuple(profile.words))

    def _paths(self, line: Line, text: str) -> list[Path]:
        if text.startswith(CAPTURE):
            return CaptureFiles(self._captures, line.tenant, line.project).days
        if not text or ":" in text:
            return []
        path = self._factory_dir / text
        if path.is_dir():
            return sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))[:MAX_FILES]
        if any(mark in path.name for mark in "*?["):
            return sorted(path.parent.glob(path.name))[:MAX_FILES]
        return [path]

    def _count(self, path: Path, alias: str) -> Profile:
        """Profile of a file's rows, or of ``alias``'s. One that shrank or was replaced is counted anew."""
        packed = path.name.lower().endswith((".gz", ".parquet"))
        try:
            status = path.stat()
            known = self._files.get((path, alias))
            if known is None or known.inode != status.st_ino or known.size > status.st_size:
                known = self._files[path, alias] = _Counted(status.st_ino)
            if not packed:
                _read_on(known, path, alias)
            elif (known.size, known.changed_ns) != (status.st_size, status.st_mtime_ns):
                known = _Counted(status.st_ino, status.st_size, status.st_mtime_ns)
                # Also when it cannot be read: it is tried again when it changed.
                self._files[path, alias] = known
                _read_whole(known.profile, path)
        except (OSError, EOFError, zlib.error, TokenmillError):
            return Profile()  # what cannot be read is intake's to complain of
        return known.profile


def _read_whole(profile: Profile, path: Path) -> None:
    """Count a packed file or a Parquet one; raises what reading it raises."""
    if path.name.lower().endswith(".parquet"):
        for line in parquet_lines(path):
            profile.add(line, len(line))
        return
    with gzip.open(path, "rb") as file:
        _count_lines(profile, cast(IO[bytes], file))


def _read_on(known: _Counted, path: Path, alias: str) -> None:
    with path.open("rb") as file:
        file.seek(known.size)
        known.size += _count_lines(known.profile, file, alias)


def _count_lines(profile: Profile, file: IO[bytes], alias: str = "") -> int:
    """Count whole lines; returns their bytes. A line without its end is still being written."""
    read = 0
    while line := file.readline(LINE_BYTES + 1):
        size, rest = len(line), line
        while not rest.endswith(b"\n") and (rest := file.readline(1 << 16)):
            size += len(rest)
        if not (line if size == len(line) else rest).endswith(b"\n"):
            break
        read += size
        if line.strip() and (not alias or alias_of(line) == alias):
            profile.add(line, size)
    return read
