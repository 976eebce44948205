"""A station that is a Python function of yours: ``run(station) -> {output: path}``.

The function gets a ``Station``: paths of what earlier stations made, a work folder, its settings and a way
to tell progress. Its module is looked for beside the factory file first, then among installed packages.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.domain.errors import DataError
from tokenmill.domain.stations import PythonParams
from tokenmill.domain.work import JobResult
from tokenmill.line.command import stored
from tokenmill.line.job import StationJob


@dataclass(frozen=True, slots=True)
class Station:
    """What the function may use. ``work`` outlives an attempt, so a killed one can go on from what it
    holds.
    """

    settings: Mapping[str, Any]
    work: Path
    job: StationJob

    def input(self, name: str) -> Path:
        """What an earlier station put out as ``name``. Raises ``DataError`` when none did."""
        return self.job.input_path(name)

    def progress(self, done: float, total: float, message: str) -> None:
        self.job.report(done, total, "steps", message)


def run(job: StationJob) -> JobResult:
    """Call the function and keep what it wrote. Raises ``DataError`` for an entry that is not there."""
    params = job.params
    assert isinstance(params, PythonParams)
    module_name, _, name = params.entry.partition(":")
    sys.path.insert(0, str(job.factory_dir))
    try:
        entry = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"there is no {params.entry}: {error}",
            where=str(job.factory_dir),
            expected="a function of a module beside the factory file, or of an installed package",
        ) from error
    finally:
        sys.path.remove(str(job.factory_dir))
    outputs = entry(Station(json.loads(params.settings or "{}"), job.work, job))
    if not isinstance(outputs, Mapping) or not all(isinstance(k, str) for k in outputs):
        raise DataError(
            f"{params.entry} returned {type(outputs).__name__}", expected="a mapping of output names to paths"
        )
    return JobResult(stored(job, {key: Path(value) for key, value in outputs.items()}))
