"""A floor in virtual time whose engines have work and whose jobs keep checkpoints.

It adds to ``world``: a replica that drains ends when its last answer has, a training job runs for as long as
its work and its checkpoints take and goes on from the last one after a failure. Who may start where, and how
many, is decided by the live ``control.step``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tokenmill.domain import effects, events
from tokenmill.domain.work import JobResult, WorkUsage
from tokenmill.twin.training import Training
from tokenmill.twin.world import World

RESTART_US = 180_000_000
"""From a job's start to its first step: images, weights, the fabric. An assumption."""


@dataclass(slots=True)
class FactoryWorld(World):
    """``training`` holds the jobs' work by id. ``busy`` says whether a replica has answers to finish."""

    training: dict[str, Training] = field(default_factory=dict)
    busy: Callable[[str], bool] = lambda _: False
    draining: dict[str, int] = field(default_factory=dict)  # replica -> when its grace ends
    lost: list[str] = field(default_factory=list)  # processes gone with their node, not yet looked at

    def end_drained(self) -> None:
        """Let drained replicas end: those without work, and those whose grace is over."""
        for name, until_us in sorted(self.draining.items()):
            if self.now_us >= until_us or not self.busy(name):
                del self.draining[name]
                World._exit_replica(self, name)

    def send(self, event: events.Event) -> None:
        """Book the work of a job that came to its end, and tell the core."""
        if isinstance(event, events.JobExited) and event.code == 0 and event.job in self.training:
            job = self.training[event.job]
            self.training[event.job] = job.run(job.left_s + job.save_s, failed=False)
        World.send(self, event)

    def carry_out(self, effect: effects.Effect) -> None:
        """As in any world, but that a stopped replica first drains."""
        if isinstance(effect, effects.StopReplica) and effect.replica in self._alive:
            self.draining.setdefault(effect.replica, self.now_us + effect.grace_us)
            return
        World.carry_out(self, effect)

    def running(self) -> list[str]:
        """Training jobs that hold their accelerators now, by id."""
        return sorted(name for name in self.training if name in self._alive)

    def _start_job(self, effect: effects.StartJob) -> None:
        job = self.training.get(effect.job)
        if job is None:
            World._start_job(self, effect)
            return
        now = self.now_us
        self._alive[effect.job] = (now, effect.nodes)
        self.at(now, events.JobStarted(now, effect.job, effect.attempt), effect.job)
        end = now + RESTART_US + round(job.left_s * 1e6)
        usage = WorkUsage(wall_us=end - now)
        ended = events.JobExited(end, effect.job, effect.attempt, 0, JobResult(), "", usage)
        self.at(end, ended, effect.job)

    def _exit_job(self, job: str) -> None:
        if job in self.training and job in self._alive:
            self._pass(job, failed=False)
        World._exit_job(self, job)

    def _lose(self, node: str) -> None:
        for name in [name for name, (_, nodes) in self._alive.items() if node in nodes]:
            if name in self.training:
                self._pass(name, failed=True)
            self.draining.pop(name, None)
            self.lost.append(name)
        World._lose(self, node)

    def _pass(self, job: str, *, failed: bool) -> None:
        """Book what a job did since it started."""
        since_us, _ = self._alive[job]
        trained_s = max(0.0, (self.now_us - since_us - RESTART_US) / 1e6)
        self.training[job] = self.training[job].run(trained_s, failed=failed)
