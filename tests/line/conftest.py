"""A station's job in a temporary directory, for stations that are called in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tokenmill.domain.codec import to_plain
from tokenmill.domain.work import JobResult
from tokenmill.line.job import StationJob, read_job


@pytest.fixture
def job_of(tmp_path: Path) -> Callable[..., StationJob]:
    """Makes jobs: ``job_of(kind, params, inputs={station: JobResult}, base=..., champion=...)``."""

    def make(
        kind: str, params: Mapping[str, Any], inputs: Mapping[str, JobResult] | None = None, **more: Any
    ) -> StationJob:
        directory = tmp_path / "jobs" / kind
        directory.mkdir(parents=True, exist_ok=True)
        body = {
            "job": f"j-{kind}",
            "attempt": 1,
            "spec": {
                "params": {
                    "station": kind,
                    "kind": kind,
                    "line": "tickets",
                    "run": "run-000001",
                    "params": dict(params),
                    "base": {},
                    "champion": None,
                    "inputs": {k: to_plain(v) for k, v in (inputs or {}).items()},
                    "factory_dir": str(tmp_path),
                    **more,
                }
            },
            "artifacts": str(tmp_path / "artifacts"),
            "dir": str(directory),
        }
        (directory / "job.json").write_text(json.dumps(body))
        return read_job(directory)

    return make
