"""Requests that come: seeded generators, and readers of published traces.

A request here is a time and two token counts; texts, prefixes and sessions are not modelled.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tokenmill.domain.errors import DataError
from tokenmill.twin.faults import stream

MAX_REQUESTS = 1_000_000
MAX_TOKENS = 16_777_216


@dataclass(frozen=True, slots=True, order=True)
class Arrival:
    """One request, ``at_us`` after the start of the traffic."""

    at_us: int
    alias: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal token counts with this mean; a ``sigma`` of 0 makes all equal."""

    mean: float
    sigma: float = 0.0

    def draw(self, standard: float) -> int:
        """The count for a standard normal draw, at least one."""
        if self.sigma == 0:
            return max(1, round(self.mean))
        return min(MAX_TOKENS, max(1, round(self.mean * math.exp(self.sigma * standard - self.sigma**2 / 2))))


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests for one alias with gamma-distributed gaps.

    ``burstiness`` is their squared coefficient of variation: 1 is Poisson, more comes in bursts, 0 is even.
    """

    alias: str
    per_second: float
    seconds: float
    inputs: Lengths
    outputs: Lengths
    burstiness: float = 1.0


def generate(streams: Iterable[Stream], seed: int) -> tuple[Arrival, ...]:
    """All requests of all streams in time order. Each stream draws from its own random stream."""
    arrivals: list[Arrival] = []
    for one in streams:
        draw = stream(seed, "traffic", one.alias)
        at_s = 0.0
        while one.per_second > 0:
            at_s += _gap(draw.gammavariate, one)
            if at_s >= one.seconds:
                break
            lengths = one.inputs.draw(draw.gauss(0.0, 1.0)), one.outputs.draw(draw.gauss(0.0, 1.0))
            arrivals.append(Arrival(round(at_s * 1e6), one.alias, *lengths))
            if len(arrivals) > MAX_REQUESTS:
                raise DataError("the traffic has too many requests", expected=f"at most {MAX_REQUESTS}")
    return tuple(sorted(arrivals))


def _gap(gamma: Any, one: Stream) -> float:
    if one.burstiness == 0:
        return 1 / one.per_second
    return float(gamma(1 / one.burstiness, one.burstiness / one.per_second))


def read_azure(lines: Iterable[str], name: str, alias: str) -> Iterator[Arrival]:
    """Azure's LLM inference traces: ``TIMESTAMP,ContextTokens,GeneratedTokens``, or the same as
    ``arrival_s,input_tokens,output_tokens``. Times begin at the first row.

    Raises ``DataError`` with file and line.
    """
    first: float | None = None
    columns: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        where = f"{name}:{number}"
        cells = next(csv.reader([line.strip()]), [])
        if not cells:
            continue
        if not columns:
            columns = _azure_columns(cells, where)
            continue
        try:
            at_s = _seconds(cells[columns["at"]])
            tokens = int(cells[columns["in"]]), int(cells[columns["out"]])
        except (ValueError, IndexError) as error:
            raise DataError(f"the row cannot be read: {error}", expected="time, tokens in, tokens out",
                            where=where) from None  # fmt: skip
        first = at_s if first is None else first
        yield _arrival(round((at_s - first) * 1e6), alias, *tokens, where)


def _azure_columns(cells: list[str], where: str) -> dict[str, int]:
    known = (
        ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
        ("arrival_s", "input_tokens", "output_tokens"),
    )
    for names in known:
        if all(name in cells for name in names):
            return dict(zip(("at", "in", "out"), (cells.index(name) for name in names), strict=True))
    raise DataError("the header is not that of an Azure trace", expected=",".join(known[0]), where=where)


def _seconds(text: str) -> float:
    """Seconds of a plain number, or of "2023-11-16 18:15:46.6805900" counted from midnight of its day 0."""
    if "-" not in text.lstrip("-"):
        return float(text)
    date, _, clock = text.partition(" ")
    year, month, day = (int(part) for part in date.split("-"))
    hours, minutes, seconds = clock.partition("+")[0].split(":")
    return _days(year, month, day) * 86_400 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _days(year: int, month: int, day: int) -> int:
    """Days of the proleptic Gregorian calendar, after Fliegel and Van Flandern (CACM 11, 1968)."""
    shift = (14 - month) // 12
    y, m = year + 4800 - shift, month + 12 * shift - 3
    return day + (153 * m + 2) // 5 + 365 * y + y // 4 - y // 100 + y // 400 - 32_045


def read_mooncake(lines: Iterable[str], name: str, alias: str) -> Iterator[Arrival]:
    """Mooncake's traces: JSON lines with ``timestamp`` (ms), ``input_length`` and ``output_length``.

    Prefix blocks (``hash_ids``) are ignored. Raises ``DataError`` with file:line.
    """
    for number, line in enumerate(lines, 1):
        where = f"{name}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            at_us = round(float(row["timestamp"]) * 1000)
            tokens = int(row["input_length"]), int(row["output_length"])
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"the line cannot be read: {error}",
                expected='{"timestamp": ms, "input_length": n, "output_length": n}',
                where=where,
            ) from None
        yield _arrival(at_us, alias, *tokens, where)


def _arrival(at_us: int, alias: str, tokens_in: int, tokens_out: int, where: str) -> Arrival:
    if at_us < 0 or not 0 <= tokens_in <= MAX_TOKENS or not 0 <= tokens_out <= MAX_TOKENS:
        expected = f"a time of zero or more and 0 to {MAX_TOKENS} tokens"
        raise DataError("the request is impossible", expected=expected, where=where)
    return Arrival(at_us, alias, max(1, tokens_in), max(1, tokens_out))
