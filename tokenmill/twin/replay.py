"""A trace as the arrivals of one deployment: opened by what its first line says, cut into windows.

The trace is gone through as often as the time asks; a rate other than its own stretches it.
"""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tokenmill.domain.errors import DataError
from tokenmill.spec.files import unreadable
from tokenmill.twin import traces
from tokenmill.twin.demand import generator
from tokenmill.twin.floor_arrays import Array
from tokenmill.twin.trace_columns import columns
from tokenmill.twin.traces import TraceRow

MAX_ROWS = 20_000_000
FORMATS = (
    "CSV with the columns TIMESTAMP,ContextTokens,GeneratedTokens (Azure), arrival_s,input_tokens,"
    "output_tokens, or those of BurstGPT, divided by commas; or Mooncake's JSON lines; plain or gzipped"
)

Reader = Callable[[Iterable[str], str], Iterator[TraceRow]]


def read_trace(path: Path) -> tuple[TraceRow, ...]:
    """The rows of a trace file, packed by gzip or not. Raises ``DataError`` with file, line and field."""
    try:
        unpacked = gzip.open if path.suffix == ".gz" else open
        with unpacked(path, "rt", encoding="utf-8-sig") as lines:
            first = next(lines, "")
            read = _reader(first, str(path))(itertools.chain([first], lines), str(path))
            rows = tuple(itertools.islice(read, MAX_ROWS + 1))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {unreadable(error)}", expected=FORMATS) from None
    if not rows:
        raise DataError(f"{path} has no requests", expected="at least one row", where=f"{path}:1")
    if len(rows) > MAX_ROWS:
        raise DataError(f"{path} has too many requests", expected=f"at most {MAX_ROWS}")
    return rows


def _reader(first: str, name: str) -> Reader:
    if first.lstrip().startswith("{"):
        return traces.mooncake
    names = {cell.strip() for cell in first.split(",")}
    if {"Timestamp", "Request tokens"} <= names:
        return traces.burstgpt
    if {"TIMESTAMP", "ContextTokens"} <= names or {"arrival_s", "input_tokens"} <= names:
        return traces.azure
    raise DataError("this is no trace that is known", expected=FORMATS, where=f"{name}:1")


@dataclass(slots=True)
class Replay:
    """``rows`` again and again, ``speed`` times as fast; their blocks begin at ``offset`` among all units."""

    rows: Sequence[TraceRow]
    seed: int
    alias: int = 0
    speed: float = 1.0
    offset: int = 0
    requests: Array = field(init=False)
    units: Array = field(init=False)
    length_s: float = field(init=False)

    def __post_init__(self) -> None:
        """Raise ``DataError`` when all rows are at one time or the speed makes no sense."""
        if not 0 < self.speed < 1e6:
            raise DataError(f"the trace's speed is {self.speed}", expected="more than 0")
        rows = traces.spread(self.rows, self.seed) if _rounded(self.rows) else self.rows
        self.requests, self.units = columns(rows, self.seed, self.alias)
        self.requests["id"] = -1
        self.requests["key"] += self.offset
        last = float(self.requests["at"][-1])
        if last <= 0:
            raise DataError("all requests of the trace are at one time", expected="a trace that lasts")
        self.length_s = last * len(rows) / max(1, len(rows) - 1) / self.speed
        self.requests["at"] /= self.speed

    def window(self, seed: int, start_s: float, end_s: float) -> Array:
        """The requests from ``start_s`` on, before ``end_s``."""
        at = self.requests["at"]
        parts = []
        turn = int(start_s // self.length_s)
        while turn * self.length_s < end_s:
            base = turn * self.length_s
            low, high = np.searchsorted(at, [start_s - base, end_s - base])
            part = self.requests[max(0, low) : high].copy()
            part["at"] += base
            if turn:
                draw = generator(seed, "replay", self.alias, turn, start_s)
                for name in ("draw", "draw2"):
                    part[name] = draw.integers(0, 2**31 - 1, len(part), dtype=np.int32, endpoint=True)
            parts.append(part)
            turn += 1
        return np.concatenate(parts)

    @property
    def per_second(self) -> float:
        return len(self.requests) / self.length_s


def at_rate(replay: Replay, per_second: float) -> Replay:
    """The same trace at another mean rate."""
    return replace(replay, speed=replay.speed * per_second / replay.per_second)


def _rounded(rows: Sequence[TraceRow]) -> bool:
    """Whether many rows share their times, as Mooncake's do: its clock is rounded to about 3 s."""
    return len({row.at_s for row in rows}) * 4 < len(rows)
