"""A person's word on an alias: roll it back, hold it, let it go on, or promote a release at once.

It stands above every schedule: what a person held or rolled back moves forward only by a person's word, and
``deployments.promote`` leaves it alone. Whether a release may serve at all is looked at here too.
"""

from __future__ import annotations

from tokenmill.control.deployments import point
from tokenmill.control.draft import Draft
from tokenmill.control.state import State
from tokenmill.domain.effects import WakeAt
from tokenmill.domain.errors import ConflictError, NotFoundError, RefusedError, UsageError
from tokenmill.domain.events import AliasSteered, RollbackRequested
from tokenmill.domain.value import replace
from tokenmill.domain.work import Alias

STEERING = ("hold", "resume", "promote")


def check_rollback(state: State, event: RollbackRequested) -> None:
    """Raise unless there is an earlier release to go back to."""
    alias = state.aliases.get(event.alias)
    if alias is None:
        names = ", ".join(sorted(state.aliases)) or "none"
        raise NotFoundError(f"there is no alias {event.alias!r}", expected=f"one of: {names}")
    if event.to and event.to not in state.releases:
        raise NotFoundError(f"there is no release {event.to!r}", fix="See `tokenmill status`.")
    target = rollback_target(alias, event.to)
    _check_not_recalled(state, target)
    if not target:
        raise RefusedError(
            f"{alias.name} has no earlier release",
            ("nothing was promoted before",),
            fix="Name one with --to.",
        )
    if target == alias.desired:
        raise ConflictError(f"{alias.name} desires {target} already")
    if not _may_serve(state, alias, target):
        raise RefusedError(
            f"{target} was not made for {alias.name}",
            (f"{alias.name} served: {', '.join(alias.history) or 'nothing'}",),
            fix="Choose a release of the same line or model.",
        )


def rollback_target(alias: Alias, to: str) -> str:
    """The release to go back to: ``to``, else what serves while another comes, else the one before."""
    if to:
        return to
    if alias.targets and alias.targets[0].release != alias.desired:
        return alias.targets[0].release  # a candidate's champion, too
    earlier = [release for release in alias.history if release != alias.desired]
    return earlier[-1] if earlier else ""


def rolled_back(draft: Draft, event: RollbackRequested) -> None:
    """Point an alias back, and hold it: a person's word that only a person takes back.

    What came after the target leaves the history, so that the next goes further.
    """
    alias = draft.aliases[event.alias]
    target = rollback_target(alias, event.to)
    history = alias.history
    if target in history:
        last = len(history) - 1 - history[::-1].index(target)
        history = history[: last + 1]
    reason = f"rolled back from {alias.desired} to {target}" + (f" by {event.by}" if event.by else "")
    refused = (*(r for r in alias.refused if r not in (target, alias.desired)), alias.desired)
    kept = replace(alias, history=history, hold=f"held since it was {reason}", refused=refused, waiting="")
    point(draft, kept, target, event.at_us, reason, straight=True)


def check_steered(state: State, event: AliasSteered) -> None:
    """Raise unless the alias can be steered so."""
    alias = state.aliases.get(event.alias)
    if alias is None:
        names = ", ".join(sorted(state.aliases)) or "none"
        raise NotFoundError(f"there is no alias {event.alias!r}", expected=f"one of: {names}")
    if event.action not in STEERING:
        raise UsageError(f"an alias cannot be told to {event.action!r}", expected=f"one of {STEERING}")
    if event.action == "resume" and not alias.hold:
        raise ConflictError(f"nobody holds {alias.name}")
    if event.action != "promote":
        return
    release = event.release or _next_up(alias)
    if not release:
        raise RefusedError(
            f"{alias.name} has no release to promote",
            ("none waits and none is on its way",),
            fix="Name one with --to, or run its line.",
        )
    if release not in state.releases:
        raise NotFoundError(f"there is no release {release!r}", fix="`tokenmill models` lists them.")
    _check_not_recalled(state, release)
    if not _may_serve(state, alias, release):
        raise RefusedError(
            f"{release} was not made for {alias.name}, or no gate passed it",
            (f"{alias.name} served: {', '.join(alias.history) or 'nothing'}",),
            fix="Choose a release of the same line or model.",
        )


def steered(draft: Draft, event: AliasSteered) -> None:
    """A person holds an alias, lets go of it, or has a release take all its traffic."""
    alias = draft.aliases[event.alias]
    by = f" by {event.by}" if event.by else ""
    if event.action == "hold":
        draft.put_alias(replace(alias, hold=f"held{by}"))
        return
    free = replace(alias, hold="", waiting="")
    release = event.release if event.action == "promote" else alias.waiting
    if event.action == "promote":
        release = release or _next_up(alias)
        refused = tuple(found for found in alias.refused if found != release)
        free = replace(free, refused=refused)
    if release and (release != alias.desired or event.action == "promote"):
        reason = f"promoted{by}" if event.action == "promote" else ""
        point(draft, free, release, event.at_us, reason, straight=event.action == "promote")
    else:
        if alias.canary is not None:  # its time may have passed while it was held
            free = replace(free, canary=replace(alias.canary, check_us=event.at_us))
            draft.effects.append(WakeAt(event.at_us))
        draft.put_alias(free)


def _next_up(alias: Alias) -> str:
    """What waits for a person, else the candidate that is on its way."""
    on_its_way = alias.targets and alias.desired != alias.targets[0].release
    return alias.waiting or (alias.desired if on_its_way else "")


def _check_not_recalled(state: State, release: str) -> None:
    recall = state.recalls.get(release)
    if recall is not None:
        raise RefusedError(
            f"{release} was recalled" + (f" by {recall.by}" if recall.by else ""),
            (recall.reason or "no reason was given",),
            fix="A recalled release never serves again: run its line for a new one.",
        )


def _may_serve(state: State, alias: Alias, release_id: str) -> bool:
    deployment = state.index.deployments.get(alias.deployment)
    release = state.releases.get(release_id)
    if deployment is None or release is None:
        return False
    if release_id in alias.history:
        return True
    if deployment.line:
        return release.line == deployment.line and release.verdict is not None and release.verdict.passed
    return not release.line and release.model == deployment.model
