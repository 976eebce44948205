"""When to save and when to stop: every rank of a gang must come to the same, or they wait for each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tokenmill.engine.gang import Gang
from tokenmill.engine.tuning import TrainRequest

checkpoints = pytest.importorskip("tokenmill.engine.checkpoints", reason="the tune extra is not installed")


def watch_of(rank: int, folder: Path, max_seconds: float = 0.0) -> Any:
    request = TrainRequest(folder, folder, folder, folder, batch=2, save_every_s=5.0, max_seconds=max_seconds)
    watch = checkpoints.Watch(request, lambda _: None, "mark", [10] * 40, Gang(rank, 2, 0))
    watch.begin(100.0)
    return watch


def test_ranks_agree_when_to_save_though_only_the_first_writes(tmp_path: Path) -> None:
    first, second = watch_of(0, tmp_path), watch_of(1, tmp_path)
    saves = []
    for step in range(1, 21):
        now_s = 100.0 + 2 * step
        decided = first.stepped(step, 1.0, now_s)
        assert decided == second.stepped(step, 1.0, now_s)
        if decided[0]:
            saves.append(step)
            made = tmp_path / f"checkpoint-{step}"
            made.mkdir()
            first.saved(made, now_s + 7.5)
    assert saves == [3, 7, 11, 15, 19]


def test_a_slow_save_is_not_followed_by_another_at_once(tmp_path: Path) -> None:
    watch = watch_of(0, tmp_path)
    assert watch.stepped(1, 1.0, 106.0) == (True, False)
    assert watch.stepped(2, 1.0, 130.0) == (False, False)
    assert watch.stepped(3, 1.0, 136.0) == (True, False)


def test_ranks_agree_to_stop_at_the_limit(tmp_path: Path) -> None:
    for rank in (0, 1):
        watch = watch_of(rank, tmp_path, max_seconds=10.0)
        assert watch.stepped(1, 1.0, 104.0) == (False, False)
        assert watch.stepped(2, 1.0, 111.0) == (True, True)


def test_the_interval_may_change_while_it_trains(tmp_path: Path) -> None:
    told: list[Any] = []
    pace = tmp_path / "pace.json"
    request = TrainRequest(tmp_path, tmp_path, tmp_path, tmp_path, batch=2, save_every_s=5.0, pace=pace)
    watch = checkpoints.Watch(request, told.append, "mark", [10] * 40, Gang(0, 1, 0))
    watch.begin(100.0)
    assert watch.pace_s(100.0) == 5.0
    pace.write_text('{"checkpoint_us": 30000000}')
    assert watch.pace_s(100.5) == 5.0, "it is looked at once a second"
    watch.every_s = watch.pace_s(102.0)
    assert watch.stepped(1, 1.0, 120.0) == (False, False)
    assert watch.stepped(2, 1.0, 131.0) == (True, False)
    made = tmp_path / "checkpoint-2"
    made.mkdir()
    watch.save_from_s = 131.0
    watch.saved(made, 133.5)
    assert told[-1].save_us == 2_500_000
    assert told[-1].saved_us > 0
    pace.write_text("broken")
    assert watch.pace_s(140.0) == 30.0
