"""Supervision of real, small processes: groups, adoption, limits, strays.

Only real processes show whether a group dies whole, a pid is told from its successor and a dead
supervisor leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tokenmill.domain.errors import ConflictError, ResourceError
from tokenmill.floor import controller, procfs
from tokenmill.floor.energy import CpuModel, EnergyMeter
from tokenmill.floor.lock import held, read_controller
from tokenmill.floor.process import UNKNOWN_CODE, Order, describe
from tokenmill.floor.processes import Supervisor
from tokenmill.floor.records import Records
from tokenmill.spec.paths import Paths

pytestmark = pytest.mark.live

SPAWN_THEN_DIE = """
import asyncio, os, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_floor_processes import make_supervisor, order_of
async def main():
    supervisor = make_supervisor(Path({root!r}), {mark!r})
    await supervisor.spawn(order_of(Path({root!r}), "job-1", "sleep", "60"))
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


def now_us() -> int:
    return time.time_ns() // 1000


def make_supervisor(root: Path, mark: str) -> Supervisor:
    meter = EnergyMeter(CpuModel(10.0, 5.0, 2))
    return Supervisor(Records(root / "processes"), mark, meter, now_us)


def order_of(root: Path, name: str, *argv: str, **limits: int) -> Order:
    return Order(id=name, kind="job", argv=argv, log=root / "logs" / f"{name}.log", cwd=root / name, **limits)


@pytest.fixture
def mark() -> Iterator[str]:
    """A factory mark of this test; whatever bears it is killed afterwards."""
    value = uuid.uuid4().hex[:12]
    yield value
    for pid in procfs.marked(value):
        os.kill(pid, signal.SIGKILL)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def test_exit_code_usage_and_log(tmp_path: Path, mark: str) -> None:
    async def test() -> None:
        supervisor = make_supervisor(tmp_path, mark)
        code = "import sys; print('hello'); sum(range(3_000_000)); sys.exit(7)"
        process = await supervisor.spawn(order_of(tmp_path, "j1", sys.executable, "-c", code))
        found = await process.wait()
        assert (found.code, found.reason) == (7, "exited with code 7")
        assert found.usage.cpu_us > 10_000
        assert found.usage.wall_us > 0
        assert found.usage.peak_memory_bytes > 4_000_000
        assert found.usage.energy_mj > 0
        assert "assumed" in found.usage.energy_source
        assert (tmp_path / "logs/j1.log").read_text() == "hello\n"
        assert (tmp_path / "processes/j1.json").exists()
        supervisor.forget("j1")
        assert not (tmp_path / "processes/j1.json").exists()
        await supervisor.close()

    run(test)


