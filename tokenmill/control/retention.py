"""What is forgotten, so that the state stays bounded: ended jobs and runs, stopped replicas, unused results.

The journal, the registry and the ledger keep all of it. Pruning is done in batches, oldest first, so that its
cost is spread over the events that make it needed.
"""

from __future__ import annotations

from tokenmill.control.draft import Draft
from tokenmill.control.index import id_order
from tokenmill.domain.work import ENDED, ReplicaStatus, RunStatus

JOBS_KEPT = 2000
REPLICAS_KEPT = 200
RUNS_KEPT = 500
RELEASES_KEPT = 1000
DONE_KEPT = 5000


def prune(draft: Draft) -> None:
    """Forget the oldest of what is over its limit by half."""
    jobs = len(draft.jobs)
    # Looked at once per 256 new jobs only: a long queue must not be searched at every event.
    if jobs > JOBS_KEPT * 2 and jobs % 256 == 0 and jobs != len(draft.base.jobs):
        _prune_jobs(draft)
    if len(draft.replicas) > REPLICAS_KEPT * 3 // 2:
        _prune_replicas(draft)
    if len(draft.runs) > RUNS_KEPT * 3 // 2:
        _prune_runs(draft)
    if len(draft.releases) > RELEASES_KEPT * 3 // 2:
        _prune_releases(draft)


def _prune_jobs(draft: Draft) -> None:
    kept = draft.open_runs
    ended = [
        (job.ended_us, name)
        for name, job in draft.jobs.items()
        if job.status in ENDED and job.spec.run not in kept
    ]
    if len(ended) <= JOBS_KEPT * 2:
        return
    ended.sort()
    with draft.jobs.mutate() as jobs:
        for _, name in ended[: len(ended) - JOBS_KEPT]:
            draft.count_asked(draft.jobs[name], -1)
            del jobs[name]
        draft.jobs = jobs.finish()


def _prune_replicas(draft: Draft) -> None:
    stopped = [r for r in draft.replicas.values() if r.status is ReplicaStatus.STOPPED]
    if len(stopped) <= REPLICAS_KEPT * 3 // 2:
        return
    stopped.sort(key=lambda replica: id_order(replica.id))
    for replica in stopped[: len(stopped) - REPLICAS_KEPT]:
        draft.replicas = draft.replicas.delete(replica.id)


def _prune_runs(draft: Draft) -> None:
    asked = {
        tuning.run for tuning in draft.tunings.values()
    }  # a tenant's job shows its run as long as it is kept
    ended = [r for r in draft.runs.values() if r.status is not RunStatus.RUNNING and r.id not in asked]
    if len(ended) <= RUNS_KEPT * 3 // 2:
        return
    ended.sort(key=lambda run: (run.ended_us, run.id))
    for run in ended[: len(ended) - RUNS_KEPT]:
        draft.runs = draft.runs.delete(run.id)
    if len(draft.done) > DONE_KEPT:
        # What no kept run has met is not kept either: it would only be done again.
        used = {state.input_digest for run in draft.runs.values() for state in run.stations}
        for digest in sorted(draft.done):
            if digest not in used:
                draft.done = draft.done.delete(digest)


def _prune_releases(draft: Draft) -> None:
    used = {replica.release for replica in draft.replicas.values()}
    for alias in draft.aliases.values():
        used |= {alias.desired, *alias.history, *(target.release for target in alias.targets)}
    spare = [release for release in draft.releases.values() if release.id not in used]
    spare.sort(key=lambda release: (release.created_us, release.id))
    for release in spare[: max(0, len(draft.releases) - RELEASES_KEPT)]:
        draft.releases = draft.releases.delete(release.id)
