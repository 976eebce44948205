"""May this request in? Requests and tokens per minute, tokens per day, and requests open at once.

Rates use the generic cell rate algorithm (ITU-T I.371): one integer per limit, the time at which the bucket
would be empty again, instead of a level and a stamp. A bucket holds one minute's worth, so a tenant may spend
its minute in one burst and then refills continuously. Days are UTC calendar days, so that a day's use here is
the day's use in the ledger.

Tokens are reserved before a request runs (its estimated input and the most it may put out) and corrected
afterwards by ``settle``. Tenant and project are limited alike and both must agree. Nothing here identifies a
key or knows a model.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.domain.factory import Quota
from tokenmill.domain.table import TenantEntry

MINUTE_US = 60_000_000
DAY_US = 86_400_000_000
NO_QUOTA = Quota()


@dataclass(frozen=True, slots=True)
class Meter:
    """What one tenant, or one project, has used. ``*_empty_us`` is when its bucket is empty again."""

    open: int = 0
    requests_empty_us: int = 0
    tokens_empty_us: int = 0
    day: int = 0  # days since the epoch, UTC
    day_tokens: int = 0


@dataclass(frozen=True, slots=True)
class AdmitMemory:
    """What admission remembers. The tenant's meter is shared by all of its projects."""

    tenant: Meter = Meter()
    project: Meter = Meter()


@dataclass(frozen=True, slots=True)
class Admitted:
    """``reserved`` tokens are held until ``settle``; ``memory`` replaces the one that was passed in."""

    memory: AdmitMemory
    reserved: int


@dataclass(frozen=True, slots=True)
class Refused:
    """``code`` is for programs, ``reasons`` for people; ``retry_after_us`` 0 means that waiting is no use."""

    code: str
    reasons: tuple[str, ...]
    retry_after_us: int = 0


def admit(
    entry: TenantEntry,
    project_quota: Quota,
    memory: AdmitMemory,
    input_estimate: int,
    max_output: int,
    now_us: int,
) -> Admitted | Refused:
    """Admit a request of at most ``input_estimate + max_output`` tokens, or say which limits forbid it.

    Every limit is looked at, so that ``Refused.reasons`` is complete. On a refusal nothing is charged.
    """
    tokens = input_estimate + max_output
    tenant = memory.tenant
    project = memory.project
    reasons: list[str] = []
    wait_us = 0
    never = False
    if entry.quota != NO_QUOTA:
        wait_us, never = _refusals(f"tenant {entry.name}", entry.quota, tenant, tokens, now_us, reasons)
    if project_quota != NO_QUOTA:
        project_wait, project_never = _refusals("project", project_quota, project, tokens, now_us, reasons)
        wait_us = max(wait_us, project_wait)
        never = never or project_never
    if reasons:
        code = "request_too_large" if never else "rate_limit_exceeded"
        return Refused(code, tuple(reasons), 0 if never else max(wait_us, 1))
    return Admitted(
        AdmitMemory(
            _charged(entry.quota, tenant, tokens, now_us), _charged(project_quota, project, tokens, now_us)
        ),
        tokens,
    )


def settle(
    entry: TenantEntry,
    project_quota: Quota,
    memory: AdmitMemory,
    reserved: int,
    used: int,
    now_us: int,
) -> AdmitMemory:
    """Close an admitted request: give back ``reserved - used`` tokens, or take what it used beyond them.

    Call it exactly once per ``Admitted``. A correction on the next UTC day leaves that day alone.
    """
    return AdmitMemory(
        _corrected(entry.quota, memory.tenant, reserved - used, now_us),
        _corrected(project_quota, memory.project, reserved - used, now_us),
    )


@dataclass(frozen=True, slots=True)
class Left:
    """What a quota still allows at one moment, for ``x-ratelimit-*`` headers; ``None`` is unlimited."""

    requests: int | None
    tokens: int | None
    requests_reset_us: int
    tokens_reset_us: int


