"""The machine's clock is set forward or back while things run, wait and are held."""

from __future__ import annotations

import pytest
from control_mill import GPU, SECOND, Mill, chat, factory

from tokenmill.domain import events as ev
from tokenmill.domain.effects import ChargeWork, StartJob, StopJob
from tokenmill.domain.work import JobSpec, JobStatus, ReplicaStatus

HOUR_US = 3_600 * SECOND
SPEC = JobSpec("command", "a", "p", ("true",), resources=GPU, timeout_us=60 * SECOND)


def set_clock(mill: Mill, by_us: int) -> None:
    mill.now += by_us
    mill.tell(ev.ClockSet, by_us)


@pytest.fixture
def floor(mill: Mill) -> Mill:
    mill.join("n0", gpus=4)
    mill.apply(factory(chat(resources=GPU)))
    mill.bring()
    return mill


@pytest.mark.parametrize("by_us", [HOUR_US, -HOUR_US])
def test_a_job_has_its_whole_time(floor: Mill, by_us: int) -> None:
    floor.tell(ev.JobSubmitted, "j", SPEC)
    floor.tell(ev.JobStarted, "j", 1)
    floor.wait(20)
    set_clock(floor, by_us)
    floor.wait(39)
    assert floor.of(StopJob) == []
    floor.wait(1)
    assert [effect.job for effect in floor.of(StopJob)] == ["j"]
    floor.tell(ev.JobExited, "j", 1, 143)
    ended = floor.state.jobs["j"]
    assert ended.ended_us - ended.started_us == 60 * SECOND
    set_clock(floor, by_us)
    assert floor.state.jobs["j"] is ended, "what has ended is not rewritten"


@pytest.mark.parametrize("by_us", [HOUR_US, -HOUR_US])
def test_a_back_off_is_neither_cut_nor_drawn_out(floor: Mill, by_us: int) -> None:
    (replica,) = floor.named(ReplicaStatus.STARTING)
    floor.tell(ev.ReplicaExited, replica, "killed")
    floor.wait(0)  # the first time another is started at once
    (replica,) = floor.named(ReplicaStatus.STARTING)
    floor.tell(ev.JobSubmitted, "j", SPEC)
    floor.tell(ev.JobExited, "j", 1, 1)
    floor.tell(ev.ReplicaExited, replica, "killed")
    set_clock(floor, by_us)
    assert floor.started_jobs()[-1].attempt == 1
    floor.wait(0.9)
    assert floor.named(ReplicaStatus.FAILED) == [replica]
    floor.wait(0.1)
    assert floor.named(ReplicaStatus.FAILED) == []
    floor.wait(0.99)
    assert floor.of(StartJob) == []
    floor.wait(0.01)
    assert [effect.attempt for effect in floor.of(StartJob)] == [2]


@pytest.mark.parametrize("by_us", [HOUR_US, -HOUR_US])
def test_a_tenant_has_and_pays_the_time_that_it_leased(floor: Mill, by_us: int) -> None:
    floor.tell(ev.LeaseRequested, "lease-1", "a", "p", 1000, 0, 1, 90 * SECOND)
    floor.wait(30)
    set_clock(floor, by_us)
    floor.wait(59)
    assert "lease-1" in floor.state.leases
    floor.wait(1)
    assert "lease-1" not in floor.state.leases
    (charge,) = floor.of(ChargeWork)
    assert charge.usage.wall_us == charge.usage.accelerator_us == 90 * SECOND


def test_what_waits_is_as_old_as_before(floor: Mill) -> None:
    floor.tell(ev.JobSubmitted, "all", JobSpec("command", "a", "p", ("x",), resources=GPU, workers=4))
    before = floor.state.jobs["all"]
    set_clock(floor, -HOUR_US)
    after = floor.state.jobs["all"]
    assert after.status is before.status is JobStatus.PENDING
    assert floor.now - after.submitted_us == 0
