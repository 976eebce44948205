"""The files of one project's captured traffic: JSONL per day of rows and of opinions, and the consents.

Several gateways append, a line reads, a person erases; a lock on the folder keeps them from undoing one
another. Only the owner of the factory's files can read them. Says nothing about what may be kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from tokenmill.domain.calendar import DAY_US, format_moment
from tokenmill.domain.factory import Capture
from tokenmill.spec.files import write_atomically

CAPTURE = "capture:"
"""What a line's data path begins with when it is captured traffic; an alias follows."""

ROW_BYTES = 1 << 20
"""Longer rows are not kept; intake's own limit is the same."""

LOOK_US = 10_000_000
"""How long a writer goes by what it saw of the folder: for so long others may write beyond ``bytes_most``."""

Row = Mapping[str, Any]


def user_digest(user: str) -> str:
    """What is kept instead of the client's name for a person, so that their rows can be found and erased."""
    return hashlib.sha256(f"user {user}".encode()).hexdigest()[:16]


def consent_digest(consent: str) -> str:
    """Names a consent in the rows that were kept under it."""
    return hashlib.sha256(consent.encode()).hexdigest()[:16]


class Origin(msgspec.Struct):
    """Which alias gave the answer in a row, and when."""

    alias: str = ""
    at_us: int = 0


_origin = msgspec.json.Decoder(Origin)


def origin_of(line: bytes) -> Origin:
    """Where a row comes from, without reading the rest of it; nowhere when it cannot be read."""
    try:
        return _origin.decode(line)
    except msgspec.DecodeError:
        return Origin()


class CaptureFiles:
    """``root/TENANT/PROJECT``. Makes the folder when the first row comes."""

    def __init__(self, root: Path, tenant: str, project: str) -> None:
        self.tenant = tenant
        self.project = project
        self.folder = root / tenant / project
        self._agreed: Row = {}
        self._size = 0
        self._looked_us = -LOOK_US

    @classmethod
    def all_below(cls, root: Path) -> list[CaptureFiles]:
        """Every project of which something was ever kept."""
        folders = sorted(path for path in root.glob("*/*") if path.is_dir())
        return [cls(root, folder.parent.name, folder.name) for folder in folders]

    @property
    def days(self) -> list[Path]:
        """Files of rows, oldest first: ``2026-11-27-g0.jsonl``."""
        return sorted(self.folder.glob("[0-9]*.jsonl"))

    def days_from(self, at_us: int) -> list[Path]:
        """Files of rows that may hold answers of that moment or later."""
        return [path for path in self.days if path.name[:10] >= _day(at_us)]

    @property
    def opinion_days(self) -> list[Path]:
        """Files of opinions by the day of the answer, oldest first: ``opinions-2026-11-27.jsonl``."""
        return sorted(self.folder.glob("opinions-*.jsonl"))

    @property
    def consents(self) -> list[Row]:
        """What was agreed to, oldest first: ``since_us``, ``id``, ``consent``, ``keep_us``, ``aliases``."""
        return list(_lines(self.folder / "consents.jsonl"))

    @property
    def size(self) -> int:
        """Bytes of all rows and opinions."""
        return sum(path.stat().st_size for path in (*self.days, *self.opinion_days))

    def admits(self, at_us: int, capture: Capture) -> bool:
        """Record the consent, unless the last one recorded is the same, and say whether there is room."""
        agreed = {
            "id": consent_digest(capture.consent),
            "consent": capture.consent,
            "keep_us": capture.keep_us,
            "aliases": [*capture.aliases],
        }
        if agreed != self._agreed or not 0 <= at_us - self._looked_us < LOOK_US:
            self._look(at_us, agreed)
        return self._size < capture.bytes_most

    def _look(self, at_us: int, agreed: Row) -> None:
        with self._locked():
            last = dict(self.consents[-1]) if self.consents else {}
            last.pop("since_us", None)
            if last != agreed:
                _append(self.folder / "consents.jsonl", {"since_us": at_us, **agreed})
            self._agreed, self._size, self._looked_us = agreed, self.size, at_us

    def keep(self, at_us: int, writer: int, row: Row) -> None:
        """Append one row to the file of its day. Raises ``OSError``."""
        with self._locked():
            self._size += _append(self.folder / f"{_day(at_us)}-g{writer}.jsonl", row)

    def rate(self, at_us: int, request: str, good: bool) -> None:
        """Remember an opinion on an answer of ``at_us``, kept or not; it is forgotten with that day."""
        with self._locked():
            line = {"request": request, "good": good}
            self._size += _append(self.folder / f"opinions-{_day(at_us)}.jsonl", line)

    def opinions(self) -> dict[str, bool]:
        """Request id to whether its answer was called good."""
        lines = (line for path in self.opinion_days for line in _lines(path))
        return {line["request"]: bool(line["good"]) for line in lines}

    def rows(self) -> Iterator[Row]:
        """Every row, by day. A line that a crash cut short is left out."""
        for path in self.days:
            yield from _lines(path)

    def erase(self, which: Callable[[Row], bool]) -> tuple[int, int]:
        """Delete rows for which ``which`` holds, the opinions on them, and opinions for which it holds though
        the answer was not kept. Returns how many rows and opinions went.
        """
        if not self.folder.is_dir():
            return 0, 0
        gone: set[str] = set()
        opinions = 0
        with self._locked():
            for path in self.days:
                gone.update(str(row.get("request")) for row in _thin(path, which))
            for path in self.opinion_days:
                opinions += len(_thin(path, lambda line: line["request"] in gone or which(line)))
        return len(gone), opinions

    def forget(self, now_us: int) -> int:
        """Delete whole days that are older than the last consent allows; returns how many files went."""
        agreed = self.consents
        if not agreed:
            return 0
        oldest = _day(now_us - int(agreed[-1]["keep_us"]))
        dated = [*self.days, *self.opinion_days]
        old = [path for path in dated if path.name.removeprefix("opinions-")[:10] < oldest]
        with self._locked():
            for path in old:
                path.unlink(missing_ok=True)
        return len(old)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _day(at_us: int) -> str:
    return format_moment(max(0, at_us) // DAY_US * DAY_US)


def _encoded(line: Row) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _append(path: Path, line: Row) -> int:
    """One write of whole lines; what a crash left of an earlier one is closed off first. Returns bytes."""
    data = _encoded(line)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        end = os.fstat(fd).st_size
        if end and os.pread(fd, 1, end - 1) != b"\n":
            data = b"\n" + data
        done = os.write(fd, data)
        if done < len(data):
            os.ftruncate(fd, end)
            raise OSError(28, "No space left on device", str(path))
        return done
    finally:
        os.close(fd)


def _thin(path: Path, which: Callable[[Row], bool]) -> list[Row]:
    """Take the lines for which ``which`` holds out of a file, which goes with its last one; returns them."""
    lines = list(_lines(path))
    gone = [line for line in lines if which(line)]
    kept = [line for line in lines if not which(line)]
    if not kept:
        path.unlink()
    elif gone:
        write_atomically(path, b"".join(_encoded(line) for line in kept), private=True)
    return gone


def _lines(path: Path) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    found = json.loads(line)
                except ValueError:
                    continue
                if isinstance(found, dict):
                    yield found
    except FileNotFoundError:
        return
