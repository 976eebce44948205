"""Which jobs made a checkpoint, by what their trainers write into their progress. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenmill.domain.events import JobSaved
from tokenmill.domain.work import Job, JobStatus


class SaveWatch:
    """Turns progress into ``JobSaved``, once for each checkpoint of a running attempt."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}  # job -> when its checkpoint was made that was told last

    def look(
        self, progress: Mapping[str, Mapping[str, Any]], jobs: Mapping[str, Job], now_us: int
    ) -> list[JobSaved]:
        """What is to be reported now. A line that an earlier attempt left behind says nothing."""
        found = []
        for name, line in sorted(progress.items()):
            job, metrics = jobs.get(name), line.get("metrics")
            if job is None or job.status is not JobStatus.RUNNING or not isinstance(metrics, Mapping):
                continue
            saved_us, save_us = metrics.get("saved_us"), metrics.get("save_us")
            if not isinstance(saved_us, int) or not isinstance(save_us, int):
                continue
            if saved_us > max(job.started_us, job.saved_us) and self._told.get(name) != saved_us:
                found.append(JobSaved(min(saved_us, now_us), name, job.attempt, save_us))
            self._told[name] = saved_us
        self._told = {name: at_us for name, at_us in self._told.items() if name in progress}
        return found
