"""Looks at the data of lines that start by themselves: how many rows there are, and what they are like.

Counts physical lines, or the rows of Parquet, as the intake station's profile does. Of plain files only what
was added since the last look is read; packed ones and Parquet are read again when they changed. Of captured
traffic the rows of the line's alias count that are newer than what its last run read, whatever was said of
them: old days are deleted meanwhile. Remote stores are not looked at; such lines start by hand or by cron.
Decides nothing.
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
from tokenmill.spec.capture_files import CAPTURE, CaptureFiles, origin_of
from tokenmill.store.parquet import parquet_lines

LINE_BYTES = 1 << 20  # of one line, held at a time
EVERY_US = 30_000_000
MAX_FILES = 10_000

Opinions = Sequence[tuple[str, int, int]]
Wanted = tuple[str, int]
"""Of captured traffic: rows of this alias, of answers after this moment."""


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
        self._files: dict[tuple[Path, Wanted | None], _Counted] = {}
        self._known = self._files  # of the look before
        self._looked_us = 0

    def look(
        self,
        lines: Sequence[Line],
        now_us: int,
        opinions: Callable[[str], Opinions] = lambda _: (),
        read_until_us: Callable[[str], int] = lambda _: 0,
    ) -> list[LineObserved]:
        """What is to be reported now. ``opinions`` gives those on a line's answers since its last run, and
        ``read_until_us`` the newest captured answer that this run has read.
        """
        if now_us - self._looked_us < EVERY_US:
            return []
        self._looked_us = now_us
        self._known, self._files = self._files, {}  # what no line asks for any more is dropped
        return [
            replace(self._observed(line, now_us, read_until_us), opinions=tuple(opinions(line.name)))
            for line in lines
            if line.trigger is not None
        ]

    def _observed(self, line: Line, now_us: int, read_until_us: Callable[[str], int]) -> LineObserved:
        text = next((str(s.params.get("path", "")) for s in line.stations if s.kind == "intake"), "")
        since_us = None
        if text.startswith(CAPTURE):
            since_us = read_until_us(line.name)
            files = CaptureFiles(self._captures, line.tenant, line.project)
            profile = self._counted(files.days_from(since_us), (text.removeprefix(CAPTURE), since_us))
        else:
            profile = self._counted(self._paths(text))
        lengths, words = tuple(profile.lengths), tuple(profile.words)
        return LineObserved(now_us, line.name, lengths, words, since_us=since_us)

    def _counted(self, paths: Sequence[Path], wanted: Wanted | None = None) -> Profile:
        profile = Profile()
        for path in paths:
            profile.join(self._count(path, wanted))
        return profile

    def _paths(self, text: str) -> list[Path]:
        if not text or ":" in text:
            return []
        path = self._factory_dir / text
        if path.is_dir():
            return sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))[:MAX_FILES]
        if any(mark in path.name for mark in "*?["):
            return sorted(path.parent.glob(path.name))[:MAX_FILES]
        return [path]

    def _count(self, path: Path, wanted: Wanted | None) -> Profile:
        """Profile of a file's rows, or of the ``wanted``. One that shrank or was replaced is counted anew."""
        packed = path.name.lower().endswith((".gz", ".parquet"))
        try:
            status = path.stat()
            known = self._files.get((path, wanted)) or self._known.get((path, wanted))
            if known is None or known.inode != status.st_ino or known.size > status.st_size:
                known = _Counted(status.st_ino)
            self._files[path, wanted] = known
            if not packed:
                _read_on(known, path, wanted)
            elif (known.size, known.changed_ns) != (status.st_size, status.st_mtime_ns):
                known = _Counted(status.st_ino, status.st_size, status.st_mtime_ns)
                # Also when it cannot be read: it is tried again when it changed.
                self._files[path, wanted] = known
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


def _read_on(known: _Counted, path: Path, wanted: Wanted | None) -> None:
    with path.open("rb") as file:
        file.seek(known.size)
        known.size += _count_lines(known.profile, file, wanted)


def _count_lines(profile: Profile, file: IO[bytes], wanted: Wanted | None = None) -> int:
    """Count whole lines; returns their bytes. A line without its end is still being written."""
    read = 0
    while line := file.readline(LINE_BYTES + 1):
        size, rest = len(line), line
        while not rest.endswith(b"\n") and (rest := file.readline(1 << 16)):
            size += len(rest)
        if not (line if size == len(line) else rest).endswith(b"\n"):
            break
        read += size
        if line.strip() and (wanted is None or _is_wanted(line, *wanted)):
            profile.add(line, size)
    return read


def _is_wanted(line: bytes, alias: str, since_us: int) -> bool:
    origin = origin_of(line)
    return origin.alias == alias and (not since_us or origin.at_us > since_us)
