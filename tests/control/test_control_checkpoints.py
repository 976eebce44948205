"""Checkpoints: told by trainers, weighed by preemption, and made as often as failures ask for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from control_mill import GPU, SECOND, Mill, factory

from tokenmill.control.core import resume
from tokenmill.control.why import why
from tokenmill.domain import events as ev
from tokenmill.domain.effects import PaceJob, StartJob, StopJob
from tokenmill.domain.work import JobSpec, JobStatus

SPEC = JobSpec("command", "a", "p", ("true",), resources=GPU, timeout_us=10**12)


@pytest.fixture
def floor(mill: Mill) -> Mill:
    mill.join("n0", gpus=1)
    mill.join("n1", gpus=1)
    mill.apply(factory())
    return mill


def begin(mill: Mill, name: str, **named: object) -> None:
    mill.tell(ev.JobSubmitted, name, replace(SPEC, **named))  # type: ignore[arg-type]
    mill.tell(ev.JobStarted, name, mill.state.jobs[name].attempt)


def save(mill: Mill, name: str, save_us: int = SECOND) -> list[PaceJob]:
    mill.tell(ev.JobSaved, name, mill.state.jobs[name].attempt, save_us)
    return mill.of(PaceJob)


def test_the_victim_is_the_one_whose_checkpoint_is_young(floor: Mill) -> None:
    begin(floor, "first")
    floor.wait(10)
    begin(floor, "second")  # lost less until now, since it is younger
    floor.wait(500)
    save(floor, "first")
    floor.wait(5)
    floor.tell(ev.JobSubmitted, "urgent", replace(SPEC, priority=9))
    assert [effect.job for effect in floor.of(StopJob)] == ["first"]


def test_each_interruption_makes_the_interval_shorter(floor: Mill) -> None:
    begin(floor, "j", max_attempts=9)
    floor.wait(30)
    (told,) = save(floor, "j")
    floor.wait(30)
    assert save(floor, "j") == [], "nothing new was learnt"
    text = " ".join(why(floor.state, "j", floor.now).reasons)
    assert f"a checkpoint every {told.checkpoint_us / 1e6:.0f} s" in text
    assert "0 in 0.0 h of the job" in text
    floor.tell(ev.JobExited, "j", 1, 1, None, "crashed")
    floor.wait(3)
    (again,) = floor.of(StartJob)
    assert 0 < again.checkpoint_us < told.checkpoint_us
    assert [e.checkpoint_us for e in resume(floor.state, floor.now) if isinstance(e, StartJob)] == [
        again.checkpoint_us
    ]
    assert floor.state.jobs["j"].saved_us == 0, "this attempt has made none yet"
    floor.tell(ev.JobStarted, "j", 2)
    other = next(name for name in ("n0", "n1") if name not in floor.state.jobs["j"].nodes)
    floor.tell(ev.NodeLost, other)
    floor.wait(30)
    (shorter,) = save(floor, "j")
    assert shorter.checkpoint_us < again.checkpoint_us, "a lost node tells of the others"
    assert "1 node(s) lost" in " ".join(why(floor.state, "j", floor.now).reasons)


def test_echoes_and_jobs_that_do_not_run_change_nothing(floor: Mill) -> None:
    begin(floor, "j")
    floor.wait(5)
    save(floor, "j")
    before = floor.state
    for name, attempt, save_us in (("j", 1, SECOND), ("j", 2, SECOND), ("gone", 1, SECOND), ("j", 1, 0)):
        floor.tell(ev.JobSaved, name, attempt, save_us)
        assert floor.state is before
    floor.tell(ev.JobCancelled, "j")
    floor.wait(1)
    assert save(floor, "j") == []
    assert floor.state.jobs["j"].status is JobStatus.STOPPING


def test_what_the_file_fixes_stays(floor: Mill) -> None:
    begin(floor, "j", params={"params": {"checkpoint_seconds": 5}})
    floor.wait(30)
    assert save(floor, "j") == []
    assert "checkpoint_seconds says how often" in " ".join(why(floor.state, "j", floor.now).reasons)
