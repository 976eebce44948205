"""One run as people and the API read it: its stations with progress and time to go, and its verdict.

A pure function of the state and the last progress lines; stations that are still to come are listed too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenmill.control.state import State
from tokenmill.control.why_waiting import Briefly
from tokenmill.domain.codec import to_plain
from tokenmill.domain.errors import NotFoundError
from tokenmill.domain.factory import Line
from tokenmill.domain.work import JobStatus, Run, StationState, StationStatus

Progress = Mapping[str, Mapping[str, Any]]


def run_view(state: State, progress: Progress, run_id: str, now_us: int) -> dict[str, Any]:
    """The whole run. Raises ``NotFoundError``."""
    run = state.runs.get(run_id)
    if run is None:
        raise NotFoundError(
            f"there is no run {run_id!r}",
            expected=f"one of {', '.join(sorted(state.runs)[-8:])}" if state.runs else "a run; there is none",
            fix="tokenmill runs",
        )
    line = state.index.lines.get(run.line)
    kinds = {station.name: station.kind for station in line.stations} if line else {}
    end_us = run.ended_us or now_us
    usual = usual_seconds(state, run)
    stations = [
        {**_station(state, s, kinds.get(s.name, ""), progress, now_us), "usual_s": usual.get(s.name, 0.0)}
        for s in run.stations
    ]
    return {
        "id": run.id,
        "line": run.line,
        "tenant": line.tenant if line else "",
        "project": line.project if line else "",
        "base": line.base if line else "",
        "status": run.status.value,
        "reason": run.reason,
        "by": run.by,
        "force": run.force,
        "submitted_us": run.submitted_us,
        "ended_us": run.ended_us,
        "seconds": (end_us - run.submitted_us) / 1e6,
        "release": run.release,
        "serving": _serving(state, run.release),
        "stations": stations,
        "paused": run.paused,
        "parent": run.parent,
        "eta_s": 0.0 if run.status.ended or run.paused else _left(stations),
        "verdict": verdict_of(state, run),
        "energy_mj": sum(s.usage.energy_mj for s in run.stations if s.status is not StationStatus.REUSED),
    }


def usual_seconds(state: State, run: Run) -> dict[str, float]:
    """How long each station took when this line last did it: the estimate until it says more itself."""
    found: dict[str, float] = {}
    for other in sorted(state.runs.values(), key=lambda r: (r.submitted_us, r.id)):
        if other.line == run.line and other.id != run.id:
            for station in other.stations:
                if station.status is StationStatus.DONE:
                    found[station.name] = (station.ended_us - station.started_us) / 1e6
    return found


def _left(stations: Sequence[Mapping[str, Any]]) -> float:
    """Seconds until the run may end, as far as that is known; 0 when it is not."""
    left = 0.0
    for station in stations:
        if station["status"] == "running":
            left += station["eta_s"] or max(0.0, station["usual_s"] - station["seconds"])
        elif station["status"] == "waiting":
            left += station["usual_s"]
    return left


def line_view(state: State, progress: Progress, line: Line, now_us: int) -> dict[str, Any]:
    """A line with its newest run, or its stations as still waiting when it never ran."""
    runs = [run for _, run in sorted(state.runs.items()) if run.line == line.name]
    last = run_view(state, progress, runs[-1].id, now_us) if runs else None
    waiting = [{"name": s.name, "kind": s.kind, "status": "waiting"} for s in line.stations]
    return {
        "name": line.name,
        "tenant": line.tenant,
        "project": line.project,
        "base": line.base,
        "runs": len(runs),
        "last_run": last,
        "stations": last["stations"] if last else waiting,
    }


def run_row(state: State, run: Run, now_us: int) -> dict[str, Any]:
    """A run as one row of a list."""
    return {
        "id": run.id,
        "line": run.line,
        "status": run.status.value,
        "reason": run.reason,
        "submitted_us": run.submitted_us,
        "ended_us": run.ended_us,
        "seconds": ((run.ended_us or now_us) - run.submitted_us) / 1e6,
        "release": run.release,
        "verdict": verdict_of(state, run),
    }


def verdict_of(state: State, run: Run) -> dict[str, Any] | None:
    """What the gate said, as the release keeps it or else as the gate's station does, and against whom.

    ``reference`` is base or champion: the one whose figures the verdict shows.
    """
    release = state.releases.get(run.release) if run.release else None
    if release is not None and release.verdict is not None:
        plain: dict[str, Any] = to_plain(release.verdict)
        return {**plain, "reference": _reference(run, release.verdict.reference_milli)}
    for station in run.stations:
        evidence = station.result.evidence if station.result else {}
        if {"passed", "reasons", "difference_milli"} <= evidence.keys():
            return {**evidence, "reference": _reference(run, evidence.get("reference_milli", 0))}
    return None


def _reference(run: Run, milli: int) -> str:
    """The subject of the evaluation that had this share of right answers; the champion when both had."""
    for station in run.stations:
        subjects = station.result.evidence.get("subjects", {}) if station.result else {}
        champion = subjects.get("champion")
        if champion and champion.get("correct_milli") == milli:
            return "champion"
    return "base"


def eta_us(progress: Mapping[str, Any], started_us: int) -> int:
    """Microseconds to go: what the station says itself, else when its pace holds; 0 when unknown."""
    said = (progress.get("metrics") or {}).get("eta_s")
    if isinstance(said, int | float) and said > 0:
        return int(said * 1e6)
    done, total = float(progress.get("done") or 0), float(progress.get("total") or 0)
    at_us = int(progress.get("at_us") or 0)
    if done <= 0 or total <= done or not started_us or at_us <= started_us:
        return 0
    return int((at_us - started_us) * (total - done) / done)


def _station(
    state: State, station: StationState, kind: str, progress: Progress, now_us: int
) -> dict[str, Any]:
    job = state.jobs.get(station.job)
    waits = job is not None and job.status is JobStatus.PENDING
    running = station.status is StationStatus.RUNNING
    last = dict(progress.get(station.job, {})) if running and station.job else {}
    end_us = station.ended_us or (now_us if running else station.started_us)
    left_us = eta_us(last, station.started_us)
    since_us = now_us - int(last.get("at_us") or now_us)
    return {
        "name": station.name,
        "kind": kind or station.name,
        "status": _status(station, kind),
        "job": station.job,
        "started_us": station.started_us,
        "ended_us": station.ended_us,
        "seconds": max(0, end_us - station.started_us) / 1e6 if station.started_us else 0.0,
        "progress": last,
        "eta_s": max(0, left_us - since_us) / 1e6,
        "metrics": dict(station.result.metrics) if station.result else {},
        "outputs": dict(station.result.outputs) if station.result else {},
        "usage": to_plain(station.usage),
        "reason": Briefly(state, now_us).job(job) if job is not None and waits else station.reason,
    }


def _status(station: StationState, kind: str) -> str:
    """A gate that said no did its work: it is shown as rejected, not as failed."""
    judged = station.result is not None and station.result.evidence.get("passed") is False
    return "rejected" if kind == "gate" and judged else station.status.value


def _serving(state: State, release: str) -> list[str]:
    if not release:
        return []
    return [
        name
        for name, alias in sorted(state.aliases.items())
        if any(target.release == release and target.weight_milli for target in alias.targets)
    ]
