"""The files of one project's captured traffic: a JSONL file per day and writer, opinions, and the consents.

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

from tokenmill.domain.calendar import DAY_US, format_moment
from tokenmill.spec.files import write_atomically

CAPTURE = "capture:"
"""What a line's data path begins with when it is captured traffic; an alias follows."""

ROW_BYTES = 1 << 20
"""Longer rows are not kept; intake's own limit is the same."""

Row = Mapping[str, Any]


def user_digest(user: str) -> str:
    """What is kept instead of the client's name for a person, so that their rows can be found and erased."""
    return hashlib.sha256(f"user {user}".encode()).hexdigest()[:16]


def consent_digest(consent: str) -> str:
    """Names a consent in the rows that were kept under it."""
    return hashlib.sha256(consent.encode()).hexdigest()[:16]


class CaptureFiles:
    """``root/TENANT/PROJECT``. Makes the folder when the first row comes."""

    def __init__(self, root: Path, tenant: str, project: str) -> None:
        self.tenant = tenant
        self.project = project
        self.folder = root / tenant / project

    @classmethod
    def all_below(cls, root: Path) -> list[CaptureFiles]:
        """Every project of which something was ever kept."""
        folders = sorted(path for path in root.glob("*/*") if path.is_dir())
        return [cls(root, folder.parent.name, folder.name) for folder in folders]

    @property
    def days(self) -> list[Path]:
        """Files of rows, oldest first: ``2026-11-27-g0.jsonl``."""
        return sorted(self.folder.glob("[0-9]*.jsonl"))

    @property
    def consents(self) -> list[Row]:
        """What was agreed to, oldest first: ``since_us``, ``id``, ``consent``, ``keep_us``, ``aliases``."""
        return list(_lines(self.folder / "consents.jsonl"))

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return sum(path.stat().st_size for path in self.days)

    def agree(self, now_us: int, consent: str, keep_us: int, aliases: tuple[str, ...]) -> None:
        """Record a consent, unless the last one recorded is the same."""
        record = {
            "id": consent_digest(consent),
            "consent": consent,
            "keep_us": keep_us,
            "aliases": [*aliases],
        }
        with self._locked():
            last = dict(self.consents[-1]) if self.consents else {}
            last.pop("since_us", None)
            if last != record:
                _append(self.folder / "consents.jsonl", {"since_us": now_us, **record})

    def keep(self, at_us: int, writer: int, row: Row) -> None:
        """Append one row to the file of its day. Raises ``OSError``."""
        with self._locked():
            _append(self.folder / f"{_day(at_us)}-g{writer}.jsonl", row)

    def rate(self, request: str, good: bool) -> None:
        """Remember an opinion on an answer, whether or not it was kept."""
        with self._locked():
            _append(self.folder / "opinions.jsonl", {"request": request, "good": good})

    def opinions(self) -> dict[str, bool]:
        """Request id to whether its answer was called good."""
        return {line["request"]: bool(line["good"]) for line in _lines(self.folder / "opinions.jsonl")}

    def rows(self) -> Iterator[Row]:
        """Every row, by day. A line that a crash cut short is left out."""
        for path in self.days:
            yield from _lines(path)

    def erase(self, which: Callable[[Row], bool]) -> int:
        """Delete rows for which ``which`` holds, and what only they needed; returns how many went."""
        if not self.folder.is_dir():
            return 0
        gone: set[str] = set()
        with self._locked():
            for path in self.days:
                rows = list(_lines(path))
                kept = [row for row in rows if not which(row)]
                gone.update(str(row.get("request")) for row in rows if which(row))
                if not kept:
                    path.unlink()
                elif len(kept) < len(rows):
                    _replace(path, kept)
            opinions = self.folder / "opinions.jsonl"
            if gone and opinions.exists():
                _replace(opinions, [line for line in _lines(opinions) if line["request"] not in gone])
        return len(gone)

    def forget(self, now_us: int) -> int:
        """Delete whole days that are older than the last consent allows; returns how many files went."""
        agreed = self.consents
        if not agreed:
            return 0
        oldest = _day(now_us - int(agreed[-1]["keep_us"]))
        old = [path for path in self.days if path.name[:10] < oldest]
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


def _append(path: Path, line: Row) -> None:
    """One write of whole lines; what a crash left of an earlier one is closed off first."""
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
    finally:
        os.close(fd)


def _replace(path: Path, lines: list[Row]) -> None:
    write_atomically(path, b"".join(_encoded(line) for line in lines), private=True)


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
