"""Events about runs: their order and form, a file, a receiver that is away."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "control"))

from control_mill import SMALL, Mill, factory
from test_control_runs import EVEN, GOOD, drive

from tokenmill.control.state import State
from tokenmill.domain import events as ev
from tokenmill.domain.factory import Deployment
from tokenmill.floor.openlineage import WAITING_MOST, LineageSink, lineage_events


class Watched(Mill):
    """A mill whose every step is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[dict[str, Any]] = []
        self.steps: list[tuple[State, State]] = []

    def tell(self, kind: Any, *args: Any, **named: Any) -> State:
        before = self.state
        after = super().tell(kind, *args, **named)
        self.told += lineage_events(before, after, self.now)
        self.steps.append((before, after))
        return after


def ran(pairs: dict[str, int] = GOOD) -> Watched:
    mill = Watched()
    mill.tell(ev.ControllerStarted, 1)
    mill.join(cpu=16_000)
    mill.apply(factory(Deployment("tuned", line="tickets", resources=SMALL)))
    mill.bring()
    drive(mill, "run-1", pairs)
    return mill


def test_a_run_is_told_from_its_start_to_its_end() -> None:
    told = ran().told
    assert [(e["eventType"], e["job"]["name"]) for e in told] == [
        ("START", "tickets"),
        ("START", "tickets.intake"),
        ("COMPLETE", "tickets.intake"),
        ("START", "tickets.tune"),
        ("COMPLETE", "tickets.tune"),
        ("START", "tickets.evaluate"),
        ("COMPLETE", "tickets.evaluate"),
        ("COMPLETE", "tickets.gate"),
        ("START", "tickets.pack"),
        ("COMPLETE", "tickets.pack"),
        ("COMPLETE", "tickets"),
    ]
    assert len({e["run"]["runId"] for e in told}) == 6
    for event in told:
        uuid.UUID(event["run"]["runId"])
        assert event["job"]["namespace"] == "tokenmill://mill"
        assert event["schemaURL"].endswith("RunEvent")
    tuned = told[4]
    assert tuned["outputs"][0]["name"] == "sha256:adapter1"
    assert tuned["inputs"][0]["name"] == "sha256:rows1"
    assert tuned["run"]["facets"]["parent"]["run"]["runId"] == told[0]["run"]["runId"]


def test_a_gate_that_says_no_is_a_failed_station_of_a_complete_run() -> None:
    told = ran(EVEN).told
    assert [(e["eventType"], e["job"]["name"]) for e in told[-2:]] == [
        ("FAIL", "tickets.gate"),
        ("COMPLETE", "tickets"),
    ]
    assert "luck" in told[-2]["run"]["facets"]["errorMessage"]["message"]


def test_events_go_to_a_file_in_order(tmp_path: Path) -> None:
    async def work() -> None:
        mill = ran()
        sink = LineageSink(f"file:{tmp_path / 'lineage.jsonl'}")
        for before, after in mill.steps:
            sink.observe(before, after, mill.now)
        sending = asyncio.create_task(sink.send_forever())
        while not (tmp_path / "lineage.jsonl").exists() or sink._waiting:
            await asyncio.sleep(0.01)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    asyncio.run(work())
    lines = (tmp_path / "lineage.jsonl").read_text().splitlines()
    assert [json.loads(line)["eventType"] for line in lines][:2] == ["START", "START"]


def test_a_receiver_that_is_away_costs_events_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        mill = ran()
        sink = LineageSink("http://127.0.0.1:9/lineage")
        before, after = next((b, a) for b, a in mill.steps if not b.runs and a.runs)
        for _ in range(WAITING_MOST):
            sink.observe(before, after, mill.now)
        assert sink.lost > 0
        assert len(sink._waiting) == WAITING_MOST

    asyncio.run(work())
    assert not LineageSink("")._waiting
