"""The loop over a real store and a floor that only writes down: order, refusals, outages, fencing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tokenmill.control.core import replay
from tokenmill.control.snapshot import dump
from tokenmill.control.state import EMPTY, State
from tokenmill.domain.effects import Effect, ImportModel, PublishTable, StartJob, StartReplica
from tokenmill.domain.errors import ConflictError, NotFoundError, NotLeaderError, ResourceError, StoreError
from tokenmill.domain.events import (
    ClockSet,
    Event,
    JobExited,
    JobSubmitted,
    ModelImported,
    SpecApplied,
)
from tokenmill.domain.factory import Deployment, Factory, Model, Node, Project, Resources, Site, Tenant
from tokenmill.domain.work import Imported, JobSpec, WorkUsage
from tokenmill.floor.books import Books
from tokenmill.floor.inbox import RuntimeOptions
from tokenmill.floor.load import LoadWatch
from tokenmill.floor.ports import Current, Report
from tokenmill.floor.runtime import Runtime
from tokenmill.store.opening import Store, open_store

FACTORY = Factory(
    name="f",
    sites=(Site("here"),),
    tenants=(Tenant("acme", (Project("default"),)),),
    models=(Model("smol", "package:smol"),),
    deployments=(Deployment("smol", model="smol", resources=Resources(cpu_millis=1000)),),
)
DIGEST = "sha256:" + "0" * 64


class Account:
    """Nobody owes anything."""

    def refresh(self) -> None: ...
    def owed(self) -> Mapping[str, int]:
        return {}

    def ended(self) -> frozenset[str]:
        return frozenset()

    def forget_ended(self) -> None: ...
    def take(self, amounts: Mapping[str, int]) -> None: ...
    def give_back(self, amounts: Mapping[str, int]) -> None: ...
    def source(self) -> str:
        return "none"

    def watts(self) -> float:
        return 0.0


class PaperFloor:
    """Writes down what it is told to do."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.effects: list[Effect] = []
        self.journalled_at: list[int] = []  # the journal's last event when each effect came
        self.adopted: list[State] = []
        self.closed: list[bool] = []
        self.report: Report | None = None

    async def start(self, report: Report, current: Current) -> None:
        self.report = report

    async def adopt(self, state: State) -> None:
        self.adopted.append(state)

    async def carry_out(self, effect: Effect) -> None:
        self.effects.append(effect)
        self.journalled_at.append(self.store.journal.last_seq())

    def inventory(self, factory: Factory) -> tuple[Node, ...]:
        return (Node("local", "here", cpu_millis=4000, memory_bytes=10**10),)

    def energy(self) -> Account:
        return Account()

    def progress(self) -> Mapping[str, Mapping[str, Any]]:
        return {}

    def url(self) -> str:
        return ""

    async def close(self, stop_all: bool) -> None:
        self.closed.append(stop_all)

    def told(self, kind: type) -> list[Any]:
        return [effect for effect in self.effects if isinstance(effect, kind)]


class HastyFloor(PaperFloor):
    """What it adopts has ended, and it says so while it is still told what is outstanding."""

    told_of_end: asyncio.Task[None] | None = None

    async def carry_out(self, effect: Effect) -> None:
        await super().carry_out(effect)
        if self.adopted and self.told_of_end is None:
            assert self.report is not None
            ended = JobExited(1_900_000_000_000_000, "job-1", 1, 0, None, "", WorkUsage())
            self.told_of_end = asyncio.create_task(self.report(ended))
            await asyncio.wait({self.told_of_end}, timeout=0.3)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path}/t.db")
    yield opened
    opened.close()


class Bench:
    """A runtime with a clock that only moves when it is read."""

    def __init__(
        self, store: Store, folder: Path, floor: type[PaperFloor] = PaperFloor, **options: Any
    ) -> None:
        self.now = 1_800_000_000_000_000
        self.floor = floor(store)
        books = Books(store.ledger, folder / "spool", Account())
        watch = LoadWatch(folder)
        options = {"holder": "test", **options}
        self.runtime = Runtime(store, self.floor, books, watch, self.clock, RuntimeOptions(**options))

    def clock(self) -> int:
        self.now += 1
        return self.now


def lead(bench: Bench, test: Callable[[], Awaitable[None]], *first: Event) -> None:
    """Run ``test`` while the runtime leads, then stop it cleanly."""

    async def main() -> None:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            group.create_task(bench.runtime.run(first))
            await bench.runtime.ready.wait()
            try:
                await test()
            finally:
                bench.runtime.stop()

    asyncio.run(main())


def submitted(bench: Bench, job: str = "job-1", tenant: str = "acme") -> JobSubmitted:
    return JobSubmitted(
        bench.clock(), job, JobSpec("command", tenant, "default", ("x",), resources=Resources(1))
    )


def applied() -> SpecApplied:
    return SpecApplied(1, 0, FACTORY)


