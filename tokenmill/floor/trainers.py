"""What trainers write into their progress that control has to know: checkpoints made, and who is slow.

Each is told once. A worker's clock names a checkpoint and a window; it is never trusted further than ours.
Decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenmill.domain.events import JobSaved, StepsTimed
from tokenmill.domain.work import Job, JobStatus

SLOW_MOST = 64  # ranks of one report that are looked at


class TrainerWatch:
    """Turns the progress of running attempts into events; what an earlier one left behind says nothing."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], int] = {}  # job and what -> the stamp that was told last

    def look(
        self, progress: Mapping[str, Mapping[str, Any]], jobs: Mapping[str, Job], now_us: int
    ) -> list[JobSaved | StepsTimed]:
        """What is to be reported now."""
        found: list[JobSaved | StepsTimed] = []
        for name, line in sorted(progress.items()):
            job, metrics = jobs.get(name), line.get("metrics")
            if job is None or job.status is not JobStatus.RUNNING or not isinstance(metrics, Mapping):
                continue
            saved_us, save_us = self._new(job, "saved", metrics.get("saved_us")), metrics.get("save_us")
            if saved_us > job.saved_us and isinstance(save_us, int):
                found.append(JobSaved(min(saved_us, now_us), name, job.attempt, save_us))
            ranks = metrics.get("ranks")
            if isinstance(ranks, Mapping) and self._new(job, "ranks", ranks.get("at_us")):
                slow, median_us = _slow(ranks.get("slow")), ranks.get("median_us")
                if isinstance(median_us, int):
                    found.append(StepsTimed(now_us, name, job.attempt, median_us, slow))
        self._told = {key: at_us for key, at_us in self._told.items() if key[0] in progress}
        return found

    def _new(self, job: Job, what: str, stamp: Any) -> int:
        """The stamp, when this attempt wrote it and it was not told yet; else 0."""
        if not isinstance(stamp, int) or self._told.get((job.id, what)) == stamp:
            return 0
        self._told[job.id, what] = stamp
        return stamp if stamp > job.started_us else 0


def _slow(stated: Any) -> tuple[tuple[int, int], ...]:
    """Pairs of rank and time; what is none is left out, since a job may be anybody's own program."""
    pairs = stated[:SLOW_MOST] if isinstance(stated, list) else []
    return tuple(
        (pair[0], pair[1])
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, int) for n in pair)
    )
