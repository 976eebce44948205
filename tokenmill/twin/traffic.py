"""Requests that come, as objects: a seeded generator, and published traces by way of ``traces``.

A request here is a time and two token counts; ``demand`` makes whole days of them as arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tokenmill.domain.errors import DataError
from tokenmill.twin import traces
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
    """An Azure trace (``traces.azure``) as arrivals. Raises ``DataError`` with file, line and field."""
    return (_arrival(row, alias) for row in traces.azure(lines, name))


def read_mooncake(lines: Iterable[str], name: str, alias: str) -> Iterator[Arrival]:
    """A Mooncake trace (``traces.mooncake``) as arrivals, without its prefix blocks."""
    return (_arrival(row, alias) for row in traces.mooncake(lines, name))


def read_burstgpt(lines: Iterable[str], name: str, alias: str) -> Iterator[Arrival]:
    """A BurstGPT trace (``traces.burstgpt``) as arrivals."""
    return (_arrival(row, alias) for row in traces.burstgpt(lines, name))


def _arrival(row: traces.TraceRow, alias: str) -> Arrival:
    return Arrival(round(row.at_s * 1e6), alias, row.input_tokens, row.output_tokens)