def left(quota: Quota, meter: Meter, now_us: int) -> Left:
    """Requests and tokens left in this minute's buckets, and how long until each is full again."""
    requests = tokens = None
    requests_reset = max(0, meter.requests_empty_us - now_us)
    tokens_reset = max(0, meter.tokens_empty_us - now_us)
    if quota.requests_per_minute is not None:
        requests = max(0, (MINUTE_US - requests_reset) * quota.requests_per_minute // MINUTE_US)
    if quota.tokens_per_minute is not None:
        tokens = max(0, (MINUTE_US - tokens_reset) * quota.tokens_per_minute // MINUTE_US)
    if quota.tokens_per_day is not None:
        used = meter.day_tokens if meter.day == now_us // DAY_US else 0
        in_day = max(0, quota.tokens_per_day - used)
        tokens = in_day if tokens is None else min(tokens, in_day)
    return Left(requests, tokens, requests_reset, tokens_reset)


def _span_us(amount: int, per_minute: int) -> int:
    """How long a bucket of ``per_minute`` takes to refill ``amount``, rounded up so that no limit leaks."""
    return -(-amount * MINUTE_US // per_minute)


def _refusals(
    who: str, quota: Quota, meter: Meter, tokens: int, now_us: int, reasons: list[str]
) -> tuple[int, bool]:
    """Append one sentence per limit that forbids it; return the wait and whether waiting is no use."""
    wait_us = 0
    never = False
    if quota.concurrent_requests is not None and meter.open >= quota.concurrent_requests:
        reasons.append(f"{who}: {meter.open} requests are open, limit {quota.concurrent_requests}")
        wait_us = 1_000_000
    for name, limit, amount, empty_us in (
        ("requests", quota.requests_per_minute, 1, meter.requests_empty_us),
        ("tokens", quota.tokens_per_minute, tokens, meter.tokens_empty_us),
    ):
        if limit is None:
            continue
        if amount > limit:
            never = True
            reasons.append(f"{who}: asks for {amount} {name} at once, limit {limit} {name} per minute")
            continue
        over_us = max(empty_us, now_us) + _span_us(amount, limit) - now_us - MINUTE_US
        if over_us > 0:
            wait_us = max(wait_us, over_us)
            reasons.append(f"{who}: limit {limit} {name} per minute is used up")
    if quota.tokens_per_day is not None:
        day = now_us // DAY_US
        used = meter.day_tokens if meter.day == day else 0
        if tokens > quota.tokens_per_day:
            never = True
        if used + tokens > quota.tokens_per_day:
            wait_us = max(wait_us, (day + 1) * DAY_US - now_us)
            reasons.append(
                f"{who}: {used} tokens used today, {tokens} asked, limit {quota.tokens_per_day} per UTC day"
            )
    return wait_us, never


def _charged(quota: Quota, meter: Meter, tokens: int, now_us: int) -> Meter:
    requests_empty_us = tokens_empty_us = day = day_tokens = 0
    if quota.requests_per_minute is not None:
        requests_empty_us = max(meter.requests_empty_us, now_us) + _span_us(1, quota.requests_per_minute)
    if quota.tokens_per_minute is not None:
        tokens_empty_us = max(meter.tokens_empty_us, now_us) + _span_us(tokens, quota.tokens_per_minute)
    if quota.tokens_per_day is not None:
        day = now_us // DAY_US
        day_tokens = tokens + (meter.day_tokens if meter.day == day else 0)
    return Meter(meter.open + 1, requests_empty_us, tokens_empty_us, day, day_tokens)


def _corrected(quota: Quota, meter: Meter, unused: int, now_us: int) -> Meter:
    tokens_empty_us = meter.tokens_empty_us
    day_tokens = meter.day_tokens
    if quota.tokens_per_minute:
        # Giving back never moves the bucket below empty: that would hand out more than one minute's worth.
        back_us = unused * MINUTE_US // quota.tokens_per_minute
        tokens_empty_us = max(min(now_us, tokens_empty_us), tokens_empty_us - back_us)
    if quota.tokens_per_day is not None and meter.day == now_us // DAY_US:
        day_tokens = max(0, day_tokens - unused)
    return Meter(max(0, meter.open - 1), meter.requests_empty_us, tokens_empty_us, meter.day, day_tokens)
