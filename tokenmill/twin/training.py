"""Long jobs that fail: how often to keep a checkpoint, what a failure costs, and what part of the time
counts.

The interval adapts to the failures that the job has seen, so that nobody has to know the rate beforehand. How
long a training step takes is the performance model's to say; here a job is seconds of work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenmill.policy.checkpoint import between_failures, checkpoint_interval_s
from tokenmill.twin.faults import (
    LLAMA3_DAYS,
    LLAMA3_GPUS,
    Fault,
    llama3_rates,
    schedule,
    stream,
)

DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Training:
    """A job's way through failures. Times are seconds; ``save_s`` stands still for a checkpoint.

    ``expected_s`` is the time between failures that is assumed before any was seen, with the weight of one.
    """

    work_s: float
    save_s: float = 20.0
    expected_s: float = 86_400.0
    saved_s: float = 0.0  # work in the last checkpoint
    ran_s: float = 0.0
    failures: int = 0
    lost_s: float = 0.0
    saving_s: float = 0.0

    @property
    def interval_s(self) -> float:
        """Work between checkpoints, from the failures seen so far."""
        between_s = between_failures(self.expected_s, self.ran_s, self.failures)
        return checkpoint_interval_s(self.save_s, between_s)

    @property
    def left_s(self) -> float:
        """Time until it is done if nothing fails: the work left and its checkpoints."""
        work = self.work_s - self.saved_s
        return work + self.save_s * max(0, math.ceil(work / self.interval_s) - 1)

    def run(self, seconds: float, *, failed: bool) -> Training:
        """After it trained for ``seconds`` since its last start. A stop that is no failure saves all."""
        interval = self.interval_s
        cycle = interval + self.save_s
        done = min(self.work_s - self.saved_s, (seconds // cycle) * interval + min(seconds % cycle, interval))
        kept = min(done, (seconds // cycle) * interval) if failed else done
        return replace(
            self,
            saved_s=self.saved_s + kept,
            ran_s=self.ran_s + seconds,
            failures=self.failures + failed,
            lost_s=self.lost_s + done - kept,
            saving_s=self.saving_s + max(0.0, seconds - done),
        )


@dataclass(frozen=True, slots=True)
class Goodput:
    """What became of a job's time. ``goodput`` is the part of all seconds that went into kept work."""

    seconds: float
    interruptions: int
    kept_s: float
    lost_s: float
    saving_s: float
    down_s: float
    by_kind: tuple[tuple[str, int], ...]

    @property
    def goodput(self) -> float:
        return self.kept_s / self.seconds


def through(
    faults: Sequence[Fault], seconds: float, training: Training, restart_median_s: float, seed: int
) -> Goodput:
    """A job that holds all components for ``seconds`` and goes on after each fault.

    A restart (log-normal, sigma 0.5) ends when spare nodes have taken over: repairs do not hold it up. A
    fault while it is down extends nothing and counts as no further interruption.
    """
    draw = stream(seed, "restart")
    at_s, down_s, kinds = 0.0, 0.0, dict[str, int]()
    for fault in faults:
        hit_s = fault.at_us / 1e6
        if hit_s < at_s:
            continue
        if hit_s >= seconds:
            break
        training = training.run(hit_s - at_s, failed=True)
        kinds[fault.kind] = kinds.get(fault.kind, 0) + 1
        restart = min(restart_median_s * math.exp(draw.gauss(0.0, 0.5)), seconds - hit_s)
        down_s += restart
        at_s = hit_s + restart
    training = training.run(max(0.0, seconds - at_s), failed=False)
    counted = tuple(sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0])))
    return Goodput(
        seconds, training.failures, training.saved_s, training.lost_s, training.saving_s, down_s, counted
    )


def llama3(seed: int, restart_median_s: float = 300.0, save_s: float = 10.0) -> Goodput:
    """54 days of pre-training on 16,384 GPUs at the rates of its own table of interruptions.

    The rates are the published counts; that the restart takes five minutes and a checkpoint stops training
    for ten seconds are assumptions.
    """
    nodes = [f"n{i:04d}" for i in range(LLAMA3_GPUS // 8)]
    seconds = LLAMA3_DAYS * 86_400.0
    faults = schedule(nodes, llama3_rates(8), LLAMA3_DAYS * DAY_US, seed)
    return through(faults, seconds, Training(2 * seconds, save_s), restart_median_s, seed)
