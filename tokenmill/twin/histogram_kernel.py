"""Log-linear histograms: 32 bins per power of two, so that no bin is wider than 3.2 % of its value."""

from __future__ import annotations

import math

from tokenmill.twin.compiling import inlined

LEAST_EXPONENT = -16  # 15 microseconds
OCTAVES = 32  # up to 65,000 seconds
SUB = 32
BINS = OCTAVES * SUB


@inlined
def bin_of(seconds: float) -> int:
    """The bin of a time; what lies outside goes to the first or last."""
    mantissa, exponent = math.frexp(seconds)
    at = (exponent - LEAST_EXPONENT) * SUB + int((mantissa - 0.5) * (2 * SUB))
    if at < 0:
        return 0
    return min(at, BINS - 1)


def edge(at: int) -> float:
    """The lower end of a bin, in seconds."""
    octave, sub = divmod(at, SUB)
    return math.ldexp(0.5 + sub / (2 * SUB), octave + LEAST_EXPONENT)
