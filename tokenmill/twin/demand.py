"""Requests as arrays, window by window: what a day of hundreds of millions needs, where ``traffic`` makes
objects.

Seeded, and each window draws from a stream of its own, so that a window can be made alone and in any order.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from tokenmill.domain.errors import DataError
from tokenmill.twin import floor_arrays as fa
from tokenmill.twin.floor_arrays import Array
from tokenmill.twin.traffic import Lengths

DAY_S = 86_400.0
MAX_WINDOW = 50_000_000
MAX_INPUT, MAX_OUTPUT = 131_072, 65_536


def generator(seed: int, *names: object) -> np.random.Generator:
    """A random stream of its own for these names; the same under any hash seed."""
    digest = hashlib.sha256("\0".join(str(name) for name in (seed, *names)).encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest[:8], "big")))


@dataclass(frozen=True, slots=True)
class Demand:
    """Requests for alias number ``alias``.

    The rate swings by ``swing`` (0 to 1) around ``per_second`` once a day, lowest at hour ``quiet_hour``.
    ``burstiness`` is the squared coefficient of variation of the gaps: 1 is Poisson, more comes in bursts
    (gamma gaps). Requests come from ``tenants`` alike, and each belongs to one of ``sessions`` of its tenant
    at a time, whose prompts share their first ``shared_share`` of tokens in units of ``unit_tokens``.
    """

    per_second: float
    inputs: Lengths
    outputs: Lengths
    alias: int = 0
    swing: float = 0.0
    quiet_hour: float = 4.0
    burstiness: float = 1.0
    tenants: int = 1
    sessions: int = 0
    shared_share: float = 0.0
    unit_tokens: int = 512

    def __post_init__(self) -> None:
        """Raise ``DataError`` that names the field when a figure makes no sense."""
        for name, least, most in (
            ("per_second", 0.0, 1e7),
            ("swing", 0.0, 1.0),
            ("quiet_hour", 0.0, 24.0),
            ("burstiness", 1.0, 1e4),
            ("shared_share", 0.0, 1.0),
            ("tenants", 1, 1_000_000),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and least <= value <= most):
                raise DataError(f"traffic: {name} is {value}", expected=f"{least} to {most}")
        if self.per_second == 0:
            raise DataError("traffic: per_second is 0", expected="more than 0 requests per second")
        for name, lengths in (("inputs", self.inputs), ("outputs", self.outputs)):
            if not (math.isfinite(lengths.mean) and lengths.mean >= 1 and 0 <= lengths.sigma <= 4):
                raise DataError(
                    f"traffic: {name} is mean {lengths.mean}, sigma {lengths.sigma}",
                    expected="a mean of at least 1 token and a sigma of 0 to 4",
                )

    def rate(self, at_s: float) -> float:
        """Requests per second at a time of day."""
        phase = 2 * math.pi * (at_s / DAY_S - self.quiet_hour / 24)
        return self.per_second * (1 - self.swing * math.cos(phase))

    def window(self, seed: int, start_s: float, end_s: float) -> Array:
        """All requests of a window, in order of time; the rate is that of its middle."""
        draw = generator(seed, "demand", self.alias, start_s)
        count = self._count(draw, self.rate((start_s + end_s) / 2) * (end_s - start_s))
        made = np.zeros(count, fa.REQUEST)
        made["at"] = self._times(draw, count, start_s, end_s)
        made["input"] = _lengths(draw, self.inputs, count, MAX_INPUT)
        made["output"] = _lengths(draw, self.outputs, count, MAX_OUTPUT)
        both = draw.integers(0, 2**62, count)  # one draw for both: half the time
        made["draw"], made["draw2"] = both >> 31, both & (2**31 - 1)
        made["id"] = -1
        if self.alias:
            made["alias"] = self.alias
        if self.tenants > 1:
            made["tenant"] = draw.integers(0, self.tenants, count, dtype=np.int32)
        if self.sessions:
            made["key"] = draw.integers(0, self.sessions, count) * self.tenants + made["tenant"]
            made["units"] = made["input"] * self.shared_share // self.unit_tokens
        return made

    def _count(self, draw: np.random.Generator, mean: float) -> int:
        if mean > MAX_WINDOW:
            raise DataError(f"{mean:.0f} requests in a window", expected=f"at most {MAX_WINDOW}")
        if self.burstiness == 1.0:
            return int(draw.poisson(mean))
        # The count of a renewal process has the variance of its gaps, squared and relative, times its mean.
        return int(draw.negative_binomial(mean / (self.burstiness - 1), 1 / self.burstiness))

    def _times(self, draw: np.random.Generator, count: int, start_s: float, end_s: float) -> Array:
        """Gaps rescaled to fill the window: for exponential ones these are ordered uniform times."""
        if self.burstiness == 1.0:
            gaps = draw.standard_exponential(count + 1)
        else:
            gaps = draw.standard_gamma(1 / self.burstiness, count + 1)
        at = np.cumsum(gaps)
        return start_s + at[:-1] * ((end_s - start_s) / at[-1])


def within_context(made: Array, most: int) -> Array:
    """The requests that a context of ``most`` tokens takes: longer prompts are refused, answers end at it."""
    if not len(made) or int((made["input"] + made["output"]).max()) <= most:
        return made
    kept = made[made["input"] < most]
    kept["output"] = np.minimum(kept["output"], most - kept["input"])
    return kept


def merged(parts: list[Array]) -> Array:
    """Windows of several demands in one order of time; equal times keep the order of ``parts``."""
    if len(parts) == 1:
        return parts[0]
    whole = np.concatenate(parts)
    return whole[np.argsort(whole["at"], kind="stable")]


def _lengths(draw: np.random.Generator, lengths: Lengths, count: int, most: int) -> Array:
    """Log-normal token counts, at least one; single precision is finer than a token."""
    if lengths.sigma == 0:
        return np.full(count, min(max(1, round(lengths.mean)), most))
    values = draw.standard_normal(count, dtype=np.float32)
    values *= np.float32(lengths.sigma)
    values += np.float32(math.log(lengths.mean) - lengths.sigma**2 / 2)
    np.exp(values, out=values)
    np.clip(values, 1, most, out=values)
    return values.astype(np.int32)
