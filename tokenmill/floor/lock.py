"""One controller for a data directory: its lock, the file that says who holds it, the directory's own id."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tokenmill.domain.codec import from_plain, to_plain
from tokenmill.domain.errors import ConflictError, DataError, ResourceError
from tokenmill.floor import procfs
from tokenmill.spec.files import write_atomically
from tokenmill.spec.paths import Paths


@dataclass(frozen=True, slots=True)
class ControllerFile:
    """What ``run/control.json`` says of the last controller."""

    pid: int
    start_time: int
    started_us: int
    url: str
    factory_file: str
    version: str

    def lives(self) -> bool:
        found = procfs.stat(self.pid)
        return found is not None and found.alive and found.start_time == self.start_time


def read_controller(paths: Paths) -> ControllerFile | None:
    """Return the last controller of this directory, alive or not; None when there was none."""
    try:
        return from_plain(msgspec.json.decode(paths.control_file.read_bytes()), ControllerFile)
    except (OSError, msgspec.DecodeError, DataError):
        return None


def write_controller(paths: Paths, found: ControllerFile) -> None:
    write_atomically(paths.control_file, msgspec.json.encode(to_plain(found)))


def home_of(paths: Paths) -> str:
    """The id of this data directory, made at its first start. It goes where the directory goes."""
    with contextlib.suppress(FileNotFoundError):
        found = paths.home.read_text(encoding="utf-8").strip()
        if found.isalnum():
            return found
    made = secrets.token_hex(8)
    write_atomically(paths.home, f"{made}\n".encode())
    return made


class DirectoryLock:
    """Holds ``run/lock`` for the life of the process. The kernel lets go of it when the process dies."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._handle = -1

    def take(self) -> None:
        """Raise ``ConflictError`` when another controller holds it."""
        path = self._paths.lock
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ResourceError(
                f"the data directory cannot be used: {error}",
                expected=f"to write in {self._paths.root}",
                fix="Give this user access, or set TOKENMILL_DATA_DIR to another folder.",
            ) from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            raise already_running(self._paths) from error

    def release(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def already_running(paths: Paths) -> ConflictError:
    """The error that a second controller gets; it names the first."""
    found = read_controller(paths)
    whose = f"at {found.url}, pid {found.pid}" if found is not None else "and is just starting"
    return ConflictError(
        f"this factory is already running {whose}",
        expected="one controller for a data directory",
        fix="Use it (`tokenmill status`), or end it first (`tokenmill down`).",
        where=str(paths.root),
    )


def held(paths: Paths) -> bool:
    """Whether a controller runs for this directory."""
    path: Path = paths.lock
    if not path.exists():
        return False
    lock = DirectoryLock(paths)
    try:
        lock.take()
    except ConflictError:
        return True
    lock.release()
    return False