def test_effects_come_after_their_events_and_a_restart_knows_everything(tmp_path: Path, store: Store) -> None:
    bench = Bench(store, tmp_path)

    async def test() -> None:
        assert bench.floor.told(ImportModel) == [ImportModel(FACTORY.models[0])]
        seq = bench.runtime.seq
        await bench.floor.report(ModelImported(bench.clock(), Imported("smol", DIGEST, 5, "gguf")))
        await bench.runtime.submit(submitted(bench))
        assert bench.floor.told(StartReplica)
        started = bench.floor.effects.index(bench.floor.told(StartReplica)[0])
        assert bench.floor.journalled_at[started] > seq

    lead(bench, test, applied())
    assert bench.floor.closed == [True]
    assert store.leader.view().holder == ""
    state, _ = replay(EMPTY, (event for _, event in store.journal.replay()))
    assert dump(state) == dump(bench.runtime.state)

    again = Bench(store, tmp_path)

    async def nothing() -> None:
        pass

    lead(again, nothing)
    assert dump(again.floor.adopted[0]) | {"epoch": 0} == dump(state) | {"epoch": 0}
    assert [e.replica for e in again.floor.told(StartReplica)] == ["r-000001"]
    assert [e.job for e in again.floor.told(StartJob)] == ["job-1"]
    assert again.floor.told(PublishTable)


def test_what_ended_meanwhile_is_not_started_again(tmp_path: Path, store: Store) -> None:
    bench = Bench(store, tmp_path)

    async def test() -> None:
        await bench.floor.report(ModelImported(bench.clock(), Imported("smol", DIGEST, 5, "gguf")))
        await bench.runtime.submit(submitted(bench))

    lead(bench, test, applied())
    again = Bench(store, tmp_path, HastyFloor)

    async def ended() -> None:
        assert isinstance(again.floor, HastyFloor)
        assert again.floor.told_of_end is not None
        await again.floor.told_of_end

    lead(again, ended)
    (exited,) = [seq for seq, event in store.journal.read() if isinstance(event, JobExited)]
    started = zip(again.floor.effects, again.floor.journalled_at, strict=True)
    assert [seq < exited for effect, seq in started if isinstance(effect, StartJob)] == [True]


def test_a_refused_event_is_told_and_not_journalled(tmp_path: Path, store: Store) -> None:
    bench = Bench(store, tmp_path)

    async def test() -> None:
        with pytest.raises(ConflictError):
            await bench.runtime.submit(applied())
        with pytest.raises(NotFoundError):
            await bench.runtime.submit(submitted(bench, tenant="nobody"))

    lead(bench, test, applied())
    kinds = [type(event) for _, event in store.journal.read()]
    assert kinds.count(SpecApplied) == 1
    assert JobSubmitted not in kinds


