"""How long each worker of a gang needs for its own work, before it waits for the others: who holds them up?

The forward pass is timed, which waits for nobody, per token, since rows differ in length. Who is slow enough
to be taken out is not decided here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenmill.engine.gang import Gang

WINDOW_S = 15.0
WINDOW_STEPS = 10
TOLD_MILLI = 1150  # of the median: who is further above it is named
TOLD_MOST = 8


@dataclass(frozen=True, slots=True)
class Window:
    """Time per thousand tokens over the last steps: the gang's median, and ranks clearly above it."""

    at_us: int
    median_us: int
    slow: tuple[tuple[int, int], ...]


class OwnTime:
    """Times this worker's forward passes; every rank of a gang has one and asks in the same steps."""

    def __init__(self, gang: Gang, wait: Callable[[], None] = lambda: None) -> None:
        """``wait`` returns when the device has done what it was given."""
        self.gang = gang
        self._wait = wait
        self._began_s = 0.0
        self._spent_s = 0.0
        self._tokens = 0
        self._steps = 0
        self._since_s: float | None = None
        self.last: Window | None = None

    def watch(self, model: Any) -> None:
        """Time ``model``, a torch module that is called with ``input_ids``, while it is in training."""
        if self.gang.world > 1:
            model.register_forward_pre_hook(self._before, with_kwargs=True)
            model.register_forward_hook(self._after)

    def _before(self, model: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids")
        if model.training and ids is not None:
            self._wait()
            self._tokens += int(ids.numel())
            self._began_s = time.perf_counter()

    def _after(self, model: Any, args: Any, output: Any) -> None:
        if model.training and self._began_s:
            self._wait()
            self._spent_s += time.perf_counter() - self._began_s
            self._began_s = 0.0

    def stepped(self, now_s: float) -> None:
        """A step is over; ``now_s`` is the same on every rank. Once a window is full they compare."""
        if self._since_s is None:
            self._since_s = now_s
        self._steps += 1
        if self.gang.world < 2 or self._steps < WINDOW_STEPS or now_s - self._since_s < WINDOW_S:
            return
        mine = self._spent_s / max(1, self._tokens) * 1e9
        self.last = compared(self.gang.gather(mine), time.time_ns() // 1000)
        self._spent_s, self._tokens, self._steps, self._since_s = 0.0, 0, 0, now_s


def compared(own_us: list[float], at_us: int) -> Window:
    """One window, from each rank's time for a thousand tokens."""
    median = statistics.median_low(own_us)  # of two it is the faster one's: the other may be slow
    late = [(rank, round(own)) for rank, own in enumerate(own_us) if own * 1000 > median * TOLD_MILLI]
    late.sort(key=lambda one: (-one[1], one[0]))
    return Window(at_us, max(1, round(median)), tuple(late[:TOLD_MOST]))
