from __future__ import annotations

from dataclasses import replace

import pytest
from control_mill import GPU, SMALL, Mill, chat, factory

from tokenmill.control.core import check
from tokenmill.control.why import why
from tokenmill.control.why_waiting import Briefly
from tokenmill.domain import events as ev
from tokenmill.domain.effects import ChargeWork, StartJob, StopJob
from tokenmill.domain.errors import ConflictError, NotFoundError, RefusedError
from tokenmill.domain.factory import JobTemplate, Project, Tenant
from tokenmill.domain.work import JobSpec, JobStatus, WorkUsage
from tokenmill.policy.share import PATIENCE_US

SPEC = JobSpec("command", "a", "p", ("true",), resources=GPU, timeout_us=60_000_000)


@pytest.fixture
def floor(mill: Mill) -> Mill:
    mill.join("n0", gpus=4)
    mill.join("n1", gpus=4)
    mill.apply(factory())
    return mill


def test_gang_starts_whole_and_charges_once(floor: Mill) -> None:
    floor.tell(ev.JobSubmitted, "big", replace(SPEC, workers=8, resources=replace(GPU, cpu_millis=1)))
    (start,) = floor.of(StartJob)
    assert len(start.nodes) == len(start.accelerators) == 8
    floor.tell(ev.JobStarted, "big", 1)
    floor.tell(ev.JobSubmitted, "next", SPEC)
    assert floor.of(StartJob) == []
    floor.tell(ev.JobExited, "big", 1, 0, None, "", WorkUsage(accelerator_us=8))
    (charge,) = floor.of(ChargeWork)
    assert (charge.usage.accelerator_us, charge.held) == (8, (("h200", 8),))
    assert [effect.job for effect in floor.of(StartJob)] == ["next"]
    floor.tell(ev.JobExited, "big", 1, 0)
    assert floor.asked == ()
    assert floor.state.jobs["big"].status is JobStatus.SUCCEEDED


def test_retries_back_off_then_fail(floor: Mill) -> None:
    floor.tell(ev.JobSubmitted, "j", SPEC)
    for attempt in (1, 2):
        floor.tell(ev.JobExited, "j", attempt, 1, None, "crashed")
        assert floor.state.jobs["j"].status is JobStatus.PENDING
        floor.wait(1.999 * attempt)
        assert floor.of(StartJob) == []
        floor.wait(0.01)
        assert floor.of(StartJob)[0].attempt == attempt + 1
        floor.tell(ev.JobStarted, "j", attempt + 1)
        assert why(floor.state, "j", floor.now).reasons[0] == "before: crashed", "what runs says why again"
        assert floor.state.jobs["j"].reason == "before: crashed", "a person sees why it runs again"
    floor.tell(ev.JobExited, "j", 1, 0)
    assert floor.asked == (), "an old attempt's echo is not this attempt's end"
    floor.tell(ev.JobExited, "j", 3, 1, None, "crashed")
    assert floor.state.jobs["j"].status is JobStatus.FAILED
    assert not floor.state.leases


def test_bad_data_is_not_tried_again(floor: Mill) -> None:
    floor.tell(ev.JobSubmitted, "j", replace(SPEC, kind="station"))
    floor.tell(ev.JobExited, "j", 1, 10, None, "row 7 has no answer")
    assert floor.state.jobs["j"].status is JobStatus.FAILED


@pytest.mark.parametrize("code", [126, 127])
def test_a_command_that_is_no_program_is_not_tried_again(floor: Mill, code: int) -> None:
    floor.tell(ev.JobSubmitted, "j", SPEC)
    floor.tell(ev.JobExited, "j", 1, code, None, "no-such-program: not found")
    assert floor.state.jobs["j"].status is JobStatus.FAILED
    assert floor.state.jobs["j"].reason == "no-such-program: not found"


def test_timeout_stops_then_fails_and_holds_until_gone(floor: Mill) -> None:
    floor.tell(ev.JobSubmitted, "j", SPEC)
    floor.wait(60)
    assert [effect.job for effect in floor.of(StopJob)] == ["j"]
    assert floor.state.leases
    floor.tell(ev.JobExited, "j", 1, 143)
    assert floor.state.jobs["j"].status is JobStatus.FAILED
    assert "60 s" in floor.state.jobs["j"].reason
    assert not floor.state.leases


def test_cancel_waiting_and_running(floor: Mill) -> None:
    floor.tell(ev.JobSubmitted, "running", SPEC)
    floor.tell(ev.JobSubmitted, "waiting", replace(SPEC, workers=8, resources=replace(GPU, cpu_millis=1)))
    floor.tell(ev.JobCancelled, "waiting")
    assert floor.state.jobs["waiting"].status is JobStatus.CANCELLED
    floor.tell(ev.JobCancelled, "running")
    assert floor.state.jobs["running"].status is JobStatus.STOPPING
    with pytest.raises(ConflictError):
        check(floor.state, ev.JobCancelled(floor.now, "running"))
    floor.tell(ev.JobExited, "running", 1, 0)
    assert floor.state.jobs["running"].status is JobStatus.CANCELLED


