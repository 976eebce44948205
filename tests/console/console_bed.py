"""A running controller without processes: the real runtime, store and console over a simulated floor.

The floor keeps no time: an import, a replica or a job ends as soon as it is asked for, unless its kind is
held back. What it reports has the form of what the real stations report.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from starlette.testclient import TestClient

from tokenmill.console.api import make_app
from tokenmill.console.context import ApiContext, Sample
from tokenmill.control.state import State
from tokenmill.domain import effects, events
from tokenmill.domain.effects import Effect
from tokenmill.domain.factory import Factory, Node
from tokenmill.domain.ledger import Outcome, Posting, Settlement
from tokenmill.domain.work import Imported, JobResult, JobSpec, WorkUsage
from tokenmill.floor.books import Books
from tokenmill.floor.load import LoadWatch
from tokenmill.floor.ports import Report
from tokenmill.floor.runtime import Runtime, RuntimeOptions
from tokenmill.policy.gate import NAMED
from tokenmill.spec.factory_file import load, template
from tokenmill.spec.paths import Paths
from tokenmill.spec.settings import Settings
from tokenmill.store.opening import Store, open_store

DIGESTS = {name: "sha256:" + char * 64 for name, char in zip(("a", "b", "c", "d", "e"), "12345", strict=True)}
SOURCE = "model: 10 W per busy core + 5 W idle, shared over 2 cores (assumed, not measured)"


def now_us() -> int:
    return time.time_ns() // 1000


class SimAccount:
    """No energy is owed; the power is made up."""

    def refresh(self) -> None: ...

    def owed(self) -> Mapping[str, int]:
        return {}

    def ended(self) -> frozenset[str]:
        return frozenset()

    def forget_ended(self) -> None: ...

    def take(self, amounts: Mapping[str, int]) -> None: ...

    def give_back(self, amounts: Mapping[str, int]) -> None: ...

    def watts(self) -> float:
        return 14.2

    def source(self) -> str:
        return SOURCE


@dataclass
class SimFloor:
    """Implements ``floor.ports.Floor``. ``held`` names station kinds, or "import", that do not end."""

    paths: Paths
    held: set[str] = field(default_factory=set)
    reject: bool = False
    failing: set[str] = field(default_factory=set)
    account: SimAccount = field(default_factory=SimAccount)
    lines: dict[str, dict[str, Any]] = field(default_factory=dict)
    waiting: dict[str, effects.StartJob] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    closed: bool = False

    async def start(self, report: Report, state: Callable[[], State]) -> None:
        del state
        self.report = report

    async def adopt(self, state: State) -> None: ...

    async def carry_out(self, effect: Effect) -> None:
        task = asyncio.create_task(self._do(effect))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _do(self, effect: Effect) -> None:
        match effect:
            case effects.ImportModel(model=model) if "import" not in self.held:
                found = Imported(model.name, DIGESTS["a"], 105_454_432, "gguf", source=model.source)
                await self.report(events.ModelImported(now_us(), found))
            case effects.StartReplica(replica=replica):
                await self.report(events.ReplicaStarted(now_us(), replica, "127.0.0.1:40001"))
                await self.report(events.ReplicaReady(now_us(), replica))
            case effects.StopReplica(replica=replica):
                await self.report(events.ReplicaExited(now_us(), replica, "asked to stop"))
            case effects.StartJob(job=job):
                await self._start(job, effect)
            case effects.StopJob(job=job):
                started = self.waiting.pop(job, None)
                if started is not None:
                    await self.report(events.JobExited(now_us(), job, started.attempt, -15, reason="stopped"))

    async def _start(self, job: str, effect: effects.StartJob) -> None:
        await self.report(events.JobStarted(now_us(), job, effect.attempt))
        kind = str(effect.spec.params.get("kind", effect.spec.kind))
        if kind in self.held:
            self.waiting[job] = effect
            path = self.paths.job_progress(job)
            path.parent.mkdir(parents=True, exist_ok=True)
            for step, loss in loss_curve(48):
                line = {"at_us": now_us(), "done": step, "total": 120, "unit": "steps", "message": ""}
                self.lines[job] = {**line, "metrics": {"loss": loss}}
                with path.open("ab") as file:
                    file.write(msgspec.json.encode(self.lines[job]) + b"\n")
        elif kind in self.failing:
            reason = "row 12 is not JSON (tickets.jsonl:12)"
            await self.report(events.JobExited(now_us(), job, effect.attempt, 10, None, reason))
        else:
            await self.finish(job, effect)

    async def finish(self, job: str, effect: effects.StartJob) -> None:
        seconds = {"tune": 96.0, "evaluate": 31.0}.get(str(effect.spec.params.get("kind")), 1.4)
        usage = WorkUsage(
            int(seconds * 1e6), int(seconds * 1.8e6), 1_400_000_000, 0, int(seconds * 17_900), SOURCE
        )
        result = station_result(effect.spec, self.reject)
        await self.report(events.JobExited(now_us(), job, effect.attempt, 0, result, "", usage))

    def inventory(self, factory: Factory) -> tuple[Node, ...]:
        return (Node("this-machine", site="here", cpu_millis=8000, memory_bytes=16 * 2**30),)

    def energy(self) -> SimAccount:
        return self.account

    def progress(self) -> Mapping[str, Mapping[str, Any]]:
        return self.lines

    def url(self) -> str:
        return ""

    async def close(self, stop_all: bool) -> None:
        self.closed = stop_all
        for task in tuple(self.tasks):
            task.cancel()


def loss_curve(steps: int) -> list[list[float]]:
    return [[i, 0.28 + 2.9 / (1 + i / 5) + 0.05 * ((i * 7919) % 11) / 11] for i in range(1, steps + 1)]


def station_result(spec: JobSpec, reject: bool) -> JobResult:
    """What a station of this kind leaves, in the form of the real ones."""
    kind = str(spec.params.get("kind", ""))
    both, better, worse = (34, 3, 9) if reject else (8, 71, 1)
    pairs = {
        "both": both,
        "neither": 100 - both - better - worse,
        "candidate_only": better,
        "reference_only": worse,
    }
    champion = spec.params.get("champion")
    against = {"both": 60, "neither": 18, "candidate_only": 19, "reference_only": 3} if champion else None
    manifest = "sha256:" + hashlib.sha256(spec.run.encode()).hexdigest()
    shares = {"base": (both + worse) * 10, "candidate": (both + better) * 10}
    made = {
        "intake": JobResult({"rows": DIGESTS["b"]}, {"rows_in": 1200, "bytes": 214_511, "quarantined": 9}),
        "curate": JobResult(
            {"train": DIGESTS["b"], "validation": DIGESTS["c"], "test": DIGESTS["d"], "card": DIGESTS["e"]},
            {
                "rows_in": 1191,
                "kept": 1104,
                "dropped": 87,
                "dropped_by_reason": {
                    "broken_json": 12,
                    "conflict": 6,
                    "duplicate": 41,
                    "near_duplicate": 28,
                },
                "train_rows": 883,
                "validation_rows": 55,
                "test_rows": 166,
            },
        ),
        "tune": JobResult(
            {"adapter_hf": DIGESTS["c"], "adapter_gguf": DIGESTS["d"]},
            {
                "loss_curve": loss_curve(111),
                "tokens": 91_420,
                "tokens_per_s": 952.3,
                "seconds": 96.0,
                "steps": 111,
                "total_steps": 111,
                "stopped_by": "epochs",
                "mfu": 0.3812,
                "peak_tflops": 989.4,
                "peak_memory_bytes": 6_812_000_000,
                "micro_batch": 8,
                "validation_loss_before": 2.913,
                "validation_loss": 0.478,
                "device": "NVIDIA H100 80GB HBM3",
            },
        ),
        "evaluate": JobResult(
            {"predictions": DIGESTS["e"]},
            {"n": 100},
            {
                "metric": "json_fields",
                "n": 100,
                "items_digest": DIGESTS["d"],
                "subjects": {
                    "base": {"correct_milli": shares["base"]},
                    "champion": {"correct_milli": 630} if champion else None,
                    "candidate": {"correct_milli": shares["candidate"]},
                },
                "pairs": {"base": pairs, "champion": against},
                "digests": dict.fromkeys((*NAMED, "base_weights", "champion_weights"), DIGESTS["d"]),
            },
        ),
        "pack": JobResult({"release": manifest}, {}, {"manifest_digest": manifest}),
    }
    return made.get(kind, JobResult())


class Bed:
    """One controller in ``folder``. Use ``opened``."""

    def __init__(self, folder: Path, text: str | None = None) -> None:
        self.file = folder / "factory.yaml"
        self.file.write_text(template() if text is None else text)
        self.factory = load([self.file], {})
        self.settings = Settings()
        self.paths = Paths.of(self.settings, self.file)
        for path in (self.paths.run, self.paths.logs, self.paths.processes, self.paths.spool):
            path.mkdir(parents=True, exist_ok=True)
        self.store: Store = open_store(self.paths.database_url(self.settings))
        self.floor = SimFloor(self.paths)
        books = Books(self.store.ledger, self.paths.spool, self.floor.account)
        options = RuntimeOptions(holder="test")
        watch = LoadWatch(self.paths.run)
        self.runtime = Runtime(self.store, self.floor, books, watch, now_us, options)
        self.stopped = False
        self.context = ApiContext(
            runtime=self.runtime,
            store=self.store,
            settings=self.settings,
            paths=self.paths,
            factory_file=self.file,
            now_us=now_us,
            started_us=now_us(),
            stop=self._stop,
        )
        self.app = make_app(self.context)
        self.client: TestClient

    def _stop(self) -> None:
        self.stopped = True

    @contextlib.contextmanager
    def opened(self) -> Iterator[Bed]:
        with TestClient(self.app, base_url="http://factory.test", follow_redirects=False) as client:
            self.client = client
            assert client.portal is not None
            running = client.portal.start_task_soon(self.runtime.run)
            self.until(lambda: self.runtime.ready.is_set() or running.done())
            if running.done():
                running.result()
            try:
                yield self
            finally:
                client.portal.call(self._end)
                running.result(timeout=60)
        self.store.close()

    async def _end(self) -> None:
        self.runtime.stop()

    def until(self, happened: Any) -> None:
        """Let the loop go on until ``happened()``; at most a minute."""
        assert self.client.portal is not None
        deadline = time.monotonic() + 60
        while not happened():
            assert time.monotonic() < deadline, "it did not happen in a minute"
            self.client.portal.call(asyncio.sleep, 0.002)

    def gateway_is_up(self) -> None:
        body = {
            "host": "127.0.0.1",
            "port": 8400,
            "heartbeat_us": now_us() + 3_600_000_000,
            "table_version": 2**40,  # it knows every table
        }
        self.paths.gateway_file().write_bytes(msgspec.json.encode(body))

    def apply(self) -> None:
        """Apply the bed's factory file and wait until its models are served."""
        self.gateway_is_up()
        body = {"factory": msgspec.to_builtins(self.factory), "base_version": self.runtime.state.version}
        found = self.client.post("/api/apply", json=body)
        assert found.status_code == 200, found.text
        if "import" not in self.floor.held:
            self.until(lambda: self.status()["ready"])

    def status(self) -> dict[str, Any]:
        from tokenmill.console.views import status_view

        return status_view(self.context)

    def run(self, line: str = "desk") -> dict[str, Any]:
        """Start a run and wait for its end, or until a station is held back."""
        found = self.client.post("/api/runs", json={"line": line})
        assert found.status_code == 201, found.text
        name = found.json()["run"]
        self.until(lambda: self.runtime.state.runs[name].status.ended or self.floor.waiting)
        shown: dict[str, Any] = self.client.get(f"/api/runs/{name}").json()
        return shown

    def admin(self) -> str:
        """A new admin key's secret."""
        return str(self.client.post("/api/keys", json={"scope": "admin"}).json()["secret"])

    def settle(self, tenant: str, project: str, alias: str, count: int) -> None:
        """Put ``count`` answered requests into the ledger, as the gateway and the books would."""
        at = now_us()
        settlements, postings = [], []
        for i in range(count):
            name = f"{tenant}-{alias}-{i}-{os.urandom(3).hex()}"
            tokens_in, tokens_out = 31 + i % 17, 22 + i % 9
            settlements.append(
                Settlement(
                    name, at, tenant, project, "key-1", alias, "rel-000001", "r-000001", "chat.completions",
                    Outcome.OK, 200, tokens_in, 8, tokens_out, 0, "engine", 90_000, 700_000,
                )
            )  # fmt: skip
            amounts = (("token.input", tokens_in - 8), ("token.cached", 8), ("token.output", tokens_out))
            for number, (unit, amount) in enumerate(
                (*amounts, ("micros:USD", tokens_out * 3), ("energy_mj", 9100))
            ):
                postings.append(
                    Posting(
                        name, number, at, f"tenant/{tenant}/{project}", f"factory/{alias}", unit, amount,
                        tenant, project, "key-1", alias, "rel-000001", "serve",
                    )
                )  # fmt: skip
        self.store.ledger.settle(
            settlements, postings, "gateway-0.jsonl", self.store.ledger.offset("gateway-0.jsonl")
        )

    def sample(self, count: int = 120) -> None:
        """Fill the throughput's ring buffer with a plausible curve."""
        for i in range(count):
            rate = 38 + 22 * ((i * 37) % 29) / 29 + (30 if 40 < i < 85 else 0)
            self.context.samples.append(Sample(now_us() - (count - i) * 2_000_000, rate, rate / 26))
