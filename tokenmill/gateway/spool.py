"""The append-only spool: an ``open`` line when a request is admitted, a ``settle`` line when it ends.

A line is in the kernel before the last bytes of an answer go to the client, and on the disk some 50 ms
later. When the disk is full nothing is lost: lines wait in memory, new requests are refused, and a
reserve file is given up so that those under way can still be written. Reading is the store's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
import time
from collections import deque
from pathlib import Path

import msgspec
import orjson

from tokenmill.domain.errors import ResourceError
from tokenmill.domain.ledger import Settlement
from tokenmill.gateway.endings import Opening, interrupted

SYNC_S = 0.05
RESERVE_BYTES = 2 * 1024 * 1024
WAITING_LINES = 65536  # more cannot be open at once: connections are limited far below

_encoder = msgspec.json.Encoder()
_opening = msgspec.json.Decoder(Opening)


def settle_line(settlement: Settlement) -> bytes:
    """One settle line: every field of the settlement, and ``t``."""
    return b'{"t":"settle",%b\n' % _encoder.encode(settlement)[1:]


def open_line(opening: Opening) -> bytes:
    """One open line: every field of it, and ``t``."""
    return b'{"t":"open",%b\n' % _encoder.encode(opening)[1:]


def spool_files(first: Path) -> list[tuple[int, Path]]:
    """The spool files of one gateway in order: ``gateway-<n>.jsonl`` beside ``first``."""
    stem = _stem(first)
    pattern = re.compile(re.escape(stem) + r"-(\d+)\.jsonl")
    found = []
    for path in first.parent.glob(f"{stem}-*.jsonl"):
        match = pattern.fullmatch(path.name)
        if match:
            found.append((int(match[1]), path))
    return sorted(found)


def _stem(first: Path) -> str:
    match = re.fullmatch(r"(.+)-(\d+)\.jsonl", first.name)
    if match is None:
        raise ResourceError(
            f"{first} is no name for a spool",
            expected="a name such as gateway-0.jsonl",
            fix="Give --spool DIR/gateway-0.jsonl.",
        )
    return match[1]


class Spool:
    """Owned by one process: its current file is locked as long as it lives."""

    def __init__(
        self, first: Path, *, rotate_bytes: int, free_bytes: int, siblings: frozenset[str] | None = None
    ) -> None:
        """With ``siblings``, the stems of the spools that others write now, this one also settles what is
        left open in any other spool of the folder, which nobody would look at any more."""
        self.first = first
        self._siblings = siblings
        self.rotate_bytes = rotate_bytes
        self.free_bytes = free_bytes
        self.problem = ""  # why nothing can be written, when nothing can
        self.lines = 0
        self.opens: dict[str, bytes] = {}
        self.unsynced_since = 0.0
        self._waiting: deque[bytes] = deque()
        self._dirty = threading.Event()
        self._stopping = False
        self._reserve = first.with_name(f"{_stem(first)}.reserve")
        try:
            first.parent.mkdir(parents=True, exist_ok=True)
            self.path, self._fd, self._number = self._take_file()
        except OSError as error:
            raise ResourceError(
                f"the spool {first} cannot be written: {error.strerror}",
                expected="a folder of this user on a disk that takes writes",
                fix="Free space, make the disk writable, or give this user the folder.",
            ) from error
        self._size = os.fstat(self._fd).st_size
        self._thread = threading.Thread(target=self._sync_loop, name="spool-sync", daemon=True)

    # -- start and stop
    def start(self, now_us: int) -> list[Opening]:
        """Settle what an earlier life left open, and start syncing. Returns what the open lines said."""
        left = [_opening.decode(line) for line in self._left_open()]
        for opened in left:
            self._append(settle_line(interrupted(opened, now_us)))
        self._keep_reserve()
        self.check()
        self._thread.start()
        return left

    def close(self) -> None:
        """Write what waits, sync and unlock."""
        self.retry()
        self._stopping = True
        self._dirty.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self.problem = f"{self.path} cannot be synced: {error.strerror}"
        finally:
            os.close(self._fd)

    # -- writing
    @property
    def writable(self) -> bool:
        return not self.problem

    @property
    def waiting(self) -> int:
        """Lines that are held in memory because the disk took none."""
        return len(self._waiting)

    def open(self, opening: Opening) -> bool:
        """Write the open line. False, and nothing written, when the disk does not take it: refuse then."""
        if self.problem:
            return False
        line = open_line(opening)
        if not self._append(line):
            return False
        self.opens[opening.request] = line
        return True

    def settle(self, settlement: Settlement) -> None:
        """Write the settle line, or hold it until the disk takes it."""
        line = settle_line(settlement)
        self.opens.pop(settlement.request, None)
        if self._waiting or not self._append(line):
            self._waiting.append(line)
            self._give_up_reserve()
            self.retry()
            if len(self._waiting) > WAITING_LINES:
                raise ResourceError(
                    f"{len(self._waiting)} settlements wait for {self.path}, which takes none",
                    expected="a writable spool",
                    fix="Free space on the disk, then start the gateway again.",
                )
        if self._size >= self.rotate_bytes:
            self._rotate()

    def retry(self) -> None:
        """Try again to write what waits."""
        while self._waiting:
            if not self._append(self._waiting[0]):
                return
            self._waiting.popleft()

    def check(self) -> None:
        """Look at the disk: refuse early when it is nearly full, go on when there is room again."""
        try:
            stat = os.statvfs(self.first.parent)
        except OSError as error:
            self.problem = f"{self.first.parent} cannot be read: {error.strerror}"
            return
        free = stat.f_bavail * stat.f_frsize
        if free < self.free_bytes:
            self.problem = f"{self.first.parent} has {free} bytes free, less than {self.free_bytes}"
            return
        self.retry()
        if not self._waiting:
            self.problem = ""
            self._keep_reserve()

    def _append(self, line: bytes) -> bool:
        """One write. A line that was cut short is taken back, so that no torn line is ever followed."""
        written = 0
        try:
            written = os.write(self._fd, line)
            while written < len(line):
                written += os.write(self._fd, line[written:])
        except OSError as error:
            self.problem = f"{self.path} cannot be written: {error.strerror}"
            if written:
                os.ftruncate(self._fd, self._size)
            return False
        self._size += written
        self.lines += 1
        if not self._dirty.is_set():
            self._dirty.set()  # takes a lock: once for each sync, not for each line
        return True

    # -- files
    def _take_file(self) -> tuple[Path, int, int]:
        """The newest file of ours that nobody else holds and that has room, else the next number."""
        found = spool_files(self.first)
        number, path = found[-1] if found else (int(self.first.stem.rpartition("-")[2]), self.first)
        for _ in range(64):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)  # an older gateway still drains into it
            else:
                if _mend(fd) < self.rotate_bytes:
                    return path, fd, number
                os.close(fd)
            number += 1
            path = self.first.with_name(f"{_stem(self.first)}-{number}.jsonl")
        raise ResourceError(
            f"no spool file can be locked in {self.first.parent}",
            expected="one gateway per spool",
            fix="Stop the other gateways of this factory.",
        )

    def _rotate(self) -> None:
        """Go on in the next file, carrying open requests over so that the old one may be deleted."""
        number = self._number + 1
        path = self.first.with_name(f"{_stem(self.first)}-{number}.jsonl")
        carried = b"".join(self.opens.values())
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self.problem = f"{path} cannot be made: {error.strerror}"
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            short = os.write(fd, carried) != len(carried)
        except OSError:
            short = True
        if short:  # no room: stay in the old file, and try again at the next line
            path.unlink()
            os.close(fd)
            return
        os.fdatasync(self._fd)
        old, self._fd = self._fd, fd
        self.path, self._number, self._size = path, number, len(carried)
        os.close(old)
        self._dirty.set()

    def _left_open(self) -> list[bytes]:
        """Open lines without a settle line, over all files of ours that no living gateway holds."""
        opens: dict[str, bytes] = {}
        for path in (*self._abandoned(), *(path for _, path in spool_files(self.first))):
            if path == self.path or _unlocked(path):
                with open(path, "rb") as file:
                    for line in file:
                        _follow(opens, line)
        return list(opens.values())

    def _abandoned(self) -> list[Path]:
        """Files of spools that none of the present processes writes, when this one looks after them."""
        if self._siblings is None:
            return []
        present = {_stem(self.first), *self._siblings}
        return [path for path in sorted(self.first.parent.glob("*-*.jsonl")) if _stem(path) not in present]

    def _keep_reserve(self) -> None:
        """Hold some blocks back, which are set free for requests under way when the disk is full."""
        try:
            if not self._reserve.exists():
                with open(self._reserve, "wb") as file:
                    os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        except OSError:
            self._give_up_reserve()  # a disk that has no room for the reserve is reported by ``check``

    def _give_up_reserve(self) -> None:
        with contextlib.suppress(OSError):  # the disk has become read-only
            self._reserve.unlink(missing_ok=True)

    def _sync_loop(self) -> None:
        while not self._stopping:
            self._dirty.wait()
            self._dirty.clear()
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                if not self._stopping and error.errno != 9:  # EBADF: the file was rotated, and synced then
                    self.problem = f"{self.path} cannot be synced: {error.strerror}"
            time.sleep(SYNC_S)


def _follow(opens: dict[str, bytes], line: bytes) -> None:
    """Keep ``opens`` up to date with one more line; a torn one never took effect."""
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError:
        return
    if entry.get("t") == "open":
        opens[entry["request"]] = line
    elif entry.get("t") == "settle":
        opens.pop(entry["request"], None)


def _mend(fd: int) -> int:
    """Cut a torn last line off, which a crash left. Returns the size."""
    size = os.fstat(fd).st_size
    end = size
    while end > 0:
        start = max(0, end - 65536)
        block = os.pread(fd, end - start, start)
        newline = block.rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        os.ftruncate(fd, end)
    return end


def _unlocked(path: Path) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(fd)