def test_secrets_of_the_controller_are_not_inherited(
    tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENMILL_DATABASE_URL", "postgresql://user:hidden-word@host/db")

    async def test() -> None:
        supervisor = make_supervisor(tmp_path, mark)
        await (await supervisor.spawn(order_of(tmp_path, "j1", "env"))).wait()
        text = (tmp_path / "logs/j1.log").read_text()
        assert "hidden-word" not in text
        assert f"TOKENMILL_PROCESS=j1:{mark}" in text
        await supervisor.close()

    run(test)


def test_missing_command_is_explained(tmp_path: Path, mark: str) -> None:
    async def test() -> None:
        supervisor = make_supervisor(tmp_path, mark)
        with pytest.raises(ResourceError, match="no-such-command"):
            await supervisor.spawn(order_of(tmp_path, "j1", "no-such-command"))
        await supervisor.close()

    run(test)


def test_one_id_runs_once(tmp_path: Path, mark: str) -> None:
    async def test() -> None:
        supervisor = make_supervisor(tmp_path, mark)
        await supervisor.spawn(order_of(tmp_path, "j1", "sleep", "60"))
        with pytest.raises(ConflictError, match="already runs"):
            await supervisor.spawn(order_of(tmp_path, "j1", "sleep", "60"))
        await supervisor.stop("j1", 0)
        await supervisor.close()

    run(test)


def test_grandchildren_die_with_their_leader(tmp_path: Path, mark: str) -> None:
    """Also one that left the session: the mark in its environment gives it away."""
    script = "sleep 61 & setsid sleep 62 & while [ ! -e go ]; do sleep 0.05; done; exit 3"

    async def test() -> None:
        supervisor = make_supervisor(tmp_path, mark)
        process = await supervisor.spawn(order_of(tmp_path, "j1", "sh", "-c", script))
        await until(lambda: len(procfs.marked(mark)) >= 4)
        (tmp_path / "j1" / "go").touch()
        assert (await process.wait()).code == 3
        await until(lambda: not procfs.marked(mark))
        await supervisor.close()

    run(test)


def test_stop_asks_first_and_kills_after_the_grace(tmp_path: Path, mark: str) -> None:
    async def test() -> None:
        supervisor = make_supervisor(tmp_path, mark)
        await supervisor.spawn(order_of(tmp_path, "polite", "sleep", "60"))
        found = await supervisor.stop("polite", 5_000_000)
        assert found is not None
        assert found.code == -signal.SIGTERM
        deaf = (
            "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
            "print(1, flush=True); time.sleep(60)"
        )
        await supervisor.spawn(order_of(tmp_path, "deaf", sys.executable, "-c", deaf))
        await until(lambda: (tmp_path / "logs/deaf.log").stat().st_size > 0)
        found = await supervisor.stop("deaf", 200_000)
        assert found is not None
        assert found.code == -signal.SIGKILL
        assert "SIGKILL" in found.reason
        await supervisor.close()

    run(test)


def test_memory_beyond_the_limit_kills_with_figures(tmp_path: Path, mark: str) -> None:
    hungry = (
        "import time; block = bytearray(200_000_000); "
        "block[::4096] = b'x' * len(block[::4096]); time.sleep(60)"
    )

    async def test() -> None:
        supervisor = make_supervisor(tmp_path, mark)
        sampler = asyncio.create_task(supervisor.sample_forever())
        order = order_of(tmp_path, "j1", sys.executable, "-c", hungry, memory_bytes=100_000_000)
        found = await (await supervisor.spawn(order)).wait()
        assert found.code == -signal.SIGKILL
        assert found.reason.startswith("used 0.2 GB of 0.1 GB of memory")
        assert found.usage.peak_memory_bytes > 200_000_000
        sampler.cancel()
        await supervisor.close()

    run(test)


def test_next_supervisor_adopts_what_a_killed_one_left(tmp_path: Path, mark: str) -> None:
    program = SPAWN_THEN_DIE.format(here=str(Path(__file__).parent), root=str(tmp_path), mark=mark)
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(procfs.marked(mark)) == 1

    async def test() -> None:
        supervisor = make_supervisor(tmp_path, mark)
        (record,) = supervisor.records.read()
        process = supervisor.adopt(record)
        assert process is not None
        assert supervisor.kill_strays() == 0
        found = await supervisor.stop("job-1", 5_000_000)
        assert found is not None
        assert found.code == UNKNOWN_CODE
        assert not procfs.marked(mark)
        assert supervisor.adopt(record) is None
        await supervisor.close()

    run(test)


def test_another_process_with_the_same_pid_is_not_adopted(tmp_path: Path, mark: str) -> None:
    async def test() -> None:
        supervisor = make_supervisor(tmp_path, mark)
        process = await supervisor.spawn(order_of(tmp_path, "j1", "sleep", "60"))
        impostor = type(process.record)(
            **{f: getattr(process.record, f) for f in process.record.__slots__ if f != "start_time"},
            start_time=process.record.start_time + 1,
        )
        assert not impostor.lives()
        assert process.record.lives()
        await supervisor.stop("j1", 0)
        await supervisor.close()

    run(test)


def test_strays_without_a_record_are_killed(tmp_path: Path, mark: str) -> None:
    environment = {**os.environ, procfs.MARK: f"lost:{mark}"}
    child = subprocess.Popen(["sleep", "60"], env=environment)
    supervisor = make_supervisor(tmp_path, mark)
    deadline = time.monotonic() + 30
    while not procfs.marked(mark) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert supervisor.kill_strays() == 1
    assert child.wait(30) == -signal.SIGKILL
    assert supervisor.kill_strays() == 0


def test_describe() -> None:
    assert describe(0) == "exited with code 0"
    assert describe(-15) == "killed by SIGTERM"
    assert "out of memory" in describe(-9)


DIES_SLOWLY = """
import ctypes, os, signal, sys, threading, time
from pathlib import Path
from tokenmill.floor import procfs
from tokenmill.floor.lock import ControllerFile, DirectoryLock, write_controller
from tokenmill.spec.paths import Paths
paths = Paths(Path(sys.argv[1]))
DirectoryLock(paths).take()
lasts = threading.Thread(target=lambda: (asked.wait(), time.sleep(1.0), os._exit(0)))
asked = threading.Event()
lasts.start()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
paths.run.mkdir(parents=True, exist_ok=True)
write_controller(paths, ControllerFile(os.getpid(), procfs.stat(os.getpid()).start_time, 1, "", "", ""))
signal.sigwait({signal.SIGTERM})
asked.set()
ctypes.CDLL(None).pthread_exit(None)  # the first thread ends, the process counts as dead, the lock is held
"""


def test_a_controller_whose_first_thread_ended_is_waited_for(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", DIES_SLOWLY, str(tmp_path)])
    try:
        asyncio.run(until(lambda: (found := read_controller(paths)) is not None and found.lives()))
        assert controller.stop(paths, 20.0)
        assert not held(paths)
        assert process.wait(30) == 0, "it was not killed"
    finally:
        process.kill()


@pytest.mark.parametrize("by_us", [3_600_000_000, -3_600_000_000])
def test_a_clock_that_is_set_bills_no_time(tmp_path: Path, mark: str, by_us: int) -> None:
    async def test() -> None:
        began_us, set_us = time.monotonic_ns() // 1000, 0
        meter = EnergyMeter(CpuModel(10.0, 5.0, 2))
        supervisor = Supervisor(Records(tmp_path / "processes"), mark, meter, lambda: now_us() + set_us)
        own = await supervisor.spawn(order_of(tmp_path, "job-1", "sleep", "60", cpu_millis=1000))
        set_us = by_us
        adopter = Supervisor(supervisor.records, mark, EnergyMeter(CpuModel(10.0, 5.0, 2)), now_us)
        adopted = adopter.adopt(own.record)
        assert adopted is not None
        supervisor.sample_energy()
        found = await supervisor.stop("job-1", 0)
        assert found is not None
        passed_us = time.monotonic_ns() // 1000 - began_us
        assert 0 < found.usage.wall_us <= passed_us
        assert found.usage.energy_mj <= passed_us * 10 // 1000 + 1  # ten watts at most
        assert 0 < (await adopted.wait()).usage.wall_us <= time.monotonic_ns() // 1000 - began_us + 10_000
        await supervisor.close()
        await adopter.close()

    run(test)
