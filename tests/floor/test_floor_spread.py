"""A gang over several nodes is one job to control: one start, one end, the first failure's reason."""

from __future__ import annotations

import pytest

from tokenmill.domain.effects import StartJob
from tokenmill.domain.events import JobExited, JobStarted
from tokenmill.domain.work import Job, JobResult, JobSpec, JobStatus, WorkUsage
from tokenmill.floor.ray.spread import Spread, shares, spread_of

RESULT = JobResult(outputs={"adapter": "sha256:1"})


def exited(at_us: int, code: int = 0, result: JobResult | None = None, reason: str = "") -> JobExited:
    return JobExited(at_us, "j", 1, code, result, reason, WorkUsage(wall_us=at_us, cpu_us=10))


def test_ranks_of_a_node_are_its_share() -> None:
    effect = StartJob("j", 1, JobSpec("command", "t", "p", workers=3), ("b", "b", "a"), ((), (), ()))
    found = shares(effect, "10.0.0.1", 77)
    assert {node: share.ranks for node, share in found.items()} == {"b": (0, 1), "a": (2,)}
    assert (found["a"].node_rank, found["a"].nodes, found["a"].address, found["a"].port) == (
        1,
        2,
        "10.0.0.1",
        77,
    )


def test_the_gang_starts_when_its_last_share_does() -> None:
    spread = Spread("j", 1, ("a", "b"))
    assert spread.start("b", JobStarted(1, "j", 1)) is None
    assert spread.start("b", JobStarted(2, "j", 1)) is None
    assert spread.start("a", JobStarted(3, "j", 1)) == JobStarted(3, "j", 1)
    assert spread.start("a", JobStarted(4, "j", 1)) is None


@pytest.mark.parametrize("first", ["a", "b"])
def test_the_gang_ends_with_rank_zeros_result_and_all_usage(first: str) -> None:
    spread = Spread("j", 1, ("a", "b"))
    ends = {"a": exited(5, result=RESULT), "b": exited(7)}
    second = "b" if first == "a" else "a"
    assert spread.end(first, ends[first]) is None
    ended = spread.end(second, ends[second])
    assert ended is not None
    assert (ended.code, ended.result) == (0, RESULT)
    assert (ended.usage.wall_us, ended.usage.cpu_us) == (7, 20)


def test_the_first_failure_is_the_reason() -> None:
    spread = Spread("j", 1, ("a", "b"))
    assert spread.end("b", exited(5, 3, reason="out of memory")) is None
    assert spread.failed
    assert spread.running == ("a",)
    ended = spread.end("a", exited(6, -15, reason="stopped"))
    assert ended is not None
    assert (ended.code, ended.reason) == (3, "on node b: out of memory")
    assert spread.end("b", exited(9, 0)) == ended.__class__(9, "j", 1, 3, None, ended.reason, ended.usage)


def test_only_a_job_that_holds_several_nodes_is_spread() -> None:
    spec = JobSpec("command", "t", "p", workers=2)
    assert spread_of(Job("j", spec, JobStatus.RUNNING, 1, nodes=("a", "a"))) is None
    assert spread_of(Job("j", spec, JobStatus.SUCCEEDED, 1, nodes=("a", "b"))) is None
    found = spread_of(Job("j", spec, JobStatus.RUNNING, 1, nodes=("a", "b"), attempt=2))
    assert found is not None
    assert (found.attempt, found.told_start) == (2, True)
