"""May the candidate take more traffic? Live numbers against the champion's of the same step; fails closed.

A candidate that is clearly worse goes back at once: when even the lower end of the 95 % interval of its error
rate (Wilson 1927) is over what is allowed. Otherwise a step lasts its time, and then every bound must hold
on enough requests of both. Missing evidence is waited for, ``patience_us`` at most; then the candidate goes
back, since nothing shows that it is as good. Looking again and again makes the early stop a little more
likely than one look would; that errs on the side of the release that serves.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tokenmill.domain.factory import CanaryPlan
from tokenmill.domain.outcomes import Outcomes
from tokenmill.policy.gate import wilson

EARLIEST = 5
"""So many requests must have been seen before an early stop: one unlucky request says nothing."""

QUANTILE_MILLI = 950


class Course(StrEnum):
    WAIT = "wait"
    ADVANCE = "advance"
    BACK = "back"


@dataclass(frozen=True, slots=True)
class Judged:
    """``check_us`` is when time alone can change the decision; 0 is never."""

    course: Course
    reasons: tuple[str, ...]
    check_us: int = 0


def judge_step(
    plan: CanaryPlan, step: int, since_us: int, candidate: Outcomes, champion: Outcomes, now_us: int
) -> Judged:
    """Decide on step number ``step`` of ``plan``, which began at ``since_us``, from what was seen in it."""
    allowed_milli = _error_milli(champion) + plan.error_milli
    if candidate.requests >= EARLIEST:
        low, _ = wilson(candidate.errors / candidate.requests, candidate.requests)
        if low * 1000 > allowed_milli:
            text = (
                f"{candidate.errors} of its {candidate.requests} requests failed: at least {low * 100:.1f} %"
            )
            text += f" at 95 % confidence, where at most {allowed_milli / 10:.1f} % is allowed"
            return Judged(Course.BACK, (text,))
    end_us = since_us + plan.steps[step].hold_us
    missing = _missing(plan, candidate, champion)
    if now_us < end_us:
        left_s = -(-(end_us - now_us) // 1_000_000)
        return Judged(Course.WAIT, (f"the step has {left_s} s to go", *missing), end_us)
    if missing:
        deadline_us = end_us + plan.patience_us
        if now_us >= deadline_us:
            return Judged(Course.BACK, (f"no evidence came in {plan.patience_us // 1_000_000} s", *missing))
        return Judged(Course.WAIT, missing, deadline_us)
    checks = _checks(plan, candidate, champion)
    failed = tuple(f"Failed: {text}" for ok, text in checks if not ok)
    passed = tuple(f"Passed: {text}" for ok, text in checks if ok)
    if failed:
        return Judged(Course.BACK, (*failed, *passed))
    return Judged(Course.ADVANCE, passed)


def _missing(plan: CanaryPlan, candidate: Outcomes, champion: Outcomes) -> tuple[str, ...]:
    found = [
        f"the {name} has {seen.requests} requests in this step, {plan.min_requests} are needed"
        for name, seen in (("candidate", candidate), ("champion", champion))
        if seen.requests < plan.min_requests
    ]
    if plan.feedback_milli >= 0:
        found += [
            f"the {name} has {seen.good + seen.bad} opinions in this step, {plan.min_feedback} are needed"
            for name, seen in (("candidate", candidate), ("champion", champion))
            if seen.good + seen.bad < plan.min_feedback
        ]
    return tuple(found)


def _checks(plan: CanaryPlan, candidate: Outcomes, champion: Outcomes) -> list[tuple[bool, str]]:
    mine, theirs = _error_milli(candidate), _error_milli(champion)
    text = f"{mine / 10:.1f} % of its requests failed, {theirs / 10:.1f} % of the champion's;"
    text += f" {plan.error_milli / 10:.1f} points more are allowed"
    checks = [(mine <= theirs + plan.error_milli, text)]
    if plan.latency_milli:
        slow, usual = candidate.latency_us(QUANTILE_MILLI), champion.latency_us(QUANTILE_MILLI)
        text = f"95 % of its answers took at most {slow / 1000:.0f} ms, the champion's {usual / 1000:.0f} ms;"
        text += f" {plan.latency_milli / 1000:g} times as long is allowed"
        checks.append((slow > 0 and slow * 1000 <= usual * plan.latency_milli, text))
    if plan.feedback_milli >= 0:
        liked, before = _good_milli(candidate), _good_milli(champion)
        text = f"{liked / 10:.1f} % of opinions on it were good, {before / 10:.1f} % on the champion;"
        text += f" {plan.feedback_milli / 10:.1f} points fewer are allowed"
        checks.append((liked + plan.feedback_milli >= before, text))
    return checks


def _error_milli(seen: Outcomes) -> int:
    return seen.errors * 1000 // seen.requests if seen.requests else 0


def _good_milli(seen: Outcomes) -> int:
    return seen.good * 1000 // max(1, seen.good + seen.bad)
