"""How a release did in a while: answered, failed, how long it took, and what people said of it.

Latencies are counts per bucket, so that two gateways' numbers add up and a report has a bounded size. The
buckets are a quarter of an octave wide, 1 ms to 15 min, so a quantile is right within 19 %.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

LATENCY_US: tuple[int, ...] = tuple(round(1000 * 2 ** (step / 4)) for step in range(80))
"""Upper bounds of the buckets; one more bucket holds what took longer."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """``errors`` are requests that the engine lost or answered with 5xx; a client's own mistakes and
    departures are no evidence and not counted. ``latency`` is (bucket, count) of those that succeeded,
    arrival to end. ``good`` and ``bad`` are feedback."""

    requests: int = 0
    errors: int = 0
    latency: tuple[tuple[int, int], ...] = ()
    good: int = 0
    bad: int = 0

    def plus(self, other: Outcomes) -> Outcomes:
        counts = dict(self.latency)
        for bucket, count in other.latency:
            counts[bucket] = counts.get(bucket, 0) + count
        return Outcomes(
            self.requests + other.requests,
            self.errors + other.errors,
            tuple(sorted(counts.items())),
            self.good + other.good,
            self.bad + other.bad,
        )

    def minus(self, before: Outcomes) -> Outcomes:
        """What was seen since ``before``, an earlier count of the same."""
        counts = dict(self.latency)
        for bucket, count in before.latency:
            counts[bucket] = counts.get(bucket, 0) - count
        return Outcomes(
            self.requests - before.requests,
            self.errors - before.errors,
            tuple((bucket, count) for bucket, count in sorted(counts.items()) if count),
            self.good - before.good,
            self.bad - before.bad,
        )

    @property
    def answered(self) -> int:
        return sum(count for _, count in self.latency)

    def latency_us(self, quantile_milli: int) -> int:
        """The quantile's latency, linear within its bucket; 0 when nothing was answered."""
        rank = self.answered * quantile_milli / 1000
        seen = 0
        for bucket, count in self.latency:
            if seen + count >= rank and count:
                low = LATENCY_US[bucket - 1] if bucket else 0
                high = LATENCY_US[bucket] if bucket < len(LATENCY_US) else 2 * low
                return int(low + (high - low) * max(0.0, rank - seen) / count)
            seen += count
        return 0


NOTHING_SEEN = Outcomes()

MEASURED_US = 60_000_000
"""How far back the counts of answers against an objective reach."""


@dataclass(slots=True)
class Answers:
    """How many answers of the last minute met an objective, and how many missed it."""

    met: int = 0
    missed: int = 0
    _parts: deque[tuple[int, int, int]] = field(default_factory=deque)  # when, met, missed

    @property
    def counts(self) -> tuple[int, int]:
        """All that were measured, and those of them that attained it: as ``LoadReported`` has them."""
        return self.met + self.missed, self.met

    def add(self, now_us: int, met: int, missed: int) -> None:
        """Take what is new, and let go of what is older than a minute."""
        if met or missed:
            self._parts.append((now_us, met, missed))
            self.met, self.missed = self.met + met, self.missed + missed
        while self._parts and now_us - self._parts[0][0] >= MEASURED_US:
            _, met, missed = self._parts.popleft()
            self.met, self.missed = self.met - met, self.missed - missed


def bucket_of(latency_us: int) -> int:
    """The bucket that this latency belongs to."""
    return bisect_left(LATENCY_US, latency_us)
