"""One small JSON file per supervised process, so that the next controller finds what this one started.

A record is written right after the spawn. Between the two a crash leaves a process without a record;
that one is found by its mark and killed (see ``procfs.marked``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tokenmill.domain.codec import from_plain, to_plain
from tokenmill.domain.errors import DataError
from tokenmill.floor import procfs
from tokenmill.spec.files import write_atomically


@dataclass(frozen=True, slots=True)
class Record:
    """Who a process is. ``facts`` is what its owner must know to take it over again."""

    id: str
    kind: str  # gateway, engine or job
    pid: int
    start_time: int
    boot: str
    argv: tuple[str, ...]
    log: str
    started_us: int
    memory_bytes: int = 0  # limit; 0 is none
    cpu_millis: int = 0
    accelerators: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def is_of(self, found: procfs.Stat) -> bool:
        """Whether ``found`` is this process and not another one that was given the same pid."""
        return found.pid == self.pid and found.start_time == self.start_time

    def lives(self) -> bool:
        found = procfs.stat(self.pid)
        return found is not None and found.alive and self.is_of(found) and self.boot == procfs.boot_id()


class Records:
    """The folder ``run/processes``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, record: Record) -> None:
        write_atomically(self.folder / f"{record.id}.json", msgspec.json.encode(to_plain(record)))

    def remove(self, record_id: str) -> None:
        (self.folder / f"{record_id}.json").unlink(missing_ok=True)

    def read(self) -> tuple[Record, ...]:
        """Return all records in order of id. A file that cannot be read is dropped: its process, if it
        lives, is then a stray. One that is removed meanwhile is left out."""
        found: list[Record] = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                found.append(from_plain(msgspec.json.decode(path.read_bytes()), Record))
            except FileNotFoundError:
                continue
            except (msgspec.DecodeError, DataError):
                path.unlink(missing_ok=True)
        return tuple(found)
