"""How often does a job keep a checkpoint? So that saving and what a failure loses cost least together.

The time between failures is what was seen: of the job's own attempts, on top of what the factory's nodes let
expect. Nobody has to know the rate beforehand. Saving is the trainer's matter, which is told the interval.
"""

from __future__ import annotations

import math

from tokenmill.domain.errors import DataError
from tokenmill.domain.value import value
from tokenmill.domain.work import Checkpoints, Uptime

NODE_BETWEEN_US = 86_400_000_000
"""Time between two losses of a node that is assumed before any was seen, with the weight of one."""

LEAST_US = 10_000_000
MOST_US = 1_800_000_000
"""Bounds of the interval: half an hour is the most work that one failure may lose."""


@value
class Pace:
    """``between_us`` is the time between interruptions that the interval is made for."""

    interval_us: int
    between_us: int
    reason: str


def checkpoint_interval_s(save_s: float, between_failures_s: float) -> float:
    """Seconds of work between two checkpoints that lose least (Young 1974; Daly 2006, equation 37).

    ``save_s`` is how long training stands still for one. Raises ``DataError`` unless both are above zero.
    """
    if not (save_s > 0 and between_failures_s > 0 and math.isfinite(save_s + between_failures_s)):
        raise DataError(
            f"a checkpoint takes {save_s} s and a failure comes every {between_failures_s} s",
            expected="both above 0",
        )
    if save_s >= 2 * between_failures_s:
        return between_failures_s
    ratio = save_s / (2 * between_failures_s)
    root = math.sqrt(2 * save_s * between_failures_s)
    return root * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_s


def between_failures(expected: float, ran: float, failures: int) -> float:
    """Time between failures after ``failures`` in ``ran``; ``expected`` weighs as much as one of them."""
    return (expected + ran) / (1 + failures)


def pace(nodes: int, seen: Checkpoints, ran_us: int, uptime: Uptime, now_us: int) -> Pace | None:
    """The interval of a gang on ``nodes`` nodes whose attempt has run for ``ran_us``; ``None`` while nobody
    measured how long a save takes.

    A preemption costs a job what a failure does, so each attempt that did not end by itself counts. The loss
    of a node counts for the job that it hit and for the factory: that errs towards saving too often.
    """
    if seen.save_us <= 0:
        return None
    up_us = uptime.node_us + uptime.nodes * max(0, now_us - uptime.at_us)
    expected_us = between_failures(NODE_BETWEEN_US, up_us, uptime.lost) / max(1, nodes)
    own_us = seen.ran_us + max(0, ran_us)
    between_us = between_failures(expected_us, own_us, seen.interrupted)
    best_us = round(checkpoint_interval_s(seen.save_us / 1e6, between_us / 1e6) * 1e6)
    least_us = min(MOST_US, max(LEAST_US, seen.save_us))  # saving takes half of the time at most
    interval_us = min(MOST_US, max(least_us, best_us))
    bound = "" if interval_us == best_us else ", the bound that is set for it"
    return Pace(
        interval_us,
        round(between_us),
        f"a checkpoint every {interval_us / 1e6:.0f} s{bound}: one takes {seen.save_us / 1e6:.2f} s and an "
        f"interruption is expected every {between_us / 3.6e9:.1f} h "
        f"({seen.interrupted} in {own_us / 3.6e9:.1f} h of the job, "
        f"{uptime.lost} node(s) lost in {up_us / 3.6e9:.1f} node-hours)",
    )
