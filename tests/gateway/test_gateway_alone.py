"""The memory of a gateway process that shares its port with none: its meters, and their file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tokenmill.gateway import shared
from tokenmill.gateway.alone import OwnMeters
from tokenmill.gateway.shared import SharedFile
from tokenmill.policy.admit import Meter


def opened(folder: Path, turns: list[Callable[[], None]]) -> tuple[SharedFile, OwnMeters]:
    file = SharedFile(folder / "meters", 0, 1)
    return file, OwnMeters(file, "meter ", turns.append)


def test_what_changed_is_written_once_for_all_of_a_turn_and_read_by_the_next_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[Callable[[], None]] = []
    file, meters = opened(tmp_path, turns)
    assert meters.get("acme") == Meter()
    for number in range(1, 101):
        meters.set("acme", Meter(number, 2, 3, 4, 5, 6, 7, 8))
    assert meters.get("acme").open == 100
    assert len(turns) == 1, "one turn, one write"
    written: list[int] = []
    put = SharedFile.put_alone
    monkeypatch.setattr(SharedFile, "put_alone", lambda *args: (written.append(args[1]), put(*args)))
    turns.pop()()
    assert len(written) == 1
    meters.set("acme", Meter(7, 2, 3, 4, 5, 6, 7, 8))
    meters.close()
    assert len(written) == 2, "what the last turn changed is written at the end"
    turns.pop()()
    file.close()
    again, known = opened(tmp_path, turns)
    assert known.get("acme") == Meter(7, 2, 3, 4, 5, 6, 7, 8)
    again.close()


def test_a_file_that_was_compacted_has_the_meters_that_are_set_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "NAMES_MOST", 4)
    turns: list[Callable[[], None]] = []
    file, meters = opened(tmp_path, turns)
    for name in ("gone", "also-gone", "stays"):
        meters.set(name, Meter(day=1))
    meters.flush()
    file.compact(["meter stays"])
    meters.set("stays", Meter(day=2))
    meters.set("new", Meter(day=3))
    meters.flush()
    file.close()
    _, known = opened(tmp_path, turns)
    assert [known.get(name).day for name in ("stays", "new", "gone")] == [2, 3, 0]


def test_a_meter_that_was_forgotten_is_still_in_the_file(tmp_path: Path) -> None:
    turns: list[Callable[[], None]] = []
    _, meters = opened(tmp_path, turns)
    meters.set("acme", Meter(day_tokens=9))
    meters.delete("acme")
    assert list(meters.items()) == []
    turns.pop()()
    assert meters.get("acme") == Meter(day_tokens=9), "who is taken out and put in again has no new budget"
