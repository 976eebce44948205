"""A line that starts by itself: what the floor saw of its data, held against its last run by
``policy.trigger``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from tokenmill.control import runs
from tokenmill.control.draft import Draft
from tokenmill.control.state import State
from tokenmill.control.stations import champion
from tokenmill.domain.events import LineObserved
from tokenmill.domain.work import Run
from tokenmill.policy.trigger import due

FRESH_US = 90_000_000
"""A cron time so long before the first observation counts; one that lies further back is not made up for."""


def observed(draft: Draft, event: LineObserved) -> None:
    """Start a run where one is due. Nothing happens while the line runs, or its base is not at hand."""
    line = draft.index.lines.get(event.line)
    if line is None or line.trigger is None or line.base not in draft.models:
        return
    own = [run for run in draft.runs.values() if run.line == line.name]
    if any(not run.status.ended for run in own):
        return
    last = max(own, key=_age, default=None)
    if event.since_us is not None and event.since_us != _read_until_us(last):
        return  # a run has read more since the floor looked
    profile, words = _counts(last, "profile"), _counts(last, "words")
    now, now_words = event.profile, event.words
    if event.since_us is not None:  # old days are deleted while new ones come, so totals would say nothing
        now, now_words = _joined(profile, now), _joined(words, now_words)
    # A run that ended before it had read its data is not tried again until somebody changes something.
    known = now if last is not None and not profile else profile
    serving = champion(draft, line.name)
    opinions = {release: (good, bad) for release, good, bad in event.opinions}
    decision = due(
        line.trigger,
        now,
        last_profile=known,
        words=now_words,
        last_words=words,
        opinions=opinions.get(serving.id, (0, 0)) if serving is not None else (0, 0),
        last_started_us=last.submitted_us if last is not None else event.at_us - FRESH_US,
        now_us=event.at_us,
    )
    if decision.run:
        why = next(reason for reason in decision.reasons if reason.startswith("due"))
        runs.begin(draft, line, draft.new_id("run"), event.at_us, f"trigger ({why.removeprefix('due: ')})")


def last_started_us(state: State, line: str) -> int:
    """When the newest run of ``line`` began; 0 when it never ran."""
    return max((run.submitted_us for run in state.runs.values() if run.line == line), default=0)


def read_until_us(state: State, line: str) -> int:
    """The newest captured answer that the newest run of ``line`` has read; 0 when it read none."""
    own = [run for run in state.runs.values() if run.line == line]
    return _read_until_us(max(own, key=_age, default=None))


def _age(run: Run) -> tuple[int, str]:
    return run.submitted_us, run.id


def _read_until_us(run: Run | None) -> int:
    found = [s.result.metrics.get("read_until_us") for s in run.stations if s.result] if run else []
    return next((at_us for at_us in found if isinstance(at_us, int)), 0)


def _joined(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip_longest(one, other, fillvalue=0))


def _counts(run: Run | None, name: str) -> Sequence[int]:
    for state in run.stations if run is not None else ():
        found = state.result.metrics.get(name) if state.result is not None else None
        if isinstance(found, list | tuple):
            return [int(count) for count in found]
    return ()
