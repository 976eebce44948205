"""Captured traffic as a source: one project's, one alias's, by what clients said of the answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tokenmill.domain.calendar import DAY_US
from tokenmill.domain.errors import DataError, ResourceError
from tokenmill.domain.factory import Capture, Line, Station
from tokenmill.domain.trigger import Trigger
from tokenmill.floor.line_watch import EVERY_US, LineWatch
from tokenmill.line.intake import run
from tokenmill.line.job import StationJob
from tokenmill.line.rows import read_rows
from tokenmill.spec.capture_files import CaptureFiles

JobOf = Callable[..., StationJob]


def traffic(root: Path) -> CaptureFiles:
    files = CaptureFiles(root / "captures", "acme", "p")
    for number in range(6):
        said = [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}]
        alias = "other" if number == 5 else "desk"
        row = {"messages": said, "request": f"r{number}", "alias": alias, "at_us": number + 1}
        files.keep(number, number % 2, row)
    files.rate(1, "r1", True)
    files.rate(2, "r2", False)
    CaptureFiles(root / "captures", "acme", "q").keep(0, 0, {"messages": [], "alias": "desk"})
    return files


def answers(job_of: JobOf, **params: Any) -> set[str]:
    job = replace(job_of("intake", {"path": "capture:desk", **params}), tenant="acme", project="p")
    result = run(job)
    return {row.completion for row in read_rows(job.artifacts.path(result.outputs["rows"]))}


def test_rows_are_chosen_by_alias_and_opinion(tmp_path: Path, job_of: JobOf) -> None:
    traffic(tmp_path)
    assert answers(job_of) == {"a0", "a1", "a3", "a4"}
    assert answers(job_of, opinion="any") == {"a0", "a1", "a2", "a3", "a4"}
    assert answers(job_of, opinion="good") == {"a1"}


def test_an_erased_row_is_not_read_again(tmp_path: Path, job_of: JobOf) -> None:
    files = traffic(tmp_path)
    assert files.erase(lambda row: row["request"] == "r3") == (1, 0)
    assert answers(job_of) == {"a0", "a1", "a4"}


def test_what_is_new_since_a_run_is_counted_alike_by_intake_and_by_the_watch(
    tmp_path: Path, job_of: JobOf
) -> None:
    """Of one alias, and whatever was said: else opinions alone would start the line again and again."""
    files = traffic(tmp_path)
    path = {"path": "capture:desk", "opinion": "good"}
    stations = (Station("intake", "intake", params=path),)
    line = Line("l", "acme", "p", "base", stations, trigger=Trigger(new_rows=1))
    watch = LineWatch(tmp_path, tmp_path / "captures")
    (before,) = watch.look([line], EVERY_US)
    result = run(replace(job_of("intake", path), tenant="acme", project="p"))
    assert result.metrics["rows"] == 1
    assert (result.metrics["profile"], result.metrics["words"]) == ([*before.profile], [*before.words])
    assert sum(before.profile) == 5
    assert result.metrics["read_until_us"] == 5
    files.keep(9, 0, {"messages": [], "request": "r9", "alias": "other", "at_us": 9})
    (still,) = watch.look([line], 2 * EVERY_US)
    assert still.profile == before.profile
    files.keep(9, 0, {"messages": [], "request": "r10", "alias": "desk", "at_us": 9})
    (after,) = watch.look([line], 3 * EVERY_US)
    assert sum(after.profile) == 6
    (new,) = watch.look([line], 4 * EVERY_US, read_until_us=lambda name: 5 if name == "l" else 0)
    assert (sum(new.profile), new.since_us) == (1, 5)


def test_new_answers_start_the_line_though_old_days_go_as_fast_as_they_come(
    tmp_path: Path, job_of: JobOf
) -> None:
    """Three answers a day, kept for two days: there are never more, and each second day there are six new."""
    files = CaptureFiles(tmp_path / "captures", "acme", "p")
    assert files.admits(0, Capture(("desk",), "agreed", 2 * DAY_US))
    path = {"path": "capture:desk", "opinion": "any"}
    stations = (Station("intake", "intake", params=path),)
    line = Line("l", "acme", "p", "base", stations, trigger=Trigger(new_rows=6))
    watch = LineWatch(tmp_path, tmp_path / "captures")
    read_until_us, profile, ran = 0, [0], []
    for day in range(2, 10):
        now_us = day * DAY_US
        files.forget(now_us)
        for number in range(3):
            said = [{"role": "user", "content": f"{day} {number}"}, {"role": "assistant", "content": "so"}]
            row = {"messages": said, "request": f"r{day}-{number}", "alias": "desk", "at_us": now_us + number}
            files.keep(now_us, 0, row)
        assert len(list(files.rows())) <= 9
        (seen,) = watch.look([line], now_us, read_until_us=lambda _, read=read_until_us: read)
        assert sum(seen.profile) == 3 * (day - (ran[-1] if ran else 1))
        if sum(seen.profile) >= 6:
            result = run(replace(job_of("intake", path), tenant="acme", project="p"))
            read_until_us, profile = result.metrics["read_until_us"], result.metrics["profile"]
            ran.append(day)
    assert ran == [3, 5, 7, 9]
    assert sum(profile) == 9


def test_nothing_kept_and_too_much_are_told_apart(tmp_path: Path, job_of: JobOf) -> None:
    with pytest.raises(DataError, match="no answer of desk has been kept for acme/p yet"):
        answers(job_of)
    files = traffic(tmp_path)
    with pytest.raises(ResourceError, match="more bytes than max_bytes"):
        answers(job_of, max_bytes=64)
    assert files.erase(lambda row: row["request"] == "r1") == (1, 1)
    with pytest.raises(DataError, match="4 answers of desk are kept, and none of them has the opinion"):
        answers(job_of, opinion="good")