def test_fair_share_then_age(floor: Mill) -> None:
    whole = replace(SPEC, workers=8, resources=replace(GPU, cpu_millis=1))
    floor.tell(ev.JobSubmitted, "hog", whole)
    for name, tenant in (("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")):
        floor.now += 1
        floor.tell(
            ev.JobSubmitted, name, replace(SPEC, tenant=tenant, resources=replace(GPU, accelerators=2))
        )
    floor.tell(ev.JobSubmitted, "urgent", replace(SPEC, priority=9, resources=replace(GPU, accelerators=4)))
    floor.tell(ev.JobExited, "hog", 1, 0)
    assert [effect.job for effect in floor.of(StartJob)] == ["urgent", "b1", "b2"]


def test_small_jobs_fill_gaps_until_the_big_one_loses_patience(floor: Mill) -> None:
    floor.tell(ev.JobSubmitted, "s0", replace(SPEC, timeout_us=0))
    floor.tell(ev.JobSubmitted, "big", replace(SPEC, workers=8, resources=replace(GPU, cpu_millis=1)))
    floor.tell(ev.JobSubmitted, "s1", replace(SPEC, timeout_us=0))
    assert [effect.job for effect in floor.of(StartJob)] == ["s1"]
    floor.now += PATIENCE_US + 1
    floor.tell(ev.JobSubmitted, "s2", replace(SPEC, tenant="a"))
    assert floor.of(StartJob) == []
    floor.tell(ev.JobExited, "s0", 1, 0)
    assert floor.of(StartJob) == []
    floor.tell(ev.JobExited, "s1", 1, 0)
    assert [effect.job for effect in floor.of(StartJob)] == ["big"]


def test_what_can_never_fit_is_refused_with_what_would(floor: Mill) -> None:
    never = replace(SPEC, workers=99, resources=replace(GPU, cpu_millis=1))
    with pytest.raises(RefusedError, match="can never start") as refused:
        check(floor.state, ev.JobSubmitted(floor.now, "never", never))
    assert "at most 8 such workers" in str(refused.value)
    floor.tell(ev.JobSubmitted, "never", never)
    assert "never" not in floor.state.jobs


def test_what_can_never_fit_holds_up_nobody(floor: Mill) -> None:
    """A template is not refused, its factory file was: it waits, and the rest goes on."""
    never = JobTemplate("never", "a", "p", ("true",), replace(GPU, cpu_millis=1), workers=99)
    floor.apply(factory(jobs=(never,)))
    floor.now += PATIENCE_US + 1
    floor.tell(ev.JobSubmitted, "s", SPEC)
    assert [effect.job for effect in floor.of(StartJob)] == ["s"]


def test_lost_node_stops_the_gang_and_tries_again_elsewhere(floor: Mill) -> None:
    floor.tell(ev.JobSubmitted, "j", replace(SPEC, workers=5, resources=replace(GPU, cpu_millis=1)))
    floor.tell(ev.NodeLost, "n0")
    assert [effect.job for effect in floor.of(StopJob)] == ["j"]
    floor.join("n2", gpus=4)
    floor.tell(ev.JobExited, "j", 1, 137)
    floor.wait(2)
    (start,) = floor.of(StartJob)
    assert set(start.nodes) == {"n1", "n2"}


def test_templates_start_once(floor: Mill) -> None:
    template = JobTemplate("warm", "a", "p", ("true",), SMALL)
    floor.apply(factory(jobs=(template,)))
    assert len(floor.of(StartJob)) == 1
    floor.apply(factory(jobs=(template,)))
    assert floor.of(StartJob) == []


def test_residency_bounds_jobs(mill: Mill) -> None:
    mill.join("us", gpus=1, site="there")
    mill.apply(factory(tenants=(Tenant("a", (Project("p"),), jurisdictions=("EU",)),)))
    with pytest.raises(RefusedError, match="can never start"):
        check(mill.state, ev.JobSubmitted(mill.now, "j", SPEC))
    mill.join("eu", gpus=1)
    mill.tell(ev.JobSubmitted, "j", SPEC)
    assert mill.of(StartJob)[0].nodes == ("eu",)


