"""Fifty seeded worlds: safety after every event, liveness once the faults have stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sim_world import World

from tokenmill.domain.codec import EVENT_TYPES, digest_of
from tokenmill.domain.work import JobStatus, ReplicaStatus, RunStatus, StationStatus

SEEDS = range(50)
EVENTS = 400
LIVED: dict[int, World] = {}
SITUATIONS = {
    *(f"replica {status}" for status in ReplicaStatus),
    *(f"run {status}" for status in RunStatus),
    *(f"station {status}" for status in StationStatus),
    *(f"job {status}" for status in JobStatus if status is not JobStatus.STOPPING),
    *(f"job stopping {stop}" for stop in ("cancelled", "timed_out", "node_lost")),
    "job tried again",
    "flip",
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


def live(seed: int) -> World:
    world = World(seed)
    try:
        world.run(EVENTS)
        world.settle()
    except BaseException as error:
        error.add_note(f"seed {seed}, after {len(world.journal)} events")
        raise
    return world


@pytest.mark.parametrize("seed", SEEDS)
def test_world(seed: int) -> None:
    LIVED[seed] = live(seed)


def test_every_event_kind_changed_something() -> None:
    counts = dict.fromkeys(EVENT_TYPES, 0)
    for seed in SEEDS:
        for kind, count in (LIVED.get(seed) or live(seed)).seen.items():
            counts[kind] += count
    assert not [kind for kind, count in counts.items() if count == 0], counts


def test_every_situation_came_up() -> None:
    reached = set().union(*((LIVED.get(seed) or live(seed)).checkers.reached for seed in SEEDS))
    assert not SITUATIONS - reached


@pytest.mark.parametrize("hash_seed", ["0", "1", "42", "4294967295"])
def test_same_under_every_hash_seed(hash_seed: str) -> None:
    here = digest_of([repr(event) for event in live(7).journal])
    code = (
        "from test_sim_control import live; from tokenmill.domain.codec import digest_of;"
        "print(digest_of([repr(event) for event in live(7).journal]))"
    )
    env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parent)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == here
