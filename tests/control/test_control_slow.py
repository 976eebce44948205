"""Slow nodes: taken out where the work can spare them, tested when they are empty, back when they pass."""

from __future__ import annotations

from dataclasses import replace

from control_mill import GPU, Mill, factory

from tokenmill.control.why import why
from tokenmill.domain import events as ev
from tokenmill.domain.effects import StartJob, StopJob
from tokenmill.domain.factory import Site
from tokenmill.domain.work import JobSpec

SPEC = JobSpec("command", "a", "p", ("true",), resources=GPU, workers=2, timeout_us=10**12)
SITES = (Site("here", "EU", acceptance=("dcgmi", "diag")),)


def floor(mill: Mill, nodes: int, sites: tuple[Site, ...] = SITES) -> Mill:
    for number in range(nodes):
        mill.join(f"n{number}", gpus=1)
    mill.apply(factory(sites=sites))
    mill.tell(ev.JobSubmitted, "gang", SPEC)
    mill.tell(ev.JobStarted, "gang", 1)
    return mill


def late(mill: Mill, rank: int, times: int = 3, attempt: int = 1) -> None:
    for _ in range(times):
        mill.wait(15)
        mill.tell(ev.StepsTimed, "gang", attempt, 100, ((rank, 150),))


def test_it_is_taken_out_emptied_tested_and_comes_back(mill: Mill) -> None:
    floor(mill, 3)
    bad = mill.state.jobs["gang"].nodes[1]
    late(mill, 1, 2)
    assert mill.of(StopJob) == [], "a burst of a neighbour's work passes"
    late(mill, 1, 1)
    assert [effect.job for effect in mill.of(StopJob)] == ["gang"]
    reasons = why(mill.state, bad, mill.now).reasons
    assert "its workers of gang take 1.50 times as long as the others" in reasons[0]
    mill.tell(ev.JobExited, "gang", 1, 143)
    test, again = sorted(mill.of(StartJob), key=lambda start: start.job == "gang")
    assert (test.nodes, test.spec.command) == ((bad,), ("dcgmi", "diag"))
    assert bad not in again.nodes
    assert "has to pass its acceptance test" in why(mill.state, bad, mill.now).reasons[0]
    mill.tell(ev.JobExited, test.job, 1, 0)
    assert not mill.state.nodes[bad].cordon


def test_one_that_passes_and_is_slow_again_waits_for_a_person(mill: Mill) -> None:
    floor(mill, 3)
    bad = mill.state.jobs["gang"].nodes[1]
    late(mill, 1)
    mill.tell(ev.JobExited, "gang", 1, 143)
    test = next(start for start in mill.of(StartJob) if start.job != "gang")
    mill.tell(ev.JobExited, test.job, 1, 0)
    other = mill.state.jobs["gang"].nodes[0]
    mill.tell(ev.NodeLost, other)
    mill.tell(ev.JobExited, "gang", 2, 143)
    mill.wait(5)
    nodes = mill.state.jobs["gang"].nodes
    assert bad in nodes
    mill.join("n9", gpus=1)
    mill.tell(ev.JobStarted, "gang", 3)
    late(mill, nodes.index(bad), attempt=3)
    assert "a person has to look at it" in mill.state.nodes[bad].cordon
    mill.tell(ev.JobExited, "gang", 3, 143)
    assert [start.job for start in mill.of(StartJob)] == ["gang"], "it is not tested again"
    mill.tell(ev.NodeTrusted, bad)
    assert mill.state.nodes[bad].slow_us == 0


def test_what_the_work_needs_stays_and_says_why(mill: Mill) -> None:
    floor(mill, 2)
    bad = mill.state.jobs["gang"].nodes[0]
    late(mill, 0, 5)
    assert mill.of(StopJob) == []
    text = " ".join(why(mill.state, bad, mill.now).reasons)
    assert "1.50 times as long" in text
    assert "gang would have no room elsewhere" in text
    before = mill.state
    late(mill, 0, 1)
    assert mill.state is before, "the same again is not journalled"
    mill.tell(ev.StepsTimed, "gang", 1, 100)
    assert not mill.state.nodes[bad].slow, "it keeps up again"
    late(mill, 0)
    mill.join("spare", gpus=1)
    late(mill, 0, 1)
    assert [effect.job for effect in mill.of(StopJob)] == ["gang"], "a spare came"


def test_only_so_many_at_a_time_and_no_test_without_a_command(mill: Mill) -> None:
    floor(mill, 6, (Site("here", "EU"),))
    first = mill.state.jobs["gang"].nodes[0]
    late(mill, 0)
    mill.tell(ev.JobExited, "gang", 1, 143)
    assert [start.job for start in mill.of(StartJob)] == ["gang"]
    mill.tell(ev.JobStarted, "gang", 2)
    late(mill, 0, attempt=2)
    assert mill.of(StopJob) == []
    second = mill.state.jobs["gang"].nodes[0]
    assert "out for slowness already" in " ".join(why(mill.state, second, mill.now).reasons)
    mill.tell(ev.NodeTrusted, first)
    late(mill, 0, 1, attempt=2)
    assert [effect.job for effect in mill.of(StopJob)] == ["gang"]


def test_a_spare_that_is_taken_is_none(mill: Mill) -> None:
    floor(mill, 3)
    mill.tell(ev.JobSubmitted, "other", replace(SPEC, workers=1))
    late(mill, 0)
    assert mill.of(StopJob) == []


def test_a_tenant_s_own_lease_keeps_its_node(mill: Mill) -> None:
    floor(mill, 3)
    mill.tell(ev.LeaseRequested, "l-1", "a", "p", 1000, 1, 0, 10**12)
    held = mill.state.leases["l-1"].node
    nodes = mill.state.jobs["gang"].nodes
    assert held in nodes, "it went where work is already"
    late(mill, nodes.index(held))
    assert mill.of(StopJob) == []
    assert "l-1 would have no room" in " ".join(why(mill.state, held, mill.now).reasons)
