"""A run: one pass of a line through its stations, from data to a release. Each station is a job, the gate is
not.

A station starts when all that it needs is done. Its ``input_digest`` covers all that its outputs depend on,
so a station with the same digest is not done twice; intake always runs, because the file it reads may have
changed. The gate decides here (``policy.gate``) and fails closed; a rejected run ends without packing.
Packing makes the release that the line's deployments then desire. A station that fails ends its run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from immutables import Map

from tokenmill.control import deployments, jobs
from tokenmill.control.draft import Draft
from tokenmill.control.releases import fits, record
from tokenmill.control.state import State
from tokenmill.control.stations import (
    champion,
    forced,
    inputs_of,
    job_spec,
    state_of,
    station_digest,
    upstream,
    verdict_before,
)
from tokenmill.domain.codec import to_plain
from tokenmill.domain.errors import ConflictError, NotFoundError, UsageError
from tokenmill.domain.events import RunCancelled, RunPaused, RunResumed, RunSubmitted
from tokenmill.domain.factory import Line, Station
from tokenmill.domain.value import replace
from tokenmill.domain.work import (
    Imported,
    Job,
    JobResult,
    JobStatus,
    Release,
    Run,
    RunStatus,
    StationState,
    StationStatus,
    WorkUsage,
)
from tokenmill.policy.gate import judge

FINISHED = (StationStatus.DONE, StationStatus.REUSED)
UNSETTLED = (StationStatus.WAITING, StationStatus.RUNNING)


def check_submitted(state: State, event: RunSubmitted) -> None:
    """Raise unless the line exists, does not run already, and its base model can be had."""
    line = state.index.lines.get(event.line)
    if line is None:
        names = ", ".join(found.name for found in state.factory.lines) or "none"
        raise NotFoundError(f"there is no line {event.line!r}", expected=f"one of: {names}")
    if event.run in state.runs:
        raise ConflictError(f"run {event.run} exists already", fix="Submit it under another id.")
    for name in state.index.open_runs:
        if state.runs[name].line == line.name:
            raise ConflictError(
                f"line {line.name} is running already: {name}", fix="Wait for it, or cancel it."
            )
    if event.force and not any(station.name == event.force for station in line.stations):
        names = ", ".join(station.name for station in line.stations)
        raise NotFoundError(f"{line.name} has no station {event.force!r}", expected=f"one of: {names}")

    if event.parent:
        _check_parent(state, event, line)


def _check_parent(state: State, event: RunSubmitted, line: Line) -> None:
    parent = state.runs.get(event.parent)
    if parent is None or parent.line != line.name:
        raise NotFoundError(f"there is no run {event.parent!r} of {line.name}", fix="See `tokenmill runs`.")
    if not event.force:
        raise UsageError("a rerun needs the station to begin at", fix="Name it with --from.")
    again = forced(event.force, line)
    for state_of_station in parent.stations:
        if state_of_station.name not in again and state_of_station.status not in FINISHED:
            raise ConflictError(
                f"station {state_of_station.name} was not done in {parent.id}",
                fix=f"Begin at it, or at an earlier one: --from {state_of_station.name}",
            )


def check_paused(state: State, event: RunPaused) -> None:
    """Raise unless the run goes on."""
    run = _open_run(state, event.run)
    if run.paused:
        raise ConflictError(f"run {run.id} is paused already")


def check_resumed(state: State, event: RunResumed) -> None:
    """Raise unless the run is paused."""
    run = _open_run(state, event.run)
    if not run.paused:
        raise ConflictError(f"run {run.id} is not paused")


def _open_run(state: State, name: str) -> Run:
    run = state.runs.get(name)
    if run is None:
        raise NotFoundError(f"there is no run {name!r}", fix="See `tokenmill runs`.")
    if run.status.ended:
        raise ConflictError(f"run {run.id} is {run.status} already")
    return run


def check_cancelled(state: State, event: RunCancelled) -> None:
    """Raise unless the run exists and has not ended."""
    _open_run(state, event.run)


def submitted(draft: Draft, event: RunSubmitted) -> None:
    """A run begins."""
    line = draft.index.lines[event.line]
    begin(draft, line, event.run, event.at_us, event.by, event.force, event.parent)


def begin(
    draft: Draft, line: Line, run_id: str, now_us: int, by: str = "", force: str = "", parent: str = ""
) -> None:
    """Keep a new run. With ``parent`` it takes over what that run did before the station ``force``."""
    states = tuple(StationState(station.name) for station in line.stations)
    if parent:
        again = forced(force, line)
        before = {state.name: state for state in draft.runs[parent].stations}
        states = tuple(
            state
            if state.name in again or state.name not in before
            else _taken_over(before[state.name], parent)
            for state in states
        )
    draft.put_run(Run(run_id, line.name, RunStatus.RUNNING, now_us, states, by, force, parent=parent))
    draft.touched_runs.add(run_id)


def _taken_over(state: StationState, parent: str) -> StationState:
    reason = f"taken over from {parent}"
    return replace(state, status=StationStatus.REUSED, job="", usage=WorkUsage(), reason=reason)


def paused(draft: Draft, event: RunPaused) -> None:
    """Stop the run's jobs at their checkpoints; nothing new starts."""
    run = draft.runs[event.run]
    by = f" by {event.by}" if event.by else ""
    draft.put_run(replace(run, paused=True, reason=f"paused{by}"))
    for job in _going(draft, run):
        jobs.pause(draft, job)


