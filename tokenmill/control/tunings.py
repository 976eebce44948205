"""Fine-tuning that a tenant asks for by the API: a line and a model name of its own, beside the factory file.

The run is an ordinary run of that line on the floor that serves. When its gate has passed and it is packed,
the model name becomes an alias that only this tenant sees. A dropped one stops serving; its record stays for
a while, since answers that it gave can still be traced.
"""

from __future__ import annotations

from tokenmill.control import runs
from tokenmill.control.draft import Draft
from tokenmill.control.keys import check_tenant
from tokenmill.control.state import State
from tokenmill.domain.errors import ConflictError, NotFoundError, RefusedError
from tokenmill.domain.events import TuningDropped, TuningRequested
from tokenmill.domain.value import replace

TUNINGS_MOST = 1000
TUNINGS_KEPT = 500
OPEN_PER_TENANT = 8


def check_requested(state: State, event: TuningRequested) -> None:
    """Raise unless the tenant is known, its base model is in the factory, and it has not too many."""
    tuning = event.tuning
    check_tenant(state, tuning.line.tenant, tuning.line.project)
    if tuning.id in state.tunings or event.run in state.runs:
        raise ConflictError(f"{tuning.id} exists already", fix="Submit it under another id.")
    if not any(model.name == tuning.line.base for model in state.factory.models):
        raise NotFoundError(f"there is no model {tuning.line.base!r}", fix="GET /v1/models lists them.")
    mine = [t for t in state.tunings.values() if t.line.tenant == tuning.line.tenant]
    going = [t for t in mine if t.run in state.runs and not state.runs[t.run].status.ended]
    reasons = []
    if len(going) >= OPEN_PER_TENANT:
        reasons.append(f"{len(going)} of {tuning.line.tenant} are going on, limit {OPEN_PER_TENANT}")
    if len(state.tunings) >= TUNINGS_MOST:
        reasons.append(f"{len(state.tunings)} are kept, limit {TUNINGS_MOST}")
    if reasons:
        raise RefusedError(
            "too many fine-tuning jobs", tuple(reasons), fix="Wait, or delete fine-tuned models."
        )


def requested(draft: Draft, event: TuningRequested) -> None:
    """Keep the line and its name, and begin its run."""
    draft.tunings = draft.tunings.set(event.tuning.id, replace(event.tuning, run=event.run))
    if len(draft.tunings) > TUNINGS_KEPT:
        _forget(draft)
    draft.reindex()
    runs.begin(draft, event.tuning.line, event.run, event.at_us, by=event.by)


def _forget(draft: Draft) -> None:
    """The oldest that serves nothing and makes nothing."""
    spare = [
        tuning
        for tuning in draft.tunings.values()
        if tuning.deployment.name not in draft.aliases and tuning.run in draft.runs
        if draft.runs[tuning.run].status.ended
    ]
    for tuning in sorted(spare, key=lambda tuning: (tuning.created_us, tuning.id))[:1]:
        draft.tunings = draft.tunings.delete(tuning.id)


def check_dropped(state: State, event: TuningDropped) -> None:
    """Raise unless it is there and not dropped yet."""
    tuning = state.tunings.get(event.tuning)
    if tuning is None:
        raise NotFoundError(f"there is no fine-tuning job {event.tuning!r}")
    if tuning.dropped:
        raise ConflictError(f"{tuning.deployment.name} is deleted already")
    run = state.runs.get(tuning.run)
    if run is not None and not run.status.ended:
        raise ConflictError(f"{tuning.id} is going on", fix="Cancel it first.")


def dropped(draft: Draft, event: TuningDropped) -> None:
    """The name goes; its replicas drain."""
    tuning = draft.tunings[event.tuning]
    draft.tunings = draft.tunings.set(tuning.id, replace(tuning, dropped=True))
    name = tuning.deployment.name
    if name in draft.aliases:
        draft.aliases = draft.aliases.delete(name)
    if name in draft.scaling:
        draft.scaling = draft.scaling.delete(name)
    draft.reindex()
    draft.touched_deployments.add(name)