def test_refusals(floor: Mill) -> None:
    floor.tell(ev.JobSubmitted, "j", SPEC)
    for bad, error in (
        (ev.JobSubmitted(1, "j", SPEC), ConflictError),
        (ev.JobSubmitted(1, "k", replace(SPEC, tenant="x")), NotFoundError),
        (ev.JobSubmitted(1, "k", replace(SPEC, project="x")), NotFoundError),
        (ev.JobSubmitted(1, "k", replace(SPEC, workers=0)), RefusedError),
        (ev.JobCancelled(1, "nobody"), NotFoundError),
        (ev.LeaseRequested(1, "l", "a", "p", 1, 1, 99, 1), RefusedError),
        (ev.LeaseRequested(1, "l", "a", "p", 1, 1, 1, 0), RefusedError),
        (ev.LeaseReleased(1, "l-nobody"), NotFoundError),
        (ev.LeaseReleased(1, min(floor.state.leases)), RefusedError),
    ):
        with pytest.raises(error):
            check(floor.state, bad)


def test_tenant_lease_expires_and_is_charged(floor: Mill) -> None:
    floor.tell(ev.LeaseRequested, "mine", "a", "p", 1000, 1, 2, 10_000_000)
    floor.wait(9)
    assert "mine" in floor.state.leases
    floor.wait(3)
    (charge,) = floor.of(ChargeWork)
    assert (charge.kind, charge.usage.accelerator_us, charge.usage.cpu_us) == (
        "lease",
        20_000_000,
        10_000_000,
    )
    floor.tell(ev.LeaseRequested, "again", "a", "p", 1000, 1, 2, 10_000_000)
    floor.now += 1_000_000
    floor.tell(ev.LeaseReleased, "again")
    assert floor.of(ChargeWork)[0].usage.wall_us == 1_000_000


def test_serving_comes_before_jobs(floor: Mill) -> None:
    floor.tell(ev.JobSubmitted, "hog", replace(SPEC, workers=8, resources=replace(GPU, cpu_millis=1)))
    floor.apply(factory(chat(resources=GPU)))
    floor.bring()
    floor.tell(ev.JobSubmitted, "next", replace(SPEC, workers=8, resources=replace(GPU, cpu_millis=1)))
    floor.tell(ev.JobExited, "hog", 1, 0)
    assert floor.of(StartJob) == []
    assert len(floor.started_replicas()) == 1


def test_why_knows_a_job_by_its_name(floor: Mill) -> None:
    for job in ("old", "new"):
        floor.tell(ev.JobSubmitted, job, replace(SPEC, name="nightly"))
        floor.wait(1)
    assert why(floor.state, "nightly", floor.now).id == "new", "the last one of that name"


def brief(mill: Mill, *names: str) -> list[str]:
    briefly = Briefly(mill.state, mill.now)
    return [briefly.job(mill.state.jobs[name]) for name in names]


def test_a_list_says_in_a_sentence_why_each_job_waits(floor: Mill) -> None:
    """What the floor lacks, then what a tenant may not, then what failed, and nothing of what runs."""
    gpu = replace(GPU, cpu_millis=1)
    floor.tell(ev.JobSubmitted, "most", replace(SPEC, workers=6, resources=gpu))
    floor.tell(ev.JobSubmitted, "gang", replace(SPEC, workers=4, resources=gpu))
    floor.tell(ev.JobSubmitted, "wide", replace(SPEC, resources=replace(gpu, accelerators=4)))
    assert brief(floor, "most", "gang", "wide") == [
        "",
        "2 accelerators free, 4 asked",
        "2 accelerators free, 4 asked",
    ]
    floor.tell(ev.JobSubmitted, "fat", replace(SPEC, resources=replace(SMALL, memory_bytes=15 << 30)))
    assert brief(floor, "fat") == [
        "no node has room for a worker: n0 has 13 GiB of memory free, 15 GiB asked",
    ]
    floor.tell(ev.JobStarted, "most", 1)
    floor.tell(ev.JobExited, "most", 1, 1)
    assert brief(floor, "most")[0].startswith("attempt 1 of 3 failed: ")
    tenant = Tenant("a", (Project("p"),), limit=4)
    floor.apply(factory(tenants=(tenant,)))
    floor.tell(ev.JobSubmitted, "barred", replace(SPEC, workers=3, resources=gpu))
    assert brief(floor, "barred") == ["tenant a holds 8 of at most 4 accelerators, 3 asked"]
    for number in range(1, 20):
        spec = replace(SPEC, resources=replace(SMALL, memory_bytes=(14 << 30) + number))
        floor.tell(ev.JobSubmitted, f"fat{number}", spec)
    said = brief(floor, *(f"fat{number}" for number in range(1, 20)))
    assert said[15].startswith("no node has room for a worker: n0 has")
    assert said[16:] == ["it has no room: `tokenmill why` says where"] * 3
    for node in ("n0", "n1"):
        floor.tell(ev.NodeLost, node)
    floor.tell(ev.JobSubmitted, "cores", replace(SPEC, resources=SMALL))
    assert brief(floor, "cores") == ["no node is alive"]
