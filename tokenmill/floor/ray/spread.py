"""A gang over several nodes, told to control as the one job that it is.

Each node's agent runs its share and tells of its own start and end. Here these become one ``JobStarted`` when
every share has started and one ``JobExited`` when every share has ended; the first share that fails ends all.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from tokenmill.domain.effects import StartJob
from tokenmill.domain.events import JobExited, JobStarted
from tokenmill.domain.work import Job, JobStatus
from tokenmill.floor.workers import Share, total


@dataclass(slots=True)
class Spread:
    """One attempt of one job. ``exits`` are those of the shares that ended, by node."""

    job: str
    attempt: int
    nodes: tuple[str, ...]  # without repetition; rank 0's first
    told_start: bool = False
    started: set[str] = field(default_factory=set)
    exits: dict[str, JobExited] = field(default_factory=dict)
    told: asyncio.Event = field(default_factory=asyncio.Event)  # the gang's end is in the journal

    def start(self, node: str, event: JobStarted) -> JobStarted | None:
        """Take note that a share started; the whole gang's start when it is the last one."""
        self.started.add(node)
        if self.told_start or not self.started.issuperset(self.nodes):
            return None
        self.told_start = True
        return event

    def end(self, node: str, event: JobExited) -> JobExited | None:
        """Take note that a share ended; the whole gang's end when it is the last one."""
        self.exits.setdefault(node, event)
        return self.outcome(event.at_us) if self.whole else None

    @property
    def whole(self) -> bool:
        return all(node in self.exits for node in self.nodes)

    @property
    def failed(self) -> bool:
        return any(found.code != 0 for found in self.exits.values())

    @property
    def running(self) -> tuple[str, ...]:
        return tuple(node for node in self.nodes if node not in self.exits)

    def outcome(self, at_us: int) -> JobExited:
        """The first failure in order of time, else rank 0's result; usage added up."""
        ends = [(self.exits[node].at_us, node) for node in self.nodes if self.exits[node].code != 0]
        usage = total(self.exits[node].usage for node in self.nodes)
        if not ends:
            return JobExited(at_us, self.job, self.attempt, 0, self.exits[self.nodes[0]].result, "", usage)
        node = min(ends)[1]
        first = self.exits[node]
        reason = f"on node {node}: {first.reason}"
        return JobExited(at_us, self.job, self.attempt, first.code, None, reason, usage)


def spread_of(job: Job) -> Spread | None:
    """The gang of a job that holds nodes, when there is more than one of them."""
    nodes = tuple(dict.fromkeys(job.nodes))
    if len(nodes) < 2 or job.status not in (JobStatus.STARTING, JobStatus.RUNNING, JobStatus.STOPPING):
        return None
    return Spread(job.id, job.attempt, nodes, told_start=job.status is not JobStatus.STARTING)


def shares(effect: StartJob, address: str, port: int) -> dict[str, Share]:
    """Each node's ranks, in the order of the placement. Rank 0 is met at ``address`` and ``port``."""
    nodes = tuple(dict.fromkeys(effect.nodes))
    return {
        node: Share(
            tuple(rank for rank, where in enumerate(effect.nodes) if where == node),
            number,
            len(nodes),
            address,
            port,
        )
        for number, node in enumerate(nodes)
    }
