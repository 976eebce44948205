"""Captured traffic as a source: one project's, one alias's, by what clients said of the answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tokenmill.domain.errors import DataError, ResourceError
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
    files.rate("r1", True)
    files.rate("r2", False)
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


def test_nothing_kept_and_too_much_are_told_apart(tmp_path: Path, job_of: JobOf) -> None:
    with pytest.raises(DataError, match="no answer of desk has been kept for acme/p yet"):
        answers(job_of)
    files = traffic(tmp_path)
    with pytest.raises(ResourceError, match="more bytes than max_bytes"):
        answers(job_of, max_bytes=64)
    files.erase(lambda row: row["request"] == "r1")
    with pytest.raises(DataError, match="4 answers of desk are kept, and none of them has the opinion"):
        answers(job_of, opinion="good")
