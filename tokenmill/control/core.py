"""The control core: ``step(state, event) -> (state, effects)``, pure and total. Read this file first.

One event goes through five numbered steps:

1. **check**: an event that the state refuses (unknown line, stale plan) changes nothing, whoever sent it.
2. **life cycle**: one file per noun changes the records that the event is about (``HANDLERS``).
3. **reconcile**: what that touched is brought nearer to the spec; gangs are placed, replicas started, traffic
   flipped, old replicas drained.
4. **publish**: a table whose contents changed gets the next version and goes to the gateways.
5. **wake**: when the earliest timer moved, a ``Tick`` is asked for at its time.

``step`` returns the very same state when nothing changed; the caller then journals nothing. The caller
records the event before it carries out the effects. After a crash, ``replay`` rebuilds the state from the
journal and says which ledger entries to make sure of, and ``resume`` says what is outstanding; every effect
is idempotent by its id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tokenmill.control import (
    canary,
    clock,
    deployments,
    jobs,
    keys,
    leases,
    nodes,
    recall,
    replicas,
    runs,
    slow,
    specs,
    steer,
    triggers,
    tunings,
)
from tokenmill.control.draft import Draft
from tokenmill.control.reconcile import reconcile, run_timers
from tokenmill.control.releases import fits, imported, wanted_models
from tokenmill.control.state import State
from tokenmill.control.table import publish
from tokenmill.domain import events
from tokenmill.domain.effects import (
    ChargeWork,
    Effect,
    ImportModel,
    PublishTable,
    RecordRecall,
    RecordRelease,
    StartJob,
    StartReplica,
    StopJob,
    StopReplica,
    WakeAt,
)
from tokenmill.domain.errors import ConflictError, TokenmillError
from tokenmill.domain.events import Event
from tokenmill.domain.work import JobStatus, ReplicaStatus


def step(state: State, event: Event) -> tuple[State, tuple[Effect, ...]]:
    """The next state and what is to be done. The same state, and nothing, when the event changes nothing."""
    kind = type(event)
    if kind in QUIET and QUIET[kind](state, event):
        return state, ()
    if kind in LIGHT:
        return LIGHT[kind](state, event), ()
    if kind in CHECKS:  # 1
        try:
            CHECKS[kind](state, event)
        except TokenmillError:
            return state, ()
    draft = Draft(state)
    HANDLERS[kind](draft, event)  # 2
    if not draft.changed:
        return state, ()
    reconcile(draft, event.at_us)  # 3
    after = draft.state()
    effects = draft.effects
    if draft.shown:  # 4
        shown = publish(after, state)
        if shown is not after:
            after = shown
            effects.insert(0, PublishTable(after.table))
    timers = draft.timers  # 5
    if timers and (not state.index.timers or timers[0][0] != state.index.timers[0][0]):
        effects.append(WakeAt(timers[0][0]))
    return after, tuple(effects)


def check(state: State, event: Event) -> None:
    """Raise ``NotFoundError``, ``ConflictError`` or ``RefusedError`` if ``step`` would ignore the event."""
    found = CHECKS.get(type(event))
    if found is not None:
        found(state, event)


def resume(state: State, now_us: int) -> tuple[Effect, ...]:
    """All that is outstanding after a crash, in a fixed order; the floor does what it has not done."""
    effects: list[Effect] = [PublishTable(state.table)]
    effects += [
        ImportModel(model)
        for model in wanted_models(state.factory)
        if not fits(model, state.models.get(model.name)) and not _import_failed(state, model.name)
    ]
    for _, replica in sorted(state.replicas.items()):
        leases_of = state.index.leases_of.get(replica.id, ())
        if replica.status is ReplicaStatus.STARTING and replica.spec is not None:
            held = state.leases[leases_of[0]].accelerators
            release = state.releases[replica.release]
            effects.append(StartReplica(replica.id, replica.spec, release, replica.node, held))
        elif replica.status is ReplicaStatus.DRAINING:
            effects.append(StopReplica(replica.id, replicas.GRACE_US))
    for _, job in sorted(state.jobs.items()):
        if job.status in (JobStatus.STARTING, JobStatus.RUNNING):
            gang = tuple(state.leases[name].accelerators for name in state.index.leases_of.get(job.id, ()))
            pace_us = job.checkpoints.interval_us
            effects.append(StartJob(job.id, job.attempt, job.spec, job.nodes, gang, pace_us))
        elif job.status is JobStatus.STOPPING:
            effects.append(StopJob(job.id, jobs.GRACE_US))
    if state.index.timers:
        effects.append(WakeAt(max(now_us, state.index.timers[0][0])))
    effects += canary.outstanding(state)
    return tuple(effects)


def replay(state: State, journal: Iterable[Event]) -> tuple[State, tuple[Effect, ...]]:
    """The state after ``journal``, and the charges and releases on the way, which may not have been recorded.

    A crash between the journal and the ledger loses effects that no record asks for again. Both kinds are
    idempotent by id, so carrying out all of them since the last snapshot makes sure of them.
    """
    effects: list[Effect] = []
    for event in journal:
        state, done = step(state, event)
        effects += [effect for effect in done if isinstance(effect, RECORDED)]
    return state, tuple(effects)


def _quiet_tick(state: State, event: events.Tick) -> bool:
    timers = state.index.timers
    return (not timers or timers[0][0] > event.at_us) and not canary.due(state, event.at_us)


def _import_failed(state: State, model: str) -> bool:
    known = state.models.get(model)
    return known is not None and bool(known.error)


def _check_started(state: State, event: events.ControllerStarted) -> None:
    if event.epoch <= state.epoch:
        raise ConflictError(f"epoch {event.epoch} is over, {state.epoch} is current")


def _started(draft: Draft, event: events.ControllerStarted) -> None:
    draft.changed = True
    draft.epoch = event.epoch


def _tick(draft: Draft, event: events.Tick) -> None:
    run_timers(draft, event.at_us)
    canary.tick(draft, event.at_us)


def _imported(draft: Draft, event: events.ModelImported) -> None:
    release = imported(draft, event)
    if release:
        deployments.promote(draft, draft.releases[release], event.at_us)
    if draft.changed:
        draft.touched_runs.update(draft.open_runs)


RECORDED = (ChargeWork, RecordRelease, RecordRecall)
"""Effects that leave a record behind, and that no other record asks for again."""


def _job_exited(draft: Draft, event: events.JobExited) -> None:
    job = draft.jobs.get(event.job)
    jobs.exited(draft, event)
    nodes.tested(draft, event)
    slow.emptied(draft, job.nodes if job is not None else (), event.at_us)


def _replica_exited(draft: Draft, event: events.ReplicaExited) -> None:
    replicas.exited(draft, event)
    replica = draft.replicas.get(event.replica)
    slow.emptied(draft, (replica.node,) if replica is not None else (), event.at_us)


QUIET: dict[type, Callable[[State, Any], bool]] = {
    events.Tick: _quiet_tick,
    events.OutcomesReported: lambda state, event: not canary.relevant(state, event),
    events.LoadReported: lambda state, event: deployments.load_reported(state, event) is None,
    events.StepsTimed: slow.quiet,
}
"""Whether a frequent event changes nothing, found without making a draft."""

LIGHT: dict[type, Callable[[State, Any], State]] = {events.JobStarted: jobs.started}
"""Events that change one record and concern nothing else: no step after the second has work."""

HANDLERS: dict[type, Callable[[Draft, Any], None]] = {
    events.ControllerStarted: _started,
    events.Tick: _tick,
    events.SpecApplied: specs.applied,
    events.NodeJoined: nodes.joined,
    events.NodeLost: nodes.lost,
    events.NodeCordoned: nodes.cordoned,
    events.NodeTrusted: nodes.trusted,
    events.ModelImported: _imported,
    events.ReplicaStarted: replicas.started,
    events.ReplicaReady: replicas.ready,
    events.ReplicaExited: _replica_exited,
    events.JobSubmitted: jobs.submitted,
    events.JobSaved: jobs.saved,
    events.ClockSet: clock.was_set,
    events.StepsTimed: slow.timed,
    events.JobExited: _job_exited,
    events.JobCancelled: jobs.cancelled,
    events.RunSubmitted: runs.submitted,
    events.RunCancelled: runs.cancelled,
    events.RunPaused: runs.paused,
    events.RunResumed: runs.resumed,
    events.TuningRequested: tunings.requested,
    events.TuningDropped: tunings.dropped,
    events.RollbackRequested: steer.rolled_back,
    events.AliasSteered: steer.steered,
    events.ReleaseRecalled: recall.recalled,
    events.KeyCreated: keys.created,
    events.KeyDisabled: keys.disabled,
    events.LeaseRequested: leases.requested,
    events.LeaseReleased: leases.released,
    events.LoadReported: deployments.scaled,
    events.OutcomesReported: canary.reported,
    events.LineObserved: triggers.observed,
}

CHECKS: dict[type, Callable[[State, Any], None]] = {
    events.NodeCordoned: nodes.check_cordoned,
    events.NodeTrusted: nodes.check_trusted,
    events.ControllerStarted: _check_started,
    events.SpecApplied: specs.check_applied,
    events.JobSubmitted: jobs.check_submitted,
    events.JobCancelled: jobs.check_cancelled,
    events.RunSubmitted: runs.check_submitted,
    events.RunCancelled: runs.check_cancelled,
    events.RunPaused: runs.check_paused,
    events.RunResumed: runs.check_resumed,
    events.TuningRequested: tunings.check_requested,
    events.TuningDropped: tunings.check_dropped,
    events.RollbackRequested: steer.check_rollback,
    events.AliasSteered: steer.check_steered,
    events.ReleaseRecalled: recall.check_recalled,
    events.KeyCreated: keys.check_created,
    events.KeyDisabled: keys.check_disabled,
    events.LeaseRequested: leases.check_requested,
    events.LeaseReleased: leases.check_released,
}