def test_while_the_store_is_away_nothing_is_done_and_nothing_is_lost(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(store, tmp_path)
    append = store.journal.append
    failures = []

    def flaky(events: Any, epoch: int, decided: Any) -> int:
        if len(failures) < 3:
            failures.append(len(bench.floor.effects))
            if len(failures) == 2:
                append(events, epoch, decided)  # written, but the answer is lost
            raise StoreError("the database server does not answer")
        return append(events, epoch, decided)

    async def test() -> None:
        # Behind this one, everything that the start brought is journalled.
        await bench.runtime.submit(submitted(bench, "job-0"))
        before = bench.runtime.seq
        monkeypatch.setattr(store.journal, "append", flaky)
        done = asyncio.create_task(bench.runtime.submit(submitted(bench)))
        while len(failures) < 2:
            await asyncio.sleep(0)
        assert bench.runtime.troubles["store"] == "the database server does not answer"
        await done
        assert [type(e) for _, e in store.journal.read(before)] == [JobSubmitted]
        assert store.journal.decisions(before + 1, before + 1) == {before + 1: ("job job-1 starts on local",)}
        assert len(set(failures)) == 1
        await bench.runtime.submit(submitted(bench, "job-2"))
        assert [e.job for e in bench.floor.told(StartJob)][:2] == ["job-0", "job-1"]
        assert "store" not in bench.runtime.troubles

    lead(bench, test, applied())


def test_too_many_waiting_events_are_refused(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(store, tmp_path, queue_events=10)

    async def test() -> None:
        def away(*_: object) -> int:
            raise StoreError("away")

        monkeypatch.setattr(store.journal, "append", away)

        def job(n: int) -> JobSubmitted:
            return submitted(bench, f"job-{n}")

        tasks = [asyncio.create_task(bench.runtime.submit(job(n))) for n in range(40)]
        while "store" not in bench.runtime.troubles:
            await asyncio.sleep(0)
        tasks += [asyncio.create_task(bench.runtime.submit(job(n))) for n in range(40, 60)]
        await asyncio.sleep(0)
        refused = [task for task in tasks if task.done()]
        assert len(refused) >= 20
        for task in refused:
            with pytest.raises(ResourceError, match="wait for the journal"):
                task.result()
        monkeypatch.undo()
        kept = [task for task in tasks if task not in refused]
        await asyncio.gather(*kept)
        assert len(bench.runtime.state.jobs) == len(kept) > 0

    lead(bench, test, applied())


def test_a_clock_that_was_set_is_told_before_what_happens_next(tmp_path: Path, store: Store) -> None:
    set_us = 0
    bench = Bench(store, tmp_path)
    bench = Bench(store, tmp_path, steady_us=lambda: bench.now - set_us)
    hour_us = 3_600_000_000

    async def test() -> None:
        nonlocal set_us
        await bench.runtime.submit(submitted(bench))
        started_us = bench.runtime.state.jobs["job-1"].started_us
        bench.now += hour_us
        set_us += hour_us
        await bench.runtime.submit(submitted(bench, "job-2"))
        found = [event for _, event in store.journal.read() if isinstance(event, ClockSet | JobSubmitted)]
        assert [type(event) for event in found] == [JobSubmitted, ClockSet, JobSubmitted]
        assert abs(bench.runtime.state.jobs["job-1"].started_us - started_us - hour_us) < 10
        assert bench.runtime.state.jobs["job-2"].submitted_us == found[2].at_us

    lead(bench, test, applied())


def test_a_clock_that_is_behind_the_journal_is_told_at_the_start(tmp_path: Path, store: Store) -> None:
    bench = Bench(store, tmp_path)

    async def test() -> None:
        await bench.runtime.submit(submitted(bench))

    lead(bench, test, applied())
    started_us = bench.runtime.state.jobs["job-1"].started_us
    after = Bench(store, tmp_path)
    after.now -= 3_600_000_000

    async def nothing() -> None:
        pass

    lead(after, nothing)
    found = [event.by_us for _, event in store.journal.read() if isinstance(event, ClockSet)]
    assert len(found) == 1
    assert abs(found[0] + 3_600_000_000) < 1000
    assert after.runtime.state.jobs["job-1"].started_us == started_us + found[0]


def test_who_asks_while_the_store_stays_away_is_told_what_became_of_it(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(store, tmp_path)
    asked, back = threading.Event(), threading.Event()
    append = store.journal.append

    def slow(events: Any, epoch: int, decided: Any) -> int:
        if any(isinstance(event, JobSubmitted) for event in events):
            asked.set()
            assert back.wait(20)
        return append(events, epoch, decided)

    async def time_is_up(_waiting: object, timeout: float) -> None:
        assert timeout == 20
        while not asked.is_set():  # the store has it, and does not answer
            await asyncio.sleep(0)

    async def test() -> None:
        monkeypatch.setattr(store.journal, "append", slow)
        monkeypatch.setattr(asyncio, "wait", time_is_up)
        with pytest.raises(ResourceError, match="may still be done"):
            await bench.runtime.submit(submitted(bench, "taken"))
        with pytest.raises(ResourceError, match="nothing was done"):
            await bench.runtime.submit(submitted(bench, "withdrawn"))
        back.set()
        await bench.floor.report(ModelImported(1, Imported("smol", DIGEST, 1, "gguf")))
        told = [event.job for _, event in store.journal.read() if isinstance(event, JobSubmitted)]
        assert told == ["taken"] == list(bench.runtime.state.jobs)

    lead(bench, test, applied())


def test_who_lost_the_lease_stops_at_once(tmp_path: Path, store: Store) -> None:
    bench = Bench(store, tmp_path)
    refused = []

    async def test() -> None:
        store.leader.release(bench.runtime.epoch)
        store.leader.acquire("another", 10_000_000, bench.clock())
        count = len(bench.floor.effects)
        event = submitted(bench)
        waiting = asyncio.create_task(bench.runtime.submit(event))
        waiting.add_done_callback(lambda task: refused.append((task.exception(), count)))
        await asyncio.Event().wait()

    with pytest.raises(BaseExceptionGroup) as caught:
        lead(bench, test, applied())
    assert caught.group_contains(NotLeaderError)
    error, effects_before = refused[0]
    assert isinstance(error, NotLeaderError)
    assert len(bench.floor.effects) == effects_before
    assert bench.floor.closed == []
    assert store.leader.view().holder == "another"


def test_a_charge_that_a_crash_swallowed_is_posted_at_the_next_start(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(store, tmp_path)

    async def test() -> None:
        event = submitted(bench)
        await bench.runtime.submit(event)
        job = bench.floor.told(StartJob)[0]
        usage = WorkUsage(cpu_us=77, wall_us=5)
        monkeypatch.setattr(Books, "charge", lambda *_: True)  # the crash
        monkeypatch.setattr(store.journal, "save_snapshot", lambda *_: None)
        await bench.floor.report(JobExited(bench.clock(), "job-1", job.attempt, 0, None, "", usage))

    def charged() -> int:
        return sum(row.cpu_us for row in store.ledger.usage(("tenant",)) if row.tenant == "acme")

    lead(bench, test, applied())
    monkeypatch.undo()
    assert charged() == 0

    async def nothing() -> None:
        pass

    lead(Bench(store, tmp_path), nothing)
    assert charged() == 77
    lead(Bench(store, tmp_path), nothing)
    assert charged() == 77
