"""A floor in virtual time: it drives the real ``control.step`` with the events that a real floor would send.

What takes time on machines takes stated times here (``Timings``). Processes hold no model of what they serve;
that is ``serving``. Nothing blocks: ``run`` goes from event to event until nothing is left, or until its end.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tokenmill.control.core import resume, step
from tokenmill.control.state import State
from tokenmill.domain import effects, events
from tokenmill.domain.codec import digest_of
from tokenmill.domain.errors import invariant
from tokenmill.domain.table import Table
from tokenmill.domain.work import Imported, JobResult, JobSpec, JobStatus, ReplicaStatus, WorkUsage
from tokenmill.policy.gate import NAMED
from tokenmill.twin.faults import Fault

MAX_STEPS = 500_000

OUTPUTS = {
    "intake": ("rows",),
    "curate": ("train", "validation", "test", "quarantine", "card"),
    "tune": ("adapter_hf", "adapter_gguf"),
    "evaluate": ("predictions",),
    "pack": ("release",),
}


@dataclass(frozen=True, slots=True)
class Timings:
    """How long things take on the floor. The defaults are assumptions for a small model, not measured."""

    import_us: int = 2_000_000
    weights_bytes: int = 145_000_000
    spawn_us: int = 300_000
    load_us: int = 2_500_000
    stop_us: int = 200_000
    job_us: int = 60_000_000
    detect_us: int = 1_000_000  # from a node's fault until it is reported


@dataclass(slots=True)
class World:
    """``now_us`` is virtual. ``passes`` says whether an evaluation finds the candidate better."""

    state: State
    timings: Timings = Timings()
    now_us: int = 0
    passes: bool = True
    table: Table | None = None
    steps: int = 0
    log: list[tuple[int, str]] = field(default_factory=list)
    releases: list[str] = field(default_factory=list)
    charges: list[effects.ChargeWork] = field(default_factory=list)
    _queue: list[tuple[int, int, events.Event, str]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)
    _alive: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)  # process -> since, nodes
    _unreported: dict[str, list[tuple[str, WorkUsage]]] = field(default_factory=dict)  # by lost node

    def send(self, event: events.Event) -> None:
        """Give the core an event now, and carry out what it wants."""
        after, wanted = step(self.state, event)
        self.steps += 1
        if after is self.state:
            invariant(not wanted, "a step that changed nothing asked for effects")
            return
        self.state = after
        self.log.append((event.at_us, type(event).__name__))
        for effect in wanted:
            self.carry_out(effect)

    def take_over(self) -> None:
        """What runs by the state goes on here, and what is outstanding is done. A job goes on until it is
        stopped: when it would end by itself nobody knows."""
        for name, replica in self.state.replicas.items():
            if replica.status in (ReplicaStatus.READY, ReplicaStatus.DRAINING):
                self._alive[name] = (replica.since_us, (replica.node,))
        for name, job in self.state.jobs.items():
            if job.status in (JobStatus.STARTING, JobStatus.RUNNING, JobStatus.STOPPING):
                self._alive[name] = (job.started_us, job.nodes)
        for effect in resume(self.state, self.now_us):
            self.carry_out(effect)

    def at(self, at_us: int, event: events.Event, process: str = "") -> None:
        """Send an event later; one of a ``process`` is dropped when that is gone by then."""
        heapq.heappush(self._queue, (max(at_us, self.now_us), next(self._order), event, process))

    def run(self, until_us: int, settled: Callable[[State], bool] | None = None) -> bool:
        """Go on until ``settled``, until nothing is left, or until ``until_us``. Says whether it settled.

        ``settled`` is asked once all events of a moment have happened.
        """
        while True:
            moment_over = not self._queue or self._queue[0][0] > self.now_us
            if moment_over and settled is not None and settled(self.state):
                return True
            if not self._queue or self._queue[0][0] > until_us or self.steps >= MAX_STEPS:
                self.now_us = max(self.now_us, until_us) if self.steps < MAX_STEPS else self.now_us
                return settled is None
            at_us, _, event, process = heapq.heappop(self._queue)
            self.now_us = at_us
            if process and (process not in self._alive or self._is_stale(event)):
                continue
            if isinstance(event, events.ReplicaExited | events.JobExited):
                self._alive.pop(process, None)
            if isinstance(event, events.NodeLost):
                self._lose(event.node)
            self.send(event)
            if isinstance(event, events.NodeJoined):
                self._report_lost(event.node.id)

    def _is_stale(self, event: events.Event) -> bool:
        """Whether it is about an earlier attempt of a job that was started again."""
        if not isinstance(event, events.JobExited):
            return False
        job = self.state.jobs.get(event.job)
        return job is not None and job.attempt != event.attempt

    def inject(self, faults: Iterable[Fault], start_us: int = 0) -> None:
        """Lose nodes, by name, and let each join again after its repair."""
        for fault in faults:
            for node in fault.nodes or (fault.component,):
                known = self.state.nodes.get(node)
                if known is None:
                    continue
                lost_us = start_us + fault.at_us + self.timings.detect_us
                self.at(lost_us, events.NodeLost(lost_us, node, fault.kind))
                back_us = lost_us + fault.repair_us
                self.at(back_us, events.NodeJoined(back_us, known.node))

    def carry_out(self, effect: effects.Effect) -> None:
        """What a floor does for an effect: the events that will follow, in virtual time."""
        now = self.now_us
        match effect:
            case effects.ImportModel():
                self.at(now + self.timings.import_us, self._imported(effect, now + self.timings.import_us))
            case effects.StartReplica() if effect.replica not in self._alive:
                self._start_replica(effect)
            case effects.StopReplica():
                self._exit_replica(effect.replica)
            case effects.StartJob() if effect.job not in self._alive:
                self._start_job(effect)
            case effects.StopJob():
                self._exit_job(effect.job)
            case effects.PublishTable():
                newer = self.table is None or effect.table.version > self.table.version
                self.table = effect.table if newer else self.table
            case effects.RecordRelease():
                self.releases.append(effect.release.id)
            case effects.ChargeWork():
                self.charges.append(effect)
            case effects.WakeAt():
                self.at(effect.at_us, events.Tick(max(effect.at_us, now)))
            case _:
                pass

    def _imported(self, effect: effects.ImportModel, at_us: int) -> events.ModelImported:
        model = effect.model
        digest = model.digest or digest_of((model.name, model.source))
        form = "gguf" if model.kind == "chat" else "safetensors"
        found = Imported(model.name, digest, self.timings.weights_bytes, form, source=model.source)
        return events.ModelImported(at_us, found)

    def _start_replica(self, effect: effects.StartReplica) -> None:
        name, started = effect.replica, self.now_us + self.timings.spawn_us
        self._alive[name] = (self.now_us, (effect.node,))
        self.at(started, events.ReplicaStarted(started, name, f"{name}.twin:1"), name)
        ready = started + self.timings.load_us
        self.at(ready, events.ReplicaReady(ready, name), name)

    def _exit_replica(self, name: str) -> None:
        if name not in self._alive:
            return
        since, _ = self._alive[name]
        at_us = self.now_us + self.timings.stop_us
        usage = WorkUsage(wall_us=at_us - since)
        self.at(at_us, events.ReplicaExited(at_us, name, "stopped", usage), name)

    def _start_job(self, effect: effects.StartJob) -> None:
        now, end = self.now_us, self.now_us + self.timings.job_us
        self._alive[effect.job] = (now, effect.nodes)
        self.at(now, events.JobStarted(now, effect.job, effect.attempt), effect.job)
        usage = WorkUsage(wall_us=end - now, cpu_us=end - now)
        result = self._job_result(effect.spec)
        ended = events.JobExited(end, effect.job, effect.attempt, 0, result, "", usage)
        self.at(end, ended, effect.job)

    def _exit_job(self, job: str) -> None:
        known = self.state.jobs.get(job)
        if job in self._alive and known is not None:
            at_us = self.now_us + self.timings.stop_us
            self.at(at_us, events.JobExited(at_us, job, known.attempt, 143, None, "stopped"), job)

    def _job_result(self, spec: JobSpec) -> JobResult:
        kind = str(spec.params.get("kind", ""))
        outputs = {name: digest_of((spec.run, spec.station, name)) for name in OUTPUTS.get(kind, ())}
        evidence: dict[str, object] = {}
        if kind == "evaluate":
            evidence = self._evidence(spec)
        if kind == "pack":
            evidence = {"manifest_digest": digest_of((spec.run, "manifest"))}
        return JobResult(outputs, {}, evidence)

    def _evidence(self, spec: JobSpec) -> dict[str, object]:
        """What an evaluation reports when the candidate is clearly better, or clearly worse."""
        good, bad = (60, 0) if self.passes else (0, 60)
        pair = {"both": 100, "neither": 40, "candidate_only": good, "reference_only": bad}
        candidate, reference = 500 + good * 5, 500 + bad * 5
        champion = spec.params.get("champion")
        subjects: dict[str, object] = {
            "base": {"correct_milli": reference},
            "champion": {"correct_milli": reference} if champion else None,
            "candidate": {"correct_milli": candidate},
        }
        pairs = {"base": pair, "champion": pair if champion else None}
        items = digest_of((spec.run, "items"))
        digests = dict.fromkeys((*NAMED, "base_weights", "champion_weights"), items)
        found = {"metric": "assumed", "n": 200, "items_digest": items, "digests": digests}
        return {**found, "subjects": subjects, "pairs": pairs}

    def _lose(self, node: str) -> None:
        """All processes of the node end now; nobody can say so before it is back."""
        for name in [name for name, (_, nodes) in self._alive.items() if node in nodes]:
            since, _ = self._alive.pop(name)
            self._unreported.setdefault(node, []).append((name, WorkUsage(wall_us=self.now_us - since)))

    def _report_lost(self, node: str) -> None:
        for name, usage in self._unreported.pop(node, []):
            job = self.state.jobs.get(name)
            if job is None:
                self.send(events.ReplicaExited(self.now_us, name, "its node was lost", usage))
            else:
                lost = events.JobExited(self.now_us, name, job.attempt, 137, None, "its node was lost", usage)
                self.send(lost)
