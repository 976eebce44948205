"""A whole factory over time: the live control plane at epochs, the compiled floor between them.

At every epoch the control core (``control.step``, in ``FactoryWorld``) hears what became of jobs, nodes
and load and decides as it would live: how many replicas, where they and the jobs' gangs go, who is
preempted. Between two epochs its last table routes the requests, as a gateway does. Serving and training
share the floor and its power.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from tokenmill.control.nodes import all_joined
from tokenmill.control.state import EMPTY, State
from tokenmill.domain import events
from tokenmill.domain.errors import DataError
from tokenmill.domain.factory import Factory
from tokenmill.domain.outcomes import Answers
from tokenmill.domain.work import JobSpec, Replica, ReplicaStatus
from tokenmill.twin import floor_arrays as fa
from tokenmill.twin.day_power import Power, training_w, unheld_w
from tokenmill.twin.day_series import Minute, Recorder
from tokenmill.twin.demand import generator, merged, within_context
from tokenmill.twin.factory_world import FactoryWorld
from tokenmill.twin.faults import Fault
from tokenmill.twin.fleet import Fleet
from tokenmill.twin.floor_arrays import Array
from tokenmill.twin.step_table import StepTable
from tokenmill.twin.training import Training
from tokenmill.twin.world import Timings

SETTLE_US = 3_600_000_000
SERVING = (ReplicaStatus.READY, ReplicaStatus.DRAINING)
CAP_MARGIN = 0.9
"""Clocks go up again below this part of the power cap, and down above the cap itself."""


class Arrivals(Protocol):
    """Requests for one deployment, window by window: ``demand.Demand``, or a trace (``replay.Replay``)."""

    @property
    def alias(self) -> int: ...

    def window(self, seed: int, start_s: float, end_s: float) -> Array: ...


@dataclass(frozen=True, slots=True)
class DayJob:
    """A training job: when it is submitted, what it asks, and its work."""

    id: str
    at_s: float
    spec: JobSpec
    training: Training


@dataclass(slots=True)
class FactoryDay:
    """``engines`` has for each deployment of ``factory`` its engine at falling clocks, all as many.

    ``demands`` go to the deployments in order, by ``Demand.alias``. ``factory`` names its nodes. ``targets``
    are (TTFT, TPOT) seconds by deployment, ``contexts`` the most tokens of a request where they are stated;
    ``units`` the prefix blocks that traces name.
    """

    factory: Factory
    engines: Sequence[Sequence[StepTable]]
    demands: Sequence[Arrivals]
    jobs: Sequence[DayJob] = ()
    faults: Sequence[Fault] = ()
    power: Power = Power()
    seed: int = 1
    epoch_s: float = 10.0
    router: str = "two-choices"
    timings: Timings = Timings(load_us=60_000_000, import_us=1_000_000)
    targets: Sequence[tuple[float, float]] = ()
    contexts: Sequence[int] = ()
    units: Array | None = None
    world: FactoryWorld = field(init=False)
    fleet: Fleet = field(init=False)
    series: list[Minute] = field(default_factory=list)
    offered: Array = field(init=False)  # requests by deployment
    too_long: Array = field(init=False)  # of those, what the context is too short for
    broken: int = 0
    joules: float = 0.0
    _numbers: dict[str, int] = field(default_factory=dict)  # replica -> its number in the fleet
    _free: list[int] = field(default_factory=list)
    _again: list[Array] = field(default_factory=list)
    _followed: tuple[State, int] = (EMPTY, -1)
    _counted: tuple[State, tuple[str, ...], float] = (EMPTY, (), 0.0)  # watts beside serving
    _clock: int = 0
    _start_us: int = 0
    _watts: float = 0.0
    _recorder: Recorder = field(init=False)
    _level: Array = field(init=False)  # by replica's number, its engine at full clock
    _used: float = 0.0
    _refused: dict[int, int] = field(default_factory=dict)  # by alias, up to the last report
    _ended: dict[int, tuple[int, int]] = field(default_factory=dict)  # answers and missed ones, likewise
    _answers: dict[int, Answers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Bring the factory up: its replicas are ready when the day begins."""
        aliases = len(self.factory.deployments)
        if not aliases or max(demand.alias for demand in self.demands) >= aliases:
            raise DataError("traffic for a deployment that is not there", expected=f"0 to {aliases - 1}")
        most = sum(max(d.replicas, d.max_replicas) for d in self.factory.deployments)
        numbers = most + most // 4 + 8  # drained ones finish while others start
        if len(self.engines) != aliases or len({len(one) for one in self.engines}) != 1:
            raise DataError(
                f"engines for {len(self.engines)} deployments", expected=f"{aliases}, of equal clocks each"
            )
        tables = [table for engine in self.engines for table in engine]
        self.fleet = Fleet(
            tables, [0] * numbers, [self.router] * aliases, targets=self.targets, units=self.units
        )
        self._recorder = Recorder(self.fleet)
        self._level = np.zeros(numbers, np.int64)
        self.offered, self.too_long = np.zeros(aliases, np.int64), np.zeros(aliases, np.int64)
        self._free = list(range(numbers - 1, -1, -1))
        self.world = world = FactoryWorld(EMPTY, self.timings, busy=self._is_busy)
        world.training = {job.id: job.training for job in self.jobs}
        world.send(events.ControllerStarted(0, 1))
        world.state = all_joined(world.state, self.factory.nodes, 0)
        world.send(events.SpecApplied(0, 0, self.factory, "rehearsal"))
        least = sum(d.replicas for d in self.factory.deployments)
        world.run(SETTLE_US, lambda state: _ready(state.replicas.values()) >= least)
        world.log.clear()
        self._start_us = world.now_us
        for job in self.jobs:
            at_us = self._us(job.at_s)
            world.at(at_us, events.JobSubmitted(at_us, job.id, job.spec))
        world.inject(self.faults, self._start_us)

    def run(self, seconds: float, progress: Callable[[float], None] = lambda _: None) -> None:
        """Go through ``seconds``. ``progress`` hears the time reached after every epoch."""
        at_s, end_s = 0.0, min(self.epoch_s, seconds)
        base = self._totals()
        with ThreadPoolExecutor(1) as other_core:  # makes the requests of the next epoch
            coming = other_core.submit(self._arrivals, at_s, end_s)
            while at_s < seconds:
                self.world.run(self._us(at_s))
                self.world.end_drained()
                self._follow(at_s)
                requests = coming.result()
                next_s = min(end_s + self.epoch_s, seconds)
                coming = other_core.submit(self._arrivals, end_s, next_s)
                self._serve(at_s, end_s, requests)
                self._meter(at_s, end_s)
                self._report(end_s)
                if int(end_s // 60) > int(at_s // 60) or end_s >= seconds:
                    base = self._minute(end_s, base)
                at_s, end_s = end_s, next_s
                progress(at_s)
        self.fleet.check()

    def digest(self) -> str:
        """Of everything that came out; the same for the same seed."""
        floor = self.fleet.floor
        parts = (floor.counts.tobytes(), floor.histograms.tobytes(), floor.replicas.tobytes())
        whole = b"".join(parts) + repr((self.series, self.world.log, self.broken, self.joules)).encode()
        return hashlib.sha256(whole).hexdigest()

    def accelerators(self) -> int:
        """Accelerators that training jobs hold now."""
        jobs = self.world.state.jobs
        specs = [jobs[name].spec for name in self.world.running() if name in jobs]
        return sum(spec.workers * spec.resources.accelerators for spec in specs)

    def _us(self, at_s: float) -> int:
        return self._start_us + round(at_s * 1e6)

    def _is_busy(self, replica: str) -> bool:
        number = self._numbers.get(replica)
        return number is not None and bool(self.fleet.outstanding()[number] > 0)

    def _follow(self, at_s: float) -> None:
        """Let the floor be what the control plane made of it."""
        world = self.world
        replicas, (followed, draining) = world.state.replicas, self._followed
        if replicas is followed.replicas and draining == len(world.draining) and not world.lost:
            return
        self._followed = (world.state, len(world.draining))
        for name in world.lost:
            if name in self._numbers:
                self._drop(name, at_s)
        world.lost.clear()
        for name in sorted(set(self._numbers) - set(replicas)):
            self._drop(name, at_s)
        pools: dict[str, list[int]] = {d.name: [] for d in self.factory.deployments}
        levels = {d.name: alias * len(self.engines[0]) for alias, d in enumerate(self.factory.deployments)}
        for name, replica in sorted(replicas.items()):
            if (
                replica.status is ReplicaStatus.READY
                and name not in self._numbers
                and name not in world.draining
            ):
                number = self._free.pop()
                self._numbers[name] = number
                state = self.fleet.floor.replicas[number]
                self._level[number] = levels[replica.deployment]
                state["now"] = max(float(state["now"]), at_s)
                state["engine"] = self._level[number] + self._clock
                state["quiet"] = 0.0
            if replica.status is ReplicaStatus.READY and name in self._numbers:
                pools[replica.deployment].append(self._numbers[name])
            elif replica.status not in SERVING and name in self._numbers:
                self._drop(name, at_s)
        for alias, deployment in enumerate(self.factory.deployments):
            self.fleet.pool(alias, sorted(pools[deployment.name]))

    def _drop(self, name: str, at_s: float) -> None:
        """A replica is gone: what waited goes elsewhere, what had begun to answer is broken."""
        number = self._numbers.pop(name)
        again, broken = self.fleet.fail(number, at_s)
        self._again.append(again)
        self.broken += broken
        self._free.append(number)

    def admitted(self, alias: int, requests: Array) -> Array:
        """Those that the context of their deployment takes, as its gateway would."""
        return within_context(requests, self.contexts[alias]) if self.contexts else requests

    def _arrivals(self, at_s: float, end_s: float) -> tuple[Array, list[tuple[int, int]]]:
        """The requests of an epoch, in order of time; how many each demand makes, and how many of those are
        too long. It changes nothing."""
        if end_s <= at_s:
            return np.zeros(0, fa.REQUEST), [(0, 0)] * len(self.demands)
        made = [demand.window(self.seed, at_s, end_s) for demand in self.demands]
        kept = [self.admitted(demand.alias, one) for demand, one in zip(self.demands, made, strict=True)]
        return merged(kept), [(len(one), len(one) - len(fit)) for one, fit in zip(made, kept, strict=True)]

    def _serve(self, at_s: float, end_s: float, arrivals: tuple[Array, list[tuple[int, int]]]) -> None:
        requests, counts = arrivals
        for demand, (count, long) in zip(self.demands, counts, strict=True):
            self._recorder.offered[demand.alias] += count - long
            self.offered[demand.alias] += count
            self.too_long[demand.alias] += long
        again = [part for part in self._again if len(part)]
        if again:
            back = np.concatenate(again)
            self._again = []
            back["at"] = at_s
            draw = generator(self.seed, "again", at_s)
            for name in ("draw", "draw2"):
                back[name] = draw.integers(0, 2**31, len(back))
            requests = np.concatenate([back, requests])
        self.fleet.send(requests)
        self.fleet.advance(end_s)

    def _meter(self, at_s: float, end_s: float) -> None:
        """Energy of the epoch, and the clock of the next one."""
        used = self.fleet.joules()
        serving = sorted(self._numbers.values())
        idle = float(self.fleet.idle_w()[serving].sum()) if serving else 0.0
        span = end_s - at_s
        self._watts = ((used - self._used) / span + idle + self._beside_w()) * self.power.pue
        self._used = used
        self.joules += self._watts * span
        level = self._clock
        if self.power.cap_w and self._watts > self.power.cap_w:
            level = min(level + 1, len(self.engines[0]) - 1)
        elif self._watts < CAP_MARGIN * self.power.cap_w:
            level = max(level - 1, 0)
        if level != self._clock:
            self._clock = level
            self.fleet.clock(self._level + level)

    def _beside_w(self) -> float:
        """Watts of what trains and of what nothing holds, counted when nodes, leases or jobs have changed."""
        state, running = self.world.state, tuple(self.world.running())
        seen, trained, watts = self._counted
        if state.nodes is not seen.nodes or state.leases is not seen.leases or running != trained:
            watts = unheld_w(self.power, state) + training_w(self.power, state, running)
        self._counted = (state, running, watts)
        return watts

    def _report(self, end_s: float) -> None:
        """Tell the control plane the load of each deployment, as the gateway does."""
        outstanding = self.fleet.outstanding()
        refused = self.fleet.floor.refused
        now_us = self._us(end_s)
        self.world.now_us = max(self.world.now_us, now_us)
        for alias, deployment in enumerate(self.factory.deployments):
            pool = self.fleet.pools[alias, : self.fleet.sizes[alias]]
            load = int(outstanding[pool].sum())
            turned = int(refused[alias]) - self._refused.get(alias, 0)
            self._refused[alias] = int(refused[alias])
            full, asleep = (turned, 0) if len(pool) else (0, turned)
            wait_us = round(self.fleet.longest_wait_s(alias, end_s) * 1e6)
            found = self._answered(alias, now_us)
            self.world.send(events.LoadReported(now_us, deployment.name, load, full, asleep, wait_us, *found))

    def _answered(self, alias: int, now_us: int) -> tuple[int, int]:
        """Answers of the last minute, and those of them within the targets."""
        served = self.fleet.floor.served[alias]
        ended, missed = int(served[fa.ENDED]), int(served[fa.LATE] + served[fa.SLOW])
        before = self._ended.get(alias, (0, 0))
        self._ended[alias] = (ended, missed)
        answers = self._answers.setdefault(alias, Answers())
        more = missed - before[1]
        answers.add(now_us, ended - before[0] - more, more)
        return answers.counts

    def _totals(self) -> tuple[int, int, int, float, float]:
        count = self.fleet.count
        return (count(fa.TAKEN), count(fa.OUTPUT), count(fa.REFUSED), self.joules, 0.0)

    def _minute(
        self, end_s: float, base: tuple[int, int, int, float, float]
    ) -> tuple[int, int, int, float, float]:
        now = (*self._totals()[:4], end_s)
        span = now[4] - base[4]
        state = self.world.state
        jobs = state.jobs.values()
        self.series.append(
            Minute(
                at_s=end_s,
                requests_per_s=(now[0] - base[0]) / span,
                output_per_s=(now[1] - base[1]) / span,
                refused_per_s=(now[2] - base[2]) / span,
                watts=(now[3] - base[3]) / span,
                in_flight=int(self.fleet.outstanding().sum()),
                ready=int(self.fleet.sizes.sum()),
                wanted=sum(memory.wanted for _, memory in sorted(state.scaling.items())),
                training_accelerators=self.accelerators(),
                jobs_waiting=sum(job.status == "pending" for job in jobs),
                nodes_lost=sum(known.lost for known in state.nodes.values()),
                clock=self._clock,
                aliases=self._recorder.minute(span),
            )
        )
        return now


def _ready(replicas: Iterable[Replica]) -> int:
    return sum(replica.status is ReplicaStatus.READY for replica in replicas)
