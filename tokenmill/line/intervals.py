"""Confidence intervals of what was measured on a sample of items. Decides nothing: the gate does."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson(hits: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Interval of a proportion, ``hits`` of ``n`` (E. B. Wilson, JASA 22, 1927); (0, 1) when ``n`` is 0."""
    if n == 0:
        return 0.0, 1.0
    share = hits / n
    scale = 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    low = 0.0 if hits == 0 else max(0.0, middle - half)
    high = 1.0 if hits == n else min(1.0, middle + half)
    return low, high


def bootstrap(
    items: Sequence[T], statistic: Callable[[Sequence[T]], float], seed: int, resamples: int = 1000
) -> tuple[float, float]:
    """95 % percentile interval of ``statistic`` by resampling (Efron, 1979); (0, 1) without items."""
    if not items:
        return 0.0, 1.0
    draw = random.Random(seed)
    values = sorted(statistic(draw.choices(items, k=len(items))) for _ in range(resamples))
    return values[int(0.025 * resamples)], values[min(resamples - 1, int(0.975 * resamples))]


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which ``part`` (0 to 1) of ``values`` lie, nearest rank; 0.0 without values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(part * len(ordered)) - 1))]
