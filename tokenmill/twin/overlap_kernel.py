"""Two times that overlap, as ``iteration.combined`` has them, for the core."""

from __future__ import annotations

import math

from tokenmill.twin.compiling import inlined


@inlined
def combined(first: float, second: float) -> float:
    """The fourth root of the sum of fourth powers: ``iteration.SHARPNESS``."""
    first *= first
    second *= second
    return math.sqrt(math.sqrt(first * first + second * second))