def resumed(draft: Draft, event: RunResumed) -> None:
    """The jobs wait for room again and go on from their checkpoints."""
    run = draft.runs[event.run]
    draft.put_run(replace(run, paused=False, reason=""))
    draft.touched_runs.add(run.id)
    for job in _going(draft, run):
        jobs.resume(draft, job)


def _going(draft: Draft, run: Run) -> list[Job]:
    """The jobs of stations that run."""
    found = [draft.jobs.get(s.job) for s in run.stations if s.status is StationStatus.RUNNING]
    return [job for job in found if job is not None and not job.status.ended]


def cancelled(draft: Draft, event: RunCancelled) -> None:
    """Someone wants it no more: its jobs are stopped."""
    by = f" by {event.by}" if event.by else ""
    _end(draft, draft.runs[event.run], RunStatus.CANCELLED, f"cancelled{by}", event.at_us)


def follow_spec(draft: Draft, old_lines: Map[str, Line], now_us: int) -> None:
    """A run whose line was changed or removed ends: its stations would no longer be those it began with.
    Another trigger or priority does not end it."""
    for name in draft.open_runs:
        run = draft.runs[name]
        old, new = old_lines.get(run.line), draft.index.lines.get(run.line)
        if (old and old.work) != (new and new.work):
            _end(draft, run, RunStatus.FAILED, f"line {run.line} was changed while it ran", now_us)


def advance(draft: Draft, run_id: str, now_us: int) -> None:
    """Take in what jobs did, then start every station that can start, until nothing more can."""
    for _ in range(1000):
        run = draft.runs[run_id]
        if run.status.ended:
            return
        line = draft.index.lines.get(run.line)
        if line is None:
            return
        nexts = _next(draft, run, line, now_us)
        if nexts is None:
            break
        draft.put_run(nexts)
        if nexts.status.ended:
            _stop_jobs(draft, run, now_us)
            return
    _finish(draft, draft.runs[run_id], now_us)


def _next(draft: Draft, run: Run, line: Line, now_us: int) -> Run | None:
    """The run after one station moved, or ``None`` when none can."""
    states = {state.name: state for state in run.stations}
    for station in line.stations:
        state = states[station.name]
        if state.status is StationStatus.RUNNING:
            moved = _observe(draft, run, station, state)
        elif (
            not run.paused
            and state.status is StationStatus.WAITING
            and all(states[need].status in FINISHED for need in station.needs if need in states)
        ):
            moved = _begin(draft, run, line, station, now_us)
        else:
            continue
        if moved is not None:
            return moved
    return None


def _observe(draft: Draft, run: Run, station: Station, state: StationState) -> Run | None:
    """What became of a running station's job."""
    job = draft.jobs.get(state.job)
    if job is None or not job.status.ended:
        return None
    ended = replace(state, ended_us=job.ended_us, usage=job.usage, result=job.result, reason=job.reason)
    if job.status is JobStatus.SUCCEEDED and job.result is not None:
        draft.done = draft.done.set(state.input_digest, job.result)
        done = _with(run, replace(ended, status=StationStatus.DONE))
        return _released(draft, done, station, job.ended_us) if station.kind == "pack" else done
    reason = f"station {station.name} failed: {job.reason or job.status}"
    return _ended(
        _with(run, replace(ended, status=StationStatus.FAILED)), RunStatus.FAILED, reason, job.ended_us
    )


def _begin(draft: Draft, run: Run, line: Line, station: Station, now_us: int) -> Run | None:
    """Start a station whose needs are done: judge, reuse, or submit its job."""
    model = next((found for found in draft.factory.models if found.name == line.base), None)
    base = draft.models.get(line.base)
    if model is None or base is None or not fits(model, base):
        if base is None or not base.error:
            return None
        reason = f"base model {line.base} could not be imported: {base.error}"
        return _ended(run, RunStatus.FAILED, reason, now_us)
    if station.kind == "gate":
        return _gate(draft, run, line, station, base, now_us)
    if station.kind == "pack" and verdict_before(run, line, station) is None:
        failed = StationState(
            station.name, StationStatus.FAILED, ended_us=now_us, reason="no gate passed before it"
        )
        return _ended(_with(run, failed), RunStatus.FAILED, f"station {station.name}: no gate passed", now_us)
    digest = station_digest(draft, run, line, station, base)
    known = draft.done.get(digest)
    if known is not None and station.kind != "intake" and station.name not in forced(run.force, line):
        reused = StationState(
            station.name,
            StationStatus.REUSED,
            input_digest=digest,
            result=known,
            started_us=now_us,
            ended_us=now_us,
            reason="the same inputs were done before",
        )
        done = _with(run, reused)
        return _released(draft, done, station, now_us) if station.kind == "pack" else done
    job_id = draft.new_id("j")
    jobs.submit(draft, job_id, job_spec(draft, run, line, station, base), now_us)
    state = StationState(
        station.name, StationStatus.RUNNING, job=job_id, input_digest=digest, started_us=now_us
    )
    return _with(run, state)


