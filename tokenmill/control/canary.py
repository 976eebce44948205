"""A candidate's way to all traffic: steps of weight and time, judged on live numbers.

While it lasts the champion's replicas stay as they are and the champion is the first of the alias's targets,
so going back is one new pointer in the same step that the bad news came in. A person's word stands above the
schedule: a hold stops every move forward (going back is still allowed: to what the person had), and what was
sent back does not come again by itself. The comparison itself is ``policy.canary``'s.
"""

from __future__ import annotations

from tokenmill.control.draft import Draft
from tokenmill.control.state import State
from tokenmill.domain.effects import WakeAt
from tokenmill.domain.events import OutcomesReported
from tokenmill.domain.factory import CanaryPlan, Deployment
from tokenmill.domain.outcomes import NOTHING_SEEN
from tokenmill.domain.value import replace
from tokenmill.domain.work import Alias, Canary, Target
from tokenmill.policy.canary import Course, Judged, judge_step

REFUSED_MOST = 20


def needed(deployment: Deployment, alias: Alias) -> bool:
    """Whether the desired release has to earn its traffic step by step."""
    if deployment.canary is None or alias.straight or not alias.targets:
        return False
    return alias.targets[0].release != alias.desired


def begin(draft: Draft, alias: Alias, plan: CanaryPlan, now_us: int) -> None:
    """The candidate is ready: its first step begins. Nothing happens when it is under way already."""
    known = alias.canary
    if known is None or known.candidate != alias.desired:
        found = Canary(alias.desired, alias.targets[0].release, 0, now_us)
        _enter(draft, alias, plan, found, now_us)


def relevant(state: State, event: OutcomesReported) -> bool:
    """Whether a report is evidence for a step that is going on."""
    alias = state.aliases.get(event.alias)
    if alias is None or alias.canary is None or event.seen == NOTHING_SEEN:
        return False
    return event.release in (alias.canary.candidate, alias.canary.champion)


def reported(draft: Draft, event: OutcomesReported) -> None:
    """Add what was seen to the step's evidence and decide."""
    alias = draft.aliases[event.alias]
    found = alias.canary
    if found is None:
        return
    if event.release == found.candidate:
        found = replace(found, mine=found.mine.plus(event.seen))
    else:
        found = replace(found, theirs=found.theirs.plus(event.seen))
    _decide(draft, replace(alias, canary=found), event.at_us)


def due(state: State, now_us: int) -> bool:
    """Whether time alone may change what is decided about some candidate."""
    return any(
        alias.canary is not None and 0 < alias.canary.check_us <= now_us for alias in state.aliases.values()
    )


def tick(draft: Draft, now_us: int) -> None:
    """Decide about every candidate whose time has come."""
    for name in sorted(draft.aliases):
        alias = draft.aliases[name]
        if alias.canary is not None and 0 < alias.canary.check_us <= now_us:
            _decide(draft, alias, now_us)


def outstanding(state: State) -> list[WakeAt]:
    """The wakes that a controller which has just started must ask for again."""
    found = (alias.canary for _, alias in sorted(state.aliases.items()))
    return [WakeAt(canary.check_us) for canary in found if canary is not None and canary.check_us]


def back(draft: Draft, alias: Alias, now_us: int, reason: str) -> None:
    """The champion takes all traffic again, in this very step; the candidate comes no more by itself."""
    champion = alias.targets[0].release
    refused = (*(r for r in alias.refused if r != alias.desired), alias.desired)[-REFUSED_MOST:]
    draft.put_alias(
        replace(
            alias,
            desired=champion,
            targets=(Target(champion, 1000),),
            canary=None,
            refused=refused,
            straight=True,
            failures=0,
            since_us=now_us,
            reason=reason,
        )
    )


def _decide(draft: Draft, alias: Alias, now_us: int) -> None:
    """Wait, go on to the next step or go back, as the evidence says."""
    deployment = draft.index.deployments.get(alias.deployment)
    plan = deployment.canary if deployment is not None else None
    found = alias.canary
    if found is None:
        return
    if plan is None or found.step >= len(plan.steps):
        # The file no longer asks for a canary, or for fewer steps: the flip comes by itself.
        draft.put_alias(replace(alias, canary=None))
        return
    judged = judge_step(plan, found.step, found.since_us, found.mine, found.theirs, now_us)
    if judged.course is Course.BACK:
        back(draft, alias, now_us, _back_reason(plan, found, judged))
    elif judged.course is Course.ADVANCE and not alias.hold:
        following = Canary(found.candidate, found.champion, found.step + 1, now_us, reasons=judged.reasons)
        if following.step < len(plan.steps):
            _enter(draft, alias, plan, following, now_us)
        else:
            reason = f"{found.candidate} passed its canary"
            draft.put_alias(replace(alias, canary=None, straight=True, reason=reason))
    else:
        # With a hold only a report can change anything, and only for the worse.
        check_us = 0 if judged.course is Course.ADVANCE else judged.check_us
        if check_us and check_us != found.check_us:
            draft.effects.append(WakeAt(check_us))
        kept = replace(found, check_us=check_us, reasons=judged.reasons)
        draft.put_alias(replace(alias, canary=kept))


def _enter(draft: Draft, alias: Alias, plan: CanaryPlan, found: Canary, now_us: int) -> None:
    step = plan.steps[found.step]
    check_us = now_us + step.hold_us
    targets: tuple[Target, ...] = (Target(found.champion, 1000),)
    if not step.shadow:
        targets = (
            Target(found.champion, 1000 - step.weight_milli),
            Target(found.candidate, step.weight_milli),
        )
    draft.effects.append(WakeAt(check_us))
    entered = replace(found, since_us=now_us, check_us=check_us)
    draft.put_alias(replace(alias, targets=targets, canary=entered))


def _back_reason(plan: CanaryPlan, found: Canary, judged: Judged) -> str:
    step = plan.steps[found.step]
    kind = "of copied requests" if step.shadow else "of the traffic"
    return (
        f"{found.candidate} went back to {found.champion} by itself in step {found.step + 1} of"
        f" {len(plan.steps)} ({step.weight_milli / 10:g} % {kind}): {'; '.join(judged.reasons)}"
    )
