"""Captured traffic as a source: one project's, one alias's, by what clients said of the answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tokenmill.domain.errors import DataError, ResourceError
from tokenmill.domain.factory import Line, Station
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
        row = {"messages": said, "request": f"r{number}", "alias": "other" if number == 5 else "desk"}
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
    assert files.erase(lambda row: row["request"] == "r3") == 1
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
    files.keep(9, 0, {"messages": [], "request": "r9", "alias": "other"})
    (still,) = watch.look([line], 2 * EVERY_US)
    assert still.profile == before.profile
    files.keep(9, 0, {"messages": [], "request": "r10", "alias": "desk"})
    (after,) = watch.look([line], 3 * EVERY_US)
    assert sum(after.profile) == 6


def test_nothing_kept_and_too_much_are_told_apart(tmp_path: Path, job_of: JobOf) -> None:
    with pytest.raises(DataError, match="no answer of desk has been kept for acme/p yet"):
        answers(job_of)
    files = traffic(tmp_path)
    with pytest.raises(ResourceError, match="more bytes than max_bytes"):
        answers(job_of, max_bytes=64)
    files.erase(lambda row: row["request"] == "r1")
    with pytest.raises(DataError, match="4 answers of desk are kept, and none of them has the opinion"):
        answers(job_of, opinion="good")
