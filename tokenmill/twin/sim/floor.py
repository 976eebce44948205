"""The simulated floor: it carries out effects, keeps the truth about processes, and reports late or twice."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from tokenmill.control.state import State
from tokenmill.domain import effects as fx
from tokenmill.domain import events as ev
from tokenmill.domain.codec import digest_of
from tokenmill.domain.factory import Node
from tokenmill.domain.work import Imported, JobResult, JobSpec, WorkUsage
from tokenmill.policy.checkpoint import LEAST_US, MOST_US

SECOND = 1_000_000


class Host(Protocol):
    """What a floor asks of the world that it is in."""

    rng: random.Random
    faults: bool
    frailty: float

    def post(self, event: ev.Event, seconds: float) -> None: ...

    def later(self, seconds: float, what: Any) -> None: ...

    def result(self, spec: JobSpec) -> JobResult: ...


def sha(text: str) -> str:
    return digest_of(text)


@dataclass
class Process:
    """One engine or gang on the floor. ``nodes`` and ``accelerators`` are per worker."""

    id: str
    attempt: int
    nodes: tuple[str, ...]
    accelerators: tuple[tuple[str, ...], ...]
    alive: bool = True
    ready: bool = False
    stopping: bool = False
    last: ev.Event | None = None  # its exit, which is said again when asked


@dataclass
class Floor:
    """Carries out effects; keeps the truth. Reports go into ``world.mail``."""

    world: Host
    processes: dict[tuple[str, int], Process] = field(default_factory=dict)
    alive: dict[tuple[str, int], Process] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    slow: set[str] = field(default_factory=set)
    nodes: dict[str, Node] = field(default_factory=dict)
    begun: int = 0

    def carry_out(self, effect: fx.Effect) -> None:
        handler = DO.get(type(effect))
        if handler is not None:
            handler(self, effect)

    def do_import_model(self, effect: fx.ImportModel) -> None:
        rng = self.world.rng
        model = effect.model
        error = "the source does not answer" if rng.random() < 0.1 and self.world.faults else ""
        digest = "" if error else model.digest or sha(model.source)
        found = Imported(model.name, digest, 1, "gguf", error, model.source)
        self.world.post(ev.ModelImported(0, found), rng.uniform(0.1, 5))

    def do_start_replica(self, effect: fx.StartReplica) -> None:
        self._start(
            Process(effect.replica, 0, (effect.node,), (effect.accelerators,)),
            lambda p: self._replica_begun(p),
        )

    def _replica_begun(self, process: Process) -> None:
        rng = self.world.rng
        if self.world.faults and rng.random() < self.world.frailty:
            self.world.later(
                rng.uniform(0.1, 3), lambda: self.exit(process, 7, "it could not load the weights")
            )
            return
        self.world.post(ev.ReplicaStarted(0, process.id, f"10.0.0.1:{rng.randrange(1024, 65000)}"), 0.2)
        process.ready = True
        self.world.post(ev.ReplicaReady(0, process.id), rng.uniform(0.3, 4))

    def do_start_job(self, effect: fx.StartJob) -> None:
        assert len(effect.nodes) == effect.spec.workers
        self._start(
            Process(effect.job, effect.attempt, effect.nodes, effect.accelerators),
            lambda p: self._job_begun(p, effect.spec),
        )

    def _job_begun(self, process: Process, spec: JobSpec) -> None:
        rng = self.world.rng
        self.world.post(ev.JobStarted(0, process.id, process.attempt), 0.2)
        code = 1 if self.world.faults and rng.random() < 0.15 else 0
        seconds = rng.uniform(1, 90)
        result = None if code or spec.kind != "station" else self.world.result(spec)
        self.world.later(seconds, lambda: self.exit(process, code, "" if not code else "it crashed", result))
        if rng.random() < 0.3:
            self.world.later(rng.uniform(1, 30), lambda: self._save(process))
        if len(set(process.nodes)) > 1:
            self.world.later(rng.uniform(1, 5), lambda: self._step(process))

    def _save(self, process: Process) -> None:
        """A trainer keeps a checkpoint, and goes on to the next one."""
        if process.alive and not any(node in self.down for node in process.nodes):
            save_us = round(self.world.rng.uniform(0.01, 20) * SECOND)
            self.world.post(ev.JobSaved(0, process.id, process.attempt, save_us), 0.1)
            self.world.later(self.world.rng.uniform(5, 40), lambda: self._save(process))

    def _step(self, process: Process) -> None:
        """A gang tells how long its workers take, now and then."""
        if process.alive and not any(node in self.down for node in process.nodes):
            found = [(rank, 150) for rank, node in enumerate(process.nodes) if node in self.slow]
            if 2 * len(found) < len(process.nodes) + 1:
                self.world.post(ev.StepsTimed(0, process.id, process.attempt, 100, tuple(found)), 0.1)
            self.world.later(self.world.rng.uniform(2, 12), lambda: self._step(process))

    def do_pace_job(self, effect: fx.PaceJob) -> None:
        assert LEAST_US <= effect.checkpoint_us <= MOST_US

    def _start(self, process: Process, begun: Any) -> None:
        key = (process.id, process.attempt)
        known = self.processes.get(key)
        if known is not None:
            self.repeat(known)
            return
        self.processes[key] = process
        if any(node in self.down for node in process.nodes):
            process.alive = False
            process.last = self.exit_event(process, 1, "a node cannot be reached", None)
            self.world.post(process.last, 0.1)
            return
        self.begun += 1
        self.alive[key] = process
        begun(process)

    def repeat(self, process: Process) -> None:
        """Say again what is known of a process: the adoption of a floor by a new controller."""
        if not process.alive:
            assert process.last is not None
            self.world.post(process.last, 0.05)
        elif process.attempt == 0:
            if process.ready:
                self.world.post(ev.ReplicaStarted(0, process.id, "10.0.0.1:4000"), 0.05)
                self.world.post(ev.ReplicaReady(0, process.id), 0.1)
        else:
            self.world.post(ev.JobStarted(0, process.id, process.attempt), 0.05)

    def do_stop_replica(self, effect: fx.StopReplica) -> None:
        self._stop(effect.replica, 0)

    def do_stop_job(self, effect: fx.StopJob) -> None:
        attempts = [attempt for name, attempt in self.processes if name == effect.job]
        self._stop(effect.job, max(attempts, default=1))

    def _stop(self, name: str, attempt: int) -> None:
        process = self.processes.get((name, attempt))
        if process is None:
            process = Process(name, attempt, (), (), alive=False)
            process.last = self.exit_event(process, 1, "it was never started", None)
            self.processes[(name, attempt)] = process
        if not process.alive:
            self.repeat(process)
            return
        process.stopping = True
        self.world.later(self.world.rng.uniform(0.1, 8), lambda: self.exit(process, 143, "it was stopped"))

    def exit_event(self, process: Process, code: int, reason: str, result: JobResult | None) -> ev.Event:
        usage = WorkUsage(wall_us=5, cpu_us=7, accelerator_us=3, energy_mj=2, energy_source="assumed")
        if process.attempt == 0:
            return ev.ReplicaExited(0, process.id, reason, usage)
        return ev.JobExited(0, process.id, process.attempt, code, result, reason, usage)

    def exit(self, process: Process, code: int, reason: str, result: JobResult | None = None) -> None:
        """A process ends, unless it has, or is on a node that is cut off: then it is only found out later."""
        if not process.alive:
            return
        if any(node in self.down for node in process.nodes):
            self.world.later(30, lambda: self.exit(process, code, reason, result))
            return
        process.alive = False
        del self.alive[process.id, process.attempt]
        process.last = self.exit_event(process, code, reason, result)
        self.world.post(process.last, 0.05)

    def adopt(self, state: State) -> None:
        """What a floor says to a controller that has just started: the truth about all it believes in."""
        for name in sorted(state.index.leases_of):
            replica, job = state.replicas.get(name), state.jobs.get(name)
            process = self.processes.get((name, job.attempt if job else 0))
            if process is not None and (replica is not None or job is not None):
                self.repeat(process)


DO: dict[type, Callable[[Floor, Any], None]] = {
    fx.ImportModel: Floor.do_import_model,
    fx.StartReplica: Floor.do_start_replica,
    fx.StopReplica: Floor.do_stop_replica,
    fx.StartJob: Floor.do_start_job,
    fx.StopJob: Floor.do_stop_job,
    fx.PaceJob: Floor.do_pace_job,
}
"""What a floor of processes has to do. Tables and records are for others to take."""
