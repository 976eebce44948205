"""Gangs of real, small processes: whole or not at all, results, exit codes, adoption."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tokenmill.control.state import EMPTY, State
from tokenmill.domain.effects import StartJob
from tokenmill.domain.events import Event, JobExited, JobStarted
from tokenmill.domain.work import Job, JobSpec, JobStatus
from tokenmill.floor import procfs
from tokenmill.floor.energy import CpuModel, EnergyMeter
from tokenmill.floor.gangs import LOST_CODE, Gangs
from tokenmill.floor.processes import Supervisor
from tokenmill.floor.records import Records
from tokenmill.spec.paths import Paths

pytestmark = pytest.mark.live


def now_us() -> int:
    return time.time_ns() // 1000


class Bench:
    """A supervisor and its gangs over one folder, and the events that they report."""

    def __init__(self, root: Path, mark: str) -> None:
        self.paths = Paths(root)
        self.mark = mark
        self.events: list[Event] = []
        meter = EnergyMeter(CpuModel(10.0, 5.0, 2))
        self.supervisor = Supervisor(Records(self.paths.processes), mark, meter, now_us)
        self.gangs = Gangs(self.supervisor, self.paths, root, self.report, now_us)

    async def report(self, event: Event) -> None:
        self.events.append(event)

    async def exited(self) -> JobExited:
        async with asyncio.timeout(60):
            while True:
                for event in self.events:
                    if isinstance(event, JobExited) and event.job not in self.gangs._tasks:
                        return event  # another attempt can start
                await asyncio.sleep(0.02)

    async def until(self, found: Callable[[], object]) -> None:
        """Wait for what the gangs, or the events that they reported, show."""
        async with asyncio.timeout(60):
            while not found():
                await asyncio.sleep(0.02)

    def ended(self, attempt: int) -> bool:
        return any(isinstance(e, JobExited) and e.attempt == attempt for e in self.events)

    async def leave(self) -> None:
        """Go away as a killed controller does: without a word to the processes."""
        self.gangs.cancel()
        await self.supervisor.close()


@pytest.fixture
def mark() -> Iterator[str]:
    value = uuid.uuid4().hex[:12]
    yield value
    for pid in procfs.marked(value):
        os.kill(pid, signal.SIGKILL)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(90):
            await test()

    asyncio.run(bounded())


def start(script: str, workers: int = 1, kind: str = "command") -> StartJob:
    spec = JobSpec(kind, "acme", "default", ("/bin/sh", "-c", script), workers=workers)
    return StartJob("j-1", 1, spec, ("local",) * workers, ((),) * workers)


def state_with(effect: StartJob, status: JobStatus) -> State:
    job = Job("j-1", effect.spec, status, 1, attempt=1)
    return replace(EMPTY, jobs=EMPTY.jobs.set("j-1", job))


def test_a_gang_starts_whole_with_the_variables_of_torchrun(tmp_path: Path, mark: str) -> None:
    async def test() -> None:
        bench = Bench(tmp_path, mark)
        script = 'echo "$RANK/$WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $TOKENMILL_JOB_ID" > "out-$RANK"'
        bench.gangs.start(start(script, workers=3))
        found = await bench.exited()
        assert (found.code, found.reason) == (0, "")
        lines = [(bench.paths.job("j-1") / f"out-{rank}").read_text().split() for rank in range(3)]
        assert [line[0] for line in lines] == ["0/3", "1/3", "2/3"]
        assert len({line[1] for line in lines}) == 1
        assert {line[2] for line in lines} == {"j-1"}
        assert [type(event) for event in bench.events] == [JobStarted, JobExited]
        assert found.usage.wall_us > 0
        assert list(bench.paths.processes.glob("*")) == []
        await bench.leave()

    run(test)


def test_the_next_attempt_starts_though_the_last_one_is_only_just_told_of(tmp_path: Path, mark: str) -> None:
    """As the runtime does where no room has to be waited for: the start comes before the report returns."""

    async def test() -> None:
        bench = Bench(tmp_path, mark)
        first = start('echo "$TOKENMILL_JOB_ATTEMPT" >> attempts; exit 3')

        async def report(event: Event) -> None:
            bench.events.append(event)
            if isinstance(event, JobExited) and event.attempt == 1:
                bench.gangs.start(first)  # an echo of the attempt that ended starts nothing
                bench.gangs.start(replace(first, attempt=2))

        bench.gangs._report = report
        bench.gangs.start(first)
        await bench.until(lambda: bench.ended(2))
        await bench.until(lambda: not bench.gangs._tasks and not bench.gangs._gangs)
        assert [(type(e), e.attempt) for e in bench.events if isinstance(e, JobStarted | JobExited)] == [
            (JobStarted, 1),
            (JobExited, 1),
            (JobStarted, 2),
            (JobExited, 2),
        ]
        assert (bench.paths.job("j-1") / "attempts").read_text() == "1\n2\n"
        assert list(bench.paths.processes.glob("*")) == []
        await bench.leave()

    run(test)


def test_an_attempt_that_nobody_wants_any_more_gives_way_to_the_next(tmp_path: Path, mark: str) -> None:
    async def test() -> None:
        bench = Bench(tmp_path, mark)
        old = start("sleep 60")
        bench.gangs.start(old)
        await bench.until(lambda: bench.events)
        await bench.leave()
        after = Bench(tmp_path, mark)
        wanted = replace(start("true"), attempt=2)
        state = state_with(wanted, JobStatus.STARTING)
        state = replace(state, jobs=state.jobs.set("j-1", replace(state.jobs["j-1"], attempt=2)))
        after.gangs.adopt(after.supervisor.records.read(), state)
        after.gangs.start(wanted)  # what ``resume`` asks for
        await after.until(lambda: after.ended(2))
        ends = [(e.attempt, e.code) for e in after.events if isinstance(e, JobExited)]
        assert ends[-1] == (2, 0)
        assert ends[0][0] == 1
        await after.leave()

    run(test)


def test_one_failed_worker_ends_the_others(tmp_path: Path, mark: str) -> None:
    async def test() -> None:
        bench = Bench(tmp_path, mark)
        bench.gangs.start(start('[ "$RANK" = 1 ] && { echo broken; exit 7; }; sleep 60', workers=3))
        found = await bench.exited()
        assert found.code == 7
        assert not procfs.marked(mark)
        await bench.leave()

    run(test)


def test_a_gang_that_cannot_start_leaves_nothing(tmp_path: Path, mark: str) -> None:
    """The log folder of the third worker cannot be made, so the first two do not go on."""

    async def test() -> None:
        bench = Bench(tmp_path, mark)
        (bench.paths.logs / "j-1.2.log").mkdir(parents=True)
        bench.gangs.start(start("sleep 60", workers=3))
        found = await bench.exited()
        assert found.code == 13
        assert "j-1.2" in found.reason
        assert not procfs.marked(mark)
        assert list(bench.paths.processes.glob("*")) == []
        await bench.leave()

    run(test)


def test_a_result_is_read_and_an_error_is_told(tmp_path: Path, mark: str) -> None:
    async def test() -> None:
        bench = Bench(tmp_path, mark)
        bench.gangs.start(start('echo \'{"metrics": {"rows": 3}}\' > result.json'))
        found = await bench.exited()
        assert found.result is not None
        assert dict(found.result.metrics) == {"rows": 3}
        bench.events.clear()
        error = json.dumps({"message": "the file is empty", "fix": "Fill it.", "where": "a.csv:1"})
        bench.gangs.start(start(f"echo '{error}' > error.json; exit 10"))
        found = await bench.exited()
        assert (found.code, found.reason) == (10, "a.csv:1: the file is empty. Fill it.")
        assert found.result is None
        await bench.leave()

    run(test)


def test_a_job_whose_own_files_fail_is_told_to_have_ended(tmp_path: Path, mark: str) -> None:
    """Else its run waits for ever: with room again nothing would remember that it ended."""

    async def test() -> None:
        bench = Bench(tmp_path, mark)
        bench.gangs.start(start("while [ ! -e go ]; do sleep 0.05; done"))
        while not any(isinstance(event, JobStarted) for event in bench.events):
            await asyncio.sleep(0.02)
        (bench.paths.job("j-1") / "used-1-0.json").mkdir()  # no sum of what it used can be written
        (bench.paths.job("j-1") / "go").touch()
        assert (await bench.exited()).code == 0
        bench = Bench(tmp_path / "other", mark)
        bench.paths.root.mkdir()
        bench.paths.job("j-1").parent.mkdir(parents=True)
        bench.paths.job("j-1").write_text("a file where its folder should be")
        bench.gangs.start(start("sleep 0.3"))
        assert (await bench.exited()).code == 13

    run(test)


def test_stop_gives_time_and_then_kills(tmp_path: Path, mark: str) -> None:
    async def test() -> None:
        bench = Bench(tmp_path, mark)
        ready = bench.paths.job("j-1") / "ready"
        code = (
            f"import signal,time; signal.signal(15, signal.SIG_IGN); open({str(ready)!r},'w'); time.sleep(60)"
        )
        bench.gangs.start(start(f'exec {sys.executable} -c "{code}"'))
        async with asyncio.timeout(60):
            while not ready.exists():
                await asyncio.sleep(0.02)
        bench.gangs.stop("j-1", 300_000)
        found = await bench.exited()
        assert found.reason == "stopped"
        assert found.code != 0
        assert not procfs.marked(mark)
        await bench.leave()

    run(test)


def test_the_next_controller_adopts_a_gang_and_hears_its_code(tmp_path: Path, mark: str) -> None:
    async def test() -> None:
        bench = Bench(tmp_path, mark)
        effect = start("while [ ! -e go ]; do sleep 0.05; done; exit 5", workers=2)
        bench.gangs.start(effect)
        await bench.until(lambda: bench.events)
        await bench.leave()
        after = Bench(tmp_path, mark)
        after.gangs.adopt(after.supervisor.records.read(), state_with(effect, JobStatus.RUNNING))
        after.gangs.start(effect)  # what ``resume`` asks for: it is there already
        (after.paths.job("j-1") / "go").touch()
        found = await after.exited()
        assert (found.code, found.attempt) == (5, 1)
        assert not procfs.marked(mark)
        assert list(after.paths.processes.glob("*")) == []
        await after.leave()

    run(test)


def test_what_nobody_wants_is_ended_and_what_is_gone_is_told(tmp_path: Path, mark: str) -> None:
    async def test() -> None:
        bench = Bench(tmp_path, mark)
        effect = start("sleep 60")
        bench.gangs.start(effect)
        await bench.until(lambda: bench.events)
        await bench.leave()
        after = Bench(tmp_path, mark)
        after.gangs.adopt(after.supervisor.records.read(), EMPTY)
        await after.exited()
        assert not procfs.marked(mark)
        await after.leave()
        last = Bench(tmp_path, mark)
        last.gangs.adopt((), state_with(effect, JobStatus.STOPPING))
        found = await last.exited()
        assert found.code == LOST_CODE
        await last.leave()

    run(test)
