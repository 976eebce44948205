"""Is a mean difference of graded scores luck? The exact sign-flip test, and the interval of the mean.

Under the hypothesis that candidate and reference are equally good, each item's difference is as likely to
have the other sign (Fisher 1935, "The Design of Experiments", section 21; Pitman 1937). The chance of a sum
at least as large is counted over all 2**n sign patterns, exactly and without drawing: the number of
patterns by their sum are the coefficients of a polynomial, held in one whole number. Very large samples use
the normal limit of that count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Z95 = 1.959963984540054
EXACT_BITS = 1 << 24
"""Up to so many bits of the counting number the test is exact; it then takes well under a second."""


def sign_flip_p(differences: Sequence[int]) -> float:
    """One-sided p of ``differences`` (candidate's score - reference's, in thousandths of a point)."""
    sizes = [abs(d) for d in differences if d]
    observed = sum(d for d in differences if d > 0)  # of the patterns' sums of plus signs
    if not sizes:
        return 1.0
    divisor = math.gcd(*sizes)
    sizes = [size // divisor for size in sizes]
    width = len(sizes) + 1  # bits of one coefficient, which is at most 2**n
    if (sum(sizes) + 1) * width > EXACT_BITS:
        return _normal_p(differences)
    counts = 1
    for size in sizes:
        counts += counts << (size * width)
    tail = counts >> (observed // divisor * width)
    # A number is congruent to the sum of its digits modulo the base less one; the sum is smaller than that.
    at_least = tail % ((1 << width) - 1)
    return at_least / (1 << len(sizes))


def _normal_p(differences: Sequence[int]) -> float:
    spread = math.sqrt(sum(d * d for d in differences))
    return 0.5 * math.erfc(sum(differences) / spread / math.sqrt(2))


def mean_interval(differences: Sequence[int]) -> tuple[float, float]:
    """The 95 % interval of the mean by Student's t, in the unit of ``differences``. Needs at least two."""
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1)
    half = t95(n - 1) * math.sqrt(variance / n)
    return mean - half, mean + half


def t95(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t, by its expansion around the normal one (Fisher and Cornish
    1960).

    Right to 0.01 from 4 degrees of freedom, to 0.0001 from 20.
    """
    z, v = Z95, float(freedom)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3
