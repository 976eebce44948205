"""Looks at the data of lines that start by themselves: how many rows there are, and how long the new ones
are.

Counts physical lines, as the intake station's profile does, and reads only what was added to a file since the
last look. Remote stores are not looked at; such lines start by hand or by cron. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenmill.domain.events import LineObserved
from tokenmill.domain.factory import Line
from tokenmill.domain.trigger import PROFILE_BUCKETS, bucket

EVERY_US = 30_000_000
MAX_FILES = 10_000


@dataclass(slots=True)
class _Counted:
    """One file as far as it was read, and the profile of its lines."""

    inode: int
    size: int = 0
    profile: list[int] = field(default_factory=lambda: [0] * PROFILE_BUCKETS)


class LineWatch:
    """Observes every line with a trigger, at most each ``EVERY_US``."""

    def __init__(self, factory_dir: Path) -> None:
        self._factory_dir = factory_dir
        self._files: dict[Path, _Counted] = {}
        self._looked_us = 0

    def look(self, lines: Sequence[Line], now_us: int) -> list[LineObserved]:
        """What is to be reported now."""
        if now_us - self._looked_us < EVERY_US:
            return []
        self._looked_us = now_us
        return [
            LineObserved(now_us, line.name, self._profile(line)) for line in lines if line.trigger is not None
        ]

    def _profile(self, line: Line) -> tuple[int, ...]:
        profile = [0] * PROFILE_BUCKETS
        for path in self._paths(line):
            for at, count in enumerate(self._count(path)):
                profile[at] += count
        return tuple(profile)

    def _paths(self, line: Line) -> list[Path]:
        text = next((str(s.params.get("path", "")) for s in line.stations if s.kind == "intake"), "")
        if not text or ":" in text:
            return []
        path = self._factory_dir / text
        if path.is_dir():
            return sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))[:MAX_FILES]
        if any(mark in path.name for mark in "*?["):
            return sorted(path.parent.glob(path.name))[:MAX_FILES]
        return [path]

    def _count(self, path: Path) -> list[int]:
        """Profile of a file's lines. One that shrank or was replaced is counted anew."""
        try:
            status = path.stat()
            known = self._files.get(path)
            if known is None or known.inode != status.st_ino or known.size > status.st_size:
                known = self._files[path] = _Counted(status.st_ino)
            _read_on(known, path)
        except OSError:
            return [0] * PROFILE_BUCKETS
        return known.profile


def _read_on(known: _Counted, path: Path) -> None:
    with path.open("rb") as file:
        file.seek(known.size)
        while line := file.readline():
            if not line.endswith(b"\n"):
                break  # it is still being written
            known.size += len(line)
            if line.strip():
                known.profile[bucket(len(line))] += 1
