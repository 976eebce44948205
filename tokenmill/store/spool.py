"""Reads what a gateway spooled: one JSON object per line, ``open`` at admission and ``settle`` at the end.

A line that has no newline yet is still being written and is left for the next read. A whole line that
makes no sense (the gateway was killed in the middle of it and a new one went on after it) is reported and
passed over, so that it cannot hold up what follows. This module does not write spools and prices nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from tokenmill.domain.errors import StoreError
from tokenmill.domain.ledger import Settlement

READ_BYTES = 4 * 1024 * 1024
LONGEST_LINE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Opened:
    """A request that was admitted. ``at_us`` is when."""

    request: str
    at_us: int


@dataclass(frozen=True, slots=True)
class SpoolBatch:
    """What was read. ``offset`` is the byte after the last whole line: the next read starts there."""

    settlements: tuple[Settlement, ...]
    opened: tuple[Opened, ...]
    damaged: tuple[str, ...]
    offset: int
    settlement_offsets: tuple[int, ...] = ()  # the byte after each settlement's line


class _Tag(msgspec.Struct):
    t: str


_TAG = msgspec.json.Decoder(_Tag)
_SETTLEMENT = msgspec.json.Decoder(Settlement)
_OPENED = msgspec.json.Decoder(Opened)


def read_spool(path: Path, offset: int = 0, limit_bytes: int = READ_BYTES) -> SpoolBatch:
    """Read whole lines of ``path`` from byte ``offset`` on, about ``limit_bytes`` of them.

    The result is empty, with the same offset, when there is nothing new. Raises ``StoreError`` when the
    file cannot be read, is shorter than ``offset``, or has a line that never ends.
    """
    data = _read(path, offset, limit_bytes)
    end = data.rfind(b"\n") + 1
    if end == 0 and len(data) > LONGEST_LINE_BYTES:
        raise StoreError(
            f"a line longer than {LONGEST_LINE_BYTES} bytes",
            expected="one settlement per line",
            fix="Move the file away and keep it; the gateway starts a new one.",
            where=f"{path}:byte {offset}",
        )
    settlements: list[Settlement] = []
    ends: list[int] = []
    opened: list[Opened] = []
    damaged: list[str] = []
    position = offset
    for line in data[:end].splitlines(keepends=True):
        start, position = position, position + len(line)
        try:
            tag = _TAG.decode(line).t
            if tag == "settle":
                settlements.append(_SETTLEMENT.decode(line))
                ends.append(position)
            elif tag == "open":
                opened.append(_OPENED.decode(line))
            else:
                damaged.append(f"{path.name}:byte {start}: a line of unknown kind {tag!r}")
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            if line.strip():
                damaged.append(f"{path.name}:byte {start}: {error}")
    return SpoolBatch(tuple(settlements), tuple(opened), tuple(damaged), offset + end, tuple(ends))


def spool_files(spool_dir: Path) -> list[Path]:
    """Every spool file of a folder, in a stable order; none when the folder does not exist."""
    return sorted(spool_dir.glob("*.jsonl"), key=lambda path: (len(path.name), path.name))


def _read(path: Path, offset: int, limit_bytes: int) -> bytes:
    # At least one whole line must fit, or a long one would never be passed.
    limit = max(limit_bytes, LONGEST_LINE_BYTES + 1)
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < offset:
                raise StoreError(
                    f"the spool file has {size} bytes, but {offset} were read from it before",
                    expected="a file that only grows",
                    fix="Someone cut or replaced it. Put the original back, or move this one away.",
                    where=str(path),
                )
            file.seek(offset)
            return file.read(limit)
    except OSError as error:
        raise StoreError(
            f"the spool file cannot be read: {error.strerror}",
            fix="Give this user access to the data directory.",
            where=str(path),
        ) from error
