"""Desired against observed: what this step touched is brought nearer to what the spec wants.

Only what was touched is looked at, so an event that concerns one job costs nothing per deployment. The order
matters: runs submit jobs, replicas are placed before jobs (serving comes first), and jobs take what is left.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenmill.control import deployments, jobs, leases, ramps, replicas, retention, runs
from tokenmill.control.draft import Draft
from tokenmill.control.schedule import schedule
from tokenmill.domain.errors import invariant

PASSES_MOST = 1000


def reconcile(draft: Draft, now_us: int) -> None:
    """Repeat until nothing is touched any more: runs, then deployments, then jobs."""
    ramps.note(draft, now_us)  # what ended, before anything starts
    if draft.freed:  # Leases end in life cycles alone, so looking once is enough.
        draft.touched_deployments.update(draft.unplaced)
    for _ in range(PASSES_MOST):
        if draft.touched_runs:
            for run in _take(draft.touched_runs):
                if run in draft.runs:
                    runs.advance(draft, run, now_us)
        elif draft.touched_deployments:
            names = _take(draft.touched_deployments)
            for name in names:
                deployments.succeed(draft, name, now_us)
            for name in names:
                deployments.reconcile(draft, name, now_us)
        elif draft.freed or draft.fresh_jobs:
            schedule(draft, now_us)
        else:
            break
    else:
        invariant(False, "reconcile does not settle")
    ramps.note(draft, now_us)
    retention.prune(draft)


DUE: dict[str, Callable[[Draft, str, int], None]] = {
    "job": lambda draft, name, now_us: jobs.due(draft, name),
    "lease": leases.expire,
    "replica": replicas.due,
    "ramp": ramps.due,
}


def run_timers(draft: Draft, now_us: int) -> None:
    """Everything whose time has come by ``now_us``."""
    while draft.timers and draft.timers[0][0] <= now_us:
        _, kind, name = draft.timers[0]
        DUE[kind](draft, name, now_us)


def _take(names: set[str]) -> list[str]:
    taken = sorted(names)
    names.clear()
    return taken
