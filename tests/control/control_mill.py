"""A hand-driven controller for scenarios: tell it events, look at its state and at what it asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tokenmill.control.core import step
from tokenmill.control.index import index_state
from tokenmill.control.state import EMPTY, State
from tokenmill.control.table import table_of
from tokenmill.control.told import told
from tokenmill.domain import events as ev
from tokenmill.domain.effects import Effect, StartJob, StartReplica
from tokenmill.domain.factory import (
    Accelerator,
    Deployment,
    Factory,
    Line,
    Model,
    Node,
    Project,
    Resources,
    Site,
    Station,
    Tenant,
)
from tokenmill.domain.table import AliasEntry
from tokenmill.domain.work import Alias, Imported, JobResult, Replica, ReplicaStatus

T = TypeVar("T")
SECOND = 1_000_000
GB = 1 << 30
SMALL = Resources(cpu_millis=1000, memory_bytes=GB)
GPU = Resources(cpu_millis=1000, memory_bytes=GB, accelerators=1)


@dataclass
class Mill:
    """``now`` is added to every event; ``asked`` are the effects of the last one, ``said`` its decisions."""

    state: State = EMPTY
    now: int = 1_800_000_000 * SECOND
    asked: tuple[Effect, ...] = ()
    said: tuple[str, ...] = ()
    log: list[Effect] = field(default_factory=list)

    def tell(self, kind: Callable[..., ev.Event], *args: Any, **named: Any) -> State:
        before, event = self.state, kind(self.now, *args, **named)
        self.state, self.asked = step(before, event)
        self.log += self.asked
        self.said = told(before, event, self.state, self.asked) if self.state is not before else ()
        s = self.state
        assert s.index == index_state(
            s.factory, s.nodes, s.leases, s.replicas, s.jobs, s.runs, s.tunings, s.draws
        )
        assert s.table == table_of(s)
        return s

    def of(self, kind: type[T]) -> list[T]:
        """Effects of one kind among those of the last event."""
        return [effect for effect in self.asked if isinstance(effect, kind)]

    def wait(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)
        self.tell(ev.Tick)

    def apply(self, factory: Factory) -> None:
        self.tell(ev.SpecApplied, self.state.version, factory)

    def join(self, name: str = "n0", gpus: int = 0, cpu: int = 4000, site: str = "here") -> None:
        cards = tuple(Accelerator(f"{name}/{i}", "h200", 141 * GB) for i in range(gpus))
        self.tell(ev.NodeJoined, Node(name, site, "", "", cpu, 16 * GB, cards))

    def bring(self, model: str = "m", digest: str = "sha256:aa", error: str = "") -> None:
        self.tell(ev.ModelImported, Imported(model, digest, 1, "gguf", error))

    def up(self, name: str) -> None:
        self.tell(ev.ReplicaStarted, name, "127.0.0.1:4000")
        self.tell(ev.ReplicaReady, name)

    def up_all(self) -> None:
        for name in self.named(ReplicaStatus.STARTING):
            self.up(name)

    def named(self, status: ReplicaStatus, deployment: str = "") -> list[str]:
        found: list[Replica] = [r for r in self.state.replicas.values() if r.status is status]
        return sorted(r.id for r in found if deployment in ("", r.deployment))

    def alias(self, name: str = "chat") -> Alias:
        return self.state.aliases[name]

    def entry(self, name: str = "chat") -> AliasEntry:
        return next(entry for entry in self.state.table.aliases if entry.name == name)

    def started_jobs(self) -> list[StartJob]:
        return [effect for effect in self.log if isinstance(effect, StartJob)]

    def started_replicas(self) -> list[StartReplica]:
        return [effect for effect in self.log if isinstance(effect, StartReplica)]

    def finish(self, job: StartJob, result: JobResult | None = None, code: int = 0) -> None:
        self.tell(ev.JobExited, job.job, job.attempt, code, result)


def factory(*deployments: Deployment, **named: Any) -> Factory:
    stations = (
        Station("intake", "intake", resources=SMALL),
        Station("tune", "tune", ("intake",), resources=SMALL),
        Station("evaluate", "evaluate", ("tune",), resources=SMALL),
        Station("gate", "gate", ("evaluate",), {"against": "both", "min_items": 30}),
        Station("pack", "pack", ("gate",), resources=SMALL),
    )
    values: dict[str, Any] = {
        "name": "mill",
        "sites": (Site("here", "EU"), Site("there", "US")),
        "tenants": (Tenant("a", (Project("p"),)), Tenant("b", (Project("p"),))),
        "models": (Model("m", "package:m"), Model("m2", "package:m2")),
        "lines": (Line("tickets", "a", "p", "m", stations),),
        "deployments": deployments,
        **named,
    }
    return Factory(**values)


def chat(**named: Any) -> Deployment:
    return Deployment(**{"name": "chat", "model": "m", "resources": SMALL, **named})
