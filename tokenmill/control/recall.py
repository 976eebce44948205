"""A recall: a release leaves every alias at once, and nothing may point at it again.

An alias that served it, or was on its way to it, goes to the newest release of its history that is not
recalled; without one it serves nothing and says why. Who was served by it is in the ledger, not here.
"""

from __future__ import annotations

from tokenmill.control.draft import Draft
from tokenmill.control.state import State
from tokenmill.domain.effects import RecordRecall
from tokenmill.domain.errors import ConflictError, NotFoundError
from tokenmill.domain.events import ReleaseRecalled
from tokenmill.domain.value import replace
from tokenmill.domain.work import Alias, Recall, Target


def check_recalled(state: State, event: ReleaseRecalled) -> None:
    """Raise unless the release exists and is not recalled already."""
    if event.release not in state.releases:
        raise NotFoundError(f"there is no release {event.release!r}", fix="`tokenmill models` lists them.")
    known = state.recalls.get(event.release)
    if known is not None:
        raise ConflictError(f"{event.release} is recalled already" + (f" by {known.by}" if known.by else ""))


def recalled(draft: Draft, event: ReleaseRecalled) -> None:
    """Forbid the release and take it out of every alias."""
    recall = Recall(event.release, event.at_us, event.by, event.reason)
    draft.changed = True
    draft.recalls = draft.recalls.set(event.release, recall)
    draft.effects.append(RecordRecall(recall))
    for name in sorted(draft.aliases):
        alias = draft.aliases[name]
        if event.release in (alias.desired, alias.waiting, *(target.release for target in alias.targets)):
            _leave(draft, alias, recall)


def _leave(draft: Draft, alias: Alias, recall: Recall) -> None:
    gone = recall.release
    history = tuple(release for release in alias.history if release != gone)
    serving = [t.release for t in alias.targets if t.release != gone]
    desired = alias.desired
    if desired == gone:
        kept = [r for r in (*history, *serving) if r not in draft.recalls and r in draft.releases]
        desired = kept[-1] if kept else ""
    why = f" ({recall.reason})" if recall.reason else ""
    draft.put_alias(
        replace(
            alias,
            desired=desired,
            # What is left takes it all; with nothing left the alias stops until the other one is ready.
            targets=(Target(serving[0], 1000),) if serving else (),
            history=history,
            waiting="" if alias.waiting == gone else alias.waiting,
            canary=None,
            straight=True,
            since_us=recall.at_us,
            failures=0,
            reason=f"{gone} was recalled{why}; {desired or 'nothing'} takes its place",
        )
    )
