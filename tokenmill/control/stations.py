"""One station of a run: what it depends on, what it is given, and the job that does it.

Its ``station_digest`` covers all that its outputs depend on, so that the same work is known when it comes
again. When a station starts, and what its end means, is ``control.runs``' to say.
"""

from __future__ import annotations

from tokenmill.control.draft import Draft
from tokenmill.control.releases import latest_of_line
from tokenmill.domain.codec import digest_of, from_plain, to_plain
from tokenmill.domain.factory import Line, Station
from tokenmill.domain.work import GateVerdict, Imported, JobResult, JobSpec, Release, Run, StationState

STATION_CODE_VERSION = "1"
"""Raise it when a station's code would make other outputs from the same inputs."""


def champion(draft: Draft, line: str) -> Release | None:
    """What serves for a line now: what its first deployment desires, else the line's newest release."""
    for _, deployment in sorted(draft.index.deployments.items()):
        alias = draft.aliases.get(deployment.name)
        if deployment.line == line and alias is not None and alias.desired:
            return draft.releases.get(alias.desired)
    newest = latest_of_line(draft, line)
    return draft.releases[newest] if newest else None


def station_digest(draft: Draft, run: Run, line: Line, station: Station, base: Imported) -> str:
    """Digest of all that a station's outputs depend on. Those that meet the champion depend on it too."""
    found = champion(draft, line.name) if station.kind in ("evaluate", "gate") else None
    return digest_of(
        {
            "kind": station.kind,
            "params": dict(station.params),
            "base": base.digest,
            "champion": found.id if found else "",
            "code": STATION_CODE_VERSION,
            "inputs": {name: dict(result.outputs) for name, result in inputs_of(run, line, station).items()},
        }
    )


def verdict_before(run: Run, line: Line, station: Station) -> GateVerdict | None:
    """The passed verdict of the gate before ``station``, or ``None``: without one nothing is packed."""
    stations = {found.name: found for found in line.stations}
    for need in reversed(upstream(line, station)):
        result = state_of(run, need).result
        if stations[need].kind == "gate" and result is not None:
            verdict = from_plain(result.evidence, GateVerdict)
            return verdict if verdict.passed else None
    return None


def job_spec(draft: Draft, run: Run, line: Line, station: Station, base: Imported) -> JobSpec:
    found = champion(draft, line.name)
    inputs = inputs_of(run, line, station)
    return JobSpec(
        kind="station",
        tenant=line.tenant,
        project=line.project,
        params={
            "station": station.name,
            "kind": station.kind,
            "line": line.name,
            "run": run.id,
            "params": dict(station.params),
            "base": {"model": line.base, "weights": base.digest, "format": base.format},
            "champion": to_plain(found) if found else None,
            "inputs": {name: to_plain(result) for name, result in inputs.items()},
        },
        resources=station.resources,
        workers=int(station.params.get("workers", 1)) if station.kind == "tune" else 1,
        priority=line.priority,
        timeout_us=station.timeout_us,
        run=run.id,
        station=station.name,
        name=f"{line.name}/{station.name}",
    )


def upstream(line: Line, station: Station) -> tuple[str, ...]:
    """Every station that ``station`` needs, directly or not, in the line's order."""
    needs = {found.name: found.needs for found in line.stations}
    seen: set[str] = set()
    open_names = list(station.needs)
    while open_names:
        name = open_names.pop()
        if name in needs and name not in seen:
            seen.add(name)
            open_names.extend(needs[name])
    return tuple(found.name for found in line.stations if found.name in seen)


def inputs_of(run: Run, line: Line, station: Station) -> dict[str, JobResult]:
    """What the stations before it made, by name in the line's order."""
    found = {name: state_of(run, name).result for name in upstream(line, station)}
    return {name: result for name, result in found.items() if result is not None}


def forced(force: str, line: Line) -> set[str]:
    """Stations that are done anew: the forced one and all that need it."""
    return {s.name for s in line.stations if force and force in (s.name, *upstream(line, s))}


def state_of(run: Run, name: str) -> StationState:
    return next(state for state in run.stations if state.name == name)