def _gate(draft: Draft, run: Run, line: Line, station: Station, base: Imported, now_us: int) -> Run:
    """Judge the candidate on what the evaluate station before it left."""
    found = champion(draft, line.name)
    stations = {found.name: found for found in line.stations}
    evidence: Mapping[str, Any] = {}
    for need in upstream(line, station):
        state = state_of(run, need)
        if stations[need].kind != "evaluate" or state.result is None:
            continue
        if station_digest(draft, run, line, stations[need], base) != state.input_digest:
            # Another champion was made meanwhile: a comparison with the old one says nothing.
            return _with(run, StationState(need))
        evidence = state.result.evidence
    verdict = judge(evidence, station.params, champion=found is not None)
    failed = " ".join(reason for reason in verdict.reasons if not reason.startswith("Passed"))
    state = StationState(
        station.name,
        StationStatus.DONE if verdict.passed else StationStatus.FAILED,
        input_digest=station_digest(draft, run, line, station, base),
        result=JobResult(evidence=to_plain(verdict)),
        started_us=now_us,
        ended_us=now_us,
        reason="" if verdict.passed else failed,
    )
    judged = _with(run, state)
    if verdict.passed:
        return judged
    return _ended(judged, RunStatus.REJECTED, f"the gate said no. {failed}", now_us)


def _released(draft: Draft, run: Run, station: Station, now_us: int) -> Run:
    """The pack station is done: the release exists, is recorded, and the line's deployments desire it."""
    line = draft.index.lines[run.line]
    base = draft.models[line.base]
    result = state_of(run, station.name).result or JobResult()
    verdict = verdict_before(run, line, station)
    digest = result.outputs.get("release") or str(result.evidence.get("manifest_digest", ""))
    known = next(
        (
            r
            for r in sorted(draft.releases.values(), key=lambda r: r.id)
            if r.line == line.name and r.digest == digest
        ),
        None,
    )
    if known is None:
        adapters = [
            found.outputs["adapter_gguf"]
            for found in inputs_of(run, line, station).values()
            if "adapter_gguf" in found.outputs
        ]
        whole = [
            f.outputs["weights"] for f in inputs_of(run, line, station).values() if "weights" in f.outputs
        ]
        known = Release(
            id=draft.new_id("rel"),
            model=line.base,
            weights=whole[-1] if whole else base.digest,
            adapter=adapters[-1] if adapters else "",
            digest=digest,
            origin=run.id,
            line=line.name,
            created_us=now_us,
            verdict=verdict,
        )
        record(draft, known)
    recall = draft.recalls.get(known.id)
    if recall is not None:
        reason = f"release {known.id} was recalled: {recall.reason or 'no reason was given'}"
        return _ended(replace(run, release=known.id), RunStatus.FAILED, reason, now_us)
    deployments.promote(draft, known, now_us)
    return replace(run, release=known.id)


def _with(run: Run, state: StationState) -> Run:
    return replace(run, stations=tuple(state if s.name == state.name else s for s in run.stations))


def _ended(run: Run, status: RunStatus, reason: str, now_us: int) -> Run:
    """The run as it ends: what has not been done will not be."""
    stations = tuple(
        replace(s, status=StationStatus.SKIPPED, ended_us=now_us, reason="the run ended before it")
        if s.status in UNSETTLED
        else s
        for s in run.stations
    )
    return replace(run, status=status, stations=stations, ended_us=now_us, reason=reason)


def _end(draft: Draft, run: Run, status: RunStatus, reason: str, now_us: int) -> None:
    draft.put_run(_ended(run, status, reason, now_us))
    _stop_jobs(draft, run, now_us)


def _stop_jobs(draft: Draft, run: Run, now_us: int) -> None:
    """Stop the jobs of stations that ran when the run ended."""
    for job in _going(draft, run):
        jobs.cancel(draft, job.id, now_us)


def _finish(draft: Draft, run: Run, now_us: int) -> None:
    if all(state.status in FINISHED for state in run.stations):
        draft.put_run(replace(run, status=RunStatus.SUCCEEDED, ended_us=now_us))
