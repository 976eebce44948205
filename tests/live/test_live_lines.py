"""Lines of real jobs on this machine: two that want the same accelerator, and one whose processes are killed.

Only real processes show that what waits gets the device when the one before has really gone, and that no
station's command runs twice at once, or again once it was done, whoever dies when.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from live_bed import FACTORY, LiveFactory, check_ended

from tokenmill.domain.factory import Line, Resources, Station

pytestmark = [pytest.mark.live, pytest.mark.model, pytest.mark.timeout(240)]

Until = Callable[..., None]

ONE_GPU = """
class NVMLError(Exception): ...
class Memory: total = 80 << 30
def nvmlInit(): ...
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetName(handle): return "NVIDIA H100 80GB HBM3"
def nvmlDeviceGetMemoryInfo(handle): return Memory
def nvmlDeviceGetTotalEnergyConsumption(handle): return 0
"""
"""Stands in for the driver's library: the floor then gives this one device out as it would a real one."""


def line_of(
    name: str, script: str, stations: tuple[str, ...], resources: Resources, priority: int = 0
) -> Line:
    """Commands one after the other. ``$1`` is ``LINE.STATION``; what each does it writes to ``effects``."""
    made = []
    for number, station in enumerate(stations):
        params = {"command": ["/bin/sh", "-c", script, "sh", f"{name}.{station}"]}
        made.append(Station(station, "command", stations[max(0, number - 1) : number], params, resources))
    return Line(name, "acme", "default", "smol", tuple(made), priority)


def effects(live: LiveFactory) -> list[str]:
    path = live.file.parent / "effects"
    return path.read_text().splitlines() if path.exists() else []


def test_lines_that_want_one_accelerator_take_turns(
    live: LiveFactory, until: Until, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The higher priority first, which takes the device away; else who has waited longest."""
    (tmp_path / "nvml").mkdir()
    (tmp_path / "nvml" / "pynvml.py").write_text(ONE_GPU)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'nvml'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    script = 'echo "begin $1 on $CUDA_VISIBLE_DEVICES" >> {factory}/effects; '
    script += 'until [ -e {factory}/go ]; do sleep 0.05; done; echo "end $1" >> {factory}/effects'
    gpu = Resources(accelerators=1)
    lines = [line_of(name, script, ("one", "two"), gpu) for name in ("first", "second")]
    urgent = line_of("urgent", script, ("one", "two"), gpu, priority=1)
    live.up(replace(FACTORY, deployments=(), lines=(*lines, urgent)))
    runs = {"first": live.begin("first")}
    until(lambda: effects(live) == ["begin first.one on 0"])
    runs["second"] = live.begin("second")
    assert_waits_for(live, runs["second"], f"(first/one, {runs['first']})")
    runs["urgent"] = live.begin("urgent")
    until(lambda: effects(live)[1:] == ["begin urgent.one on 0"])
    for name in ("first", "second"):
        assert_waits_for(live, runs[name], f"(urgent/one, {runs['urgent']})")
    (live.file.parent / "go").touch()
    for run in runs.values():
        found = live.ended(run)
        assert found["status"] == "succeeded", found["reason"]
    order = ("urgent.one", "urgent.two", "first.one", "second.one", "first.two", "second.two")
    whole = [text for name in order for text in (f"begin {name} on 0", f"end {name}")]
    assert effects(live) == ["begin first.one on 0", *whole]
    check_ended(live)


def assert_waits_for(live: LiveFactory, run: str, holder: str) -> None:
    """``tokenmill why`` of a run that waits names who has the device."""
    found = json.loads(live.tokenmill("why", run, "--json"))
    assert [one["reason"].split(":")[0] for one in found["candidates"]] == ["running", "waiting"]
    assert "no node holds even one of its workers now" in found["reasons"]
    (named,) = [change for change in found["changes"] if change.startswith("work that holds room ends: ")]
    assert named.endswith(holder)


STEPS = ("one", "two", "three", "four", "five")
MOVES = ("controller", "one", "jobs", "all")
HITS_MOST = 2
"""Of one job; it has three attempts."""


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_station_is_done_once_whoever_is_killed(live: LiveFactory, until: Until, seed: int) -> None:
    """Controller, gateway and any process of a job die at random; ``up`` is called again each time.

    The first job's first attempt ends only when killed, which is the first move; the last one kills all.
    """
    script = 'echo "begin $1 $TOKENMILL_JOB_ATTEMPT" >> {factory}/effects; '
    script += '[ "$1 $TOKENMILL_JOB_ATTEMPT" = "steps.one 1" ] && sleep 200; sleep 0.4; '
    script += 'echo "end $1 $TOKENMILL_JOB_ATTEMPT" >> {factory}/effects'
    live.up(replace(FACTORY, deployments=(), lines=(line_of("steps", script, STEPS, Resources()),)))
    run = live.begin("steps")
    until(lambda: bool(effects(live)))
    rng, hits, restarts = random.Random(seed), Counter[str](), 0
    for what in ("jobs", *rng.choices(MOVES, k=4), "all"):
        time.sleep(rng.uniform(0.0, 0.8))
        kill_some(live, what, rng, hits)
        if live.controller is not None and not live.controller.lives():
            time.sleep(rng.uniform(0.0, 0.6))
            live.up()
            restarts += 1
    found = live.ended(run)
    assert found["status"] == "succeeded", found["reason"]
    assert hits, "no job was hit"
    assert restarts, "no controller was killed"

    said = [line.split() for line in effects(live)]
    seen = [(STEPS.index(name.removeprefix("steps.")), int(attempt), what) for what, name, attempt in said]
    assert seen == sorted(set(seen)), "something ran twice, beside another, or again after it was done"
    for number, station in enumerate(found["stations"]):
        attempts = live.api("GET", f"/api/jobs/{station['job']}")["attempt"]
        begun = [attempt for step, attempt, what in seen if (step, what) == (number, "begin")]
        assert begun[-1] == attempts
        assert (number, attempts, "end") in seen
        assert attempts - len(begun) <= attempts - 1 <= hits[station["job"]], "an attempt was lost to nobody"
    check_ended(live)


def kill_some(live: LiveFactory, what: str, rng: random.Random, hits: Counter[str]) -> None:
    """SIGKILL to the controller, to one other process, to all jobs, or to all that there is."""
    marked = {pid: name for pid, name in live.left().items() if hits[name] < HITS_MOST}
    jobs = [pid for pid, name in marked.items() if name.startswith("j-")]
    victims = {"controller": [], "one": [rng.choice(sorted(marked))] if marked else [], "jobs": jobs}
    if what in ("controller", "all"):
        live.kill_controller()
    chosen = victims.get(what, list(marked))
    hits.update({marked[pid] for pid in chosen if pid in jobs})
    for pid in chosen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
