"""Log-linear histograms: 32 bins per power of two, so that no bin is wider than 3.2 % of its value."""

from __future__ import annotations

import math

from tokenmill.twin.compiling import bits_of, inlined

LEAST_EXPONENT = -16  # 15 microseconds
OCTAVES = 32  # up to 65,000 seconds
SUB = 32
BINS = OCTAVES * SUB
BELOW = (1022 + LEAST_EXPONENT) * SUB
"""Bins of all smaller times; 1022 is the biased exponent of a half."""


@inlined
def bin_of(seconds: float) -> int:
    """The bin of a time; what lies outside goes to the first or last.

    A float's bits are its exponent and then its mantissa: their first 5 + 11 bits count just such bins.
    """
    at = (bits_of(seconds) >> 47) - BELOW
    if at < 0:
        return 0
    return min(at, BINS - 1)


def edge(at: int) -> float:
    """The lower end of a bin, in seconds."""
    octave, sub = divmod(at, SUB)
    return math.ldexp(0.5 + sub / (2 * SUB), octave + LEAST_EXPONENT)
