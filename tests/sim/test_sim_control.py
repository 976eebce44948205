"""Three hundred seeded worlds: safety after every event, liveness once the faults have stopped.

A batch proves nothing about what never occurred in it, so each half of the seeds has to meet every kind of
event, every fault, every refusal that a check declares and every situation below.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tokenmill.control.core import step
from tokenmill.control.state import State
from tokenmill.control.told import told
from tokenmill.domain import effects as fx
from tokenmill.domain.codec import digest_of
from tokenmill.domain.events import Event
from tokenmill.domain.work import JobStatus, ReplicaStatus, RunStatus, StationStatus
from tokenmill.twin.sim import world
from tokenmill.twin.sim.batch import Lived, batch, live, summed, world_of

HALVES = (range(150), range(150, 300))
EVENTS = 300
SITUATIONS = {
    *(f"replica {status}" for status in ReplicaStatus),
    *(f"run {status}" for status in RunStatus),
    *(f"station {status}" for status in StationStatus),
    *(f"job {status}" for status in JobStatus if status is not JobStatus.STOPPING),
    *(f"job stopping {stop}" for stop in ("cancelled", "timed_out", "node_lost", "preempted")),
    "job tried again",
    "flip",
    "cordoned",
    "node tested",
    "slow node out",
    "slow, but needed",
    "within a cap",
    "within a ramp",
    "held by a ramp",
    "given up",
    "rolled back",
    "scaled up",
    "drained to make room",
    "run paused",
    "taken over",
    "own model served",
    "canary",
    "canary passed",
    "canary sent back",
}


@pytest.mark.parametrize("seeds", HALVES, ids=["first", "second"])
def test_worlds(seeds: range) -> None:
    lived: list[Lived] = []
    found = batch(seeds, EVENTS, lived.append)
    assert not found.failures, [f"tokenmill sim --seed {one.seed}: {one.error}" for one in found.failures]
    assert not found.events_missing
    assert not found.faults_missing
    assert not found.refusals_missing
    assert not SITUATIONS - set().union(*(one.reached for one in lived))


def test_every_step_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentences are made in the controller's loop: none of them may fail, whatever happened."""
    said: list[str] = []

    def telling(before: State, event: Event) -> tuple[State, tuple[fx.Effect, ...]]:
        after, effects = step(before, event)
        if after is not before:
            said.extend(told(before, event, after, effects))
        return after, effects

    monkeypatch.setattr(world, "step", telling)
    for seed in range(20):
        assert not live(seed, EVENTS).error
    for part in (
        "starts on",
        "drains",
        "told to stop: preempted",
        "waits again",
        "tried again",
        "traffic of",
    ):
        assert any(part in sentence for sentence in said), part


def test_thorough_worlds_are_the_same_worlds() -> None:
    for seed in range(300, 312):
        quick, thorough = live(seed, EVENTS), live(seed, EVENTS, thorough=True)
        assert not thorough.error, f"tokenmill sim --seed {seed} --thorough: {thorough.error}"
        assert quick == thorough


def test_what_a_sample_finds_is_traced_to_its_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that goes wrong once and stays so: the sample sees it later, the second life at once."""
    from tokenmill.twin.sim import checkers

    calls = {"index": 0}

    def broken(*parts: object) -> object:
        calls["index"] += 1
        return None

    monkeypatch.setattr(checkers, "index_state", broken)
    found = live(3, EVENTS)
    assert "the index is what it would be from scratch" in found.error
    assert (found.events, calls["index"]) == (1, 2), "seen after the first sample, then after the first event"


@pytest.mark.parametrize(
    ("where", "wrong", "error"),
    [
        ("control.draft.taken", lambda room, lease: room, "the index is what it would be"),
        ("control.draft.given_back", lambda room, lease, node: room, "the index is what it would be"),
        ("control.placing.steeper", lambda *_: ("", ""), "rises by"),
        ("control.leases.ChargeWork", lambda *_: None, "every lease group that ends is charged"),
        ("control.schedule.StartJob", lambda *_: fx.WakeAt(0), "is stuck"),
    ],
)
def test_a_broken_core_is_found(
    monkeypatch: pytest.MonkeyPatch, where: str, wrong: object, error: str
) -> None:
    """A checker that looks only at what changed still sees what it is there for."""
    monkeypatch.setattr(f"tokenmill.{where}", wrong)
    found = [one.error for one in batch(range(16)).failures]
    assert any(error in text for text in found), found


@pytest.mark.parametrize("when", ["before_commit", "after_commit"])
def test_every_single_write_may_fail(when: str) -> None:
    """The first write of the journal fails, then the second, until a run meets no failure any more."""
    number = 0
    while True:
        number += 1
        lived = live(11, 40, (number, when))
        assert not lived.error, f"write {number} failed {when}: {lived.error}"
        if number > lived.events + 1:
            break
    assert number > 20


def test_what_breaks_is_reported_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenmill.twin.sim.checkers.Checkers.gangs_whole", lambda *_: 1 / 0)
    found = batch([3], 20)
    assert [(one.seed, one.error.split(":")[0]) for one in found.failures] == [(3, "ZeroDivisionError")]
    assert found.events_missing, "a batch of one does not meet everything, and says so"
    assert summed([]).worlds == 0


@pytest.mark.parametrize("hash_seed", ["0", "1", "42", "4294967295"])
def test_same_under_every_hash_seed(hash_seed: str) -> None:
    here = digest_of([repr(event) for event in world_of(7, EVENTS).journal])
    code = (
        "from tokenmill.twin.sim.batch import world_of; from tokenmill.domain.codec import digest_of;"
        f"print(digest_of([repr(event) for event in world_of(7, {EVENTS}).journal]))"
    )
    env = {**os.environ, "PYTHONHASHSEED": hash_seed}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == here
