"""A station's job as its process sees it: what to do, where to find things, how to report. Runs no station.

``job.json`` comes in, ``progress.jsonl`` grows, and ``result.json`` or ``error.json`` ends it (atomically).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tokenmill.domain.codec import from_plain, to_plain
from tokenmill.domain.errors import DataError
from tokenmill.domain.stations import StationParams, station_params
from tokenmill.domain.work import JobResult
from tokenmill.spec.capture_files import CaptureFiles
from tokenmill.spec.files import write_atomically
from tokenmill.spec.paths import Paths
from tokenmill.store.artifacts import Artifacts

REPORT_SECONDS = 0.25  # between two lines of progress, unless the last one
MAX_PROGRESS_LINES = 20_000


@dataclass(slots=True)
class StationJob:
    """One attempt at one station. ``work`` outlives the attempt; ``cache`` outlives the job."""

    id: str
    attempt: int
    station: str
    kind: str
    line: str
    run: str
    params: StationParams
    settings: Mapping[str, Any]  # the parameters as they were written
    base: Mapping[str, str]
    champion: Mapping[str, Any] | None
    inputs: Mapping[str, JobResult]
    directory: Path
    factory_dir: Path
    artifacts: Artifacts
    tenant: str = ""
    project: str = ""
    rank: int = 0  # of this process in the job's gang; only the first one reports
    _last_report: float = 0.0
    _lines: int = 0
    _saved_us: int = 0  # when the checkpoint was made that was told last
    seen: dict[str, str] = field(default_factory=dict)  # inputs that the station took: name -> digest

    @property
    def work(self) -> Path:
        path = self.directory / "work"
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def captures(self) -> CaptureFiles:
        """Traffic that the line's own project agreed to have kept."""
        return CaptureFiles(Paths(self.artifacts.root.parent).captures, self.tenant, self.project)

    @property
    def cache(self) -> Path:
        path = self.artifacts.root.parent / "cache"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def threads(self, wanted: int) -> int:
        """CPU threads: ``wanted``, or all cores that the floor lets this process run on."""
        return wanted or len(os.sched_getaffinity(0))

    def output_digest(self, name: str) -> str:
        """Digest of what an earlier station put out as ``name``; empty when none did."""
        found = {r.outputs[name] for r in self.inputs.values() if name in r.outputs}
        if len(found) > 1:
            raise DataError(
                f"station {self.station!r} has {len(found)} inputs named {name!r}",
                expected="one",
                fix="Let each line have one station of each kind, or correct 'needs'.",
            )
        if not found:
            found = {str(s["outputs"][name]) for s in self.trail() if name in s["outputs"]}
        if len(found) != 1:
            return ""
        digest = found.pop()
        self.seen[name] = digest
        return digest

    def input_path(self, name: str) -> Path:
        """Path of what an earlier station put out as ``name``. Raises ``DataError`` when none did."""
        digest = self.output_digest(name)
        if not digest:
            raise DataError(
                f"station {self.station!r} ({self.kind}) needs {name!r}, which none of its inputs has",
                expected=f"one of {sorted(self.inputs)} to put out {name!r}",
                fix="Add the station that makes it to 'needs' in the factory file.",
            )
        return self.artifacts.path(digest)

    def trail(self) -> list[dict[str, Any]]:
        """Every station before this one, in the order in which they ran, as far as the inputs tell."""
        stations: dict[str, dict[str, Any]] = {}
        for name in sorted(self.inputs):
            for entry in self.inputs[name].evidence.get("trail", ()):
                stations.setdefault(entry["station"], dict(entry))
        return sorted(stations.values(), key=lambda s: (s["ended_us"], s["station"]))

    def report(
        self, done: float, total: float, unit: str, message: str, metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Add to ``progress.jsonl``: at most four a second, and always the last and each checkpoint."""
        if self.rank:
            return
        now = time.monotonic()
        saved_us = (metrics or {}).get("saved_us", self._saved_us)
        last = done >= total or saved_us != self._saved_us  # a checkpoint is always told
        self._saved_us = saved_us
        if not last and (self._lines >= MAX_PROGRESS_LINES or now - self._last_report < REPORT_SECONDS):
            return
        self._last_report, self._lines = now, self._lines + 1
        entry = {
            "at_us": time.time_ns() // 1000,
            "done": done,
            "total": total,
            "unit": unit,
            "message": message,
            "metrics": dict(metrics or {}),
        }
        with (self.directory / "progress.jsonl").open("ab") as file:
            file.write(msgspec.json.encode(entry) + b"\n")


def read_job(directory: Path) -> StationJob:
    """Read ``job.json``. Raises ``DataError`` when it is not there or does not fit."""
    path = directory / "job.json"
    try:
        body = msgspec.json.decode(path.read_bytes())
        spec = body["spec"]
        params = spec["params"]
        return StationJob(
            id=body["job"],
            attempt=body["attempt"],
            station=params["station"],
            kind=params["kind"],
            line=params["line"],
            run=params["run"],
            params=station_params(params["kind"], params.get("params", {})),
            settings=params.get("params", {}),
            base=params.get("base") or {},
            champion=params.get("champion"),
            inputs={k: from_plain(v, JobResult) for k, v in params.get("inputs", {}).items()},
            directory=directory,
            factory_dir=Path(params.get("factory_dir") or directory),
            artifacts=Artifacts(Path(body["artifacts"])),
            tenant=spec.get("tenant", ""),
            project=spec.get("project", ""),
            rank=int(os.environ.get("RANK") or 0),
        )
    except FileNotFoundError as error:
        raise DataError("there is no job here", where=str(path), expected="job.json") from error
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"the job cannot be read: {error!r}", where=str(path), expected="job.json as the floor writes it"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON so that a reader sees all of it or nothing."""
    write_atomically(path, msgspec.json.encode(to_plain(value)))
