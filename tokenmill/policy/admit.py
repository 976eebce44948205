"""May this request in? Requests and tokens per minute, tokens per day, money per day and month, open ones.

Rates use the generic cell rate algorithm (ITU-T I.371): one integer per limit, the time at which the bucket
would be empty again, instead of a level and a stamp. A bucket holds one minute's worth, so a tenant may spend
its minute in one burst and then refills continuously. Days and months are those of the UTC calendar, and use
counts when a request ends, so that a day's use here is the day's use in the ledger.

Tokens and money are reserved before a request runs (its estimated input and the most it may put out) and
corrected afterwards by ``settle``. Everyone concerned (tenant, project, a bound of either on one model) is a
``Limit``; all must agree. Nothing here identifies a key or knows a model or a price.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.domain.calendar import DAY_US, month_of
from tokenmill.domain.factory import Quota
from tokenmill.domain.value import value

MINUTE_US = 60_000_000
NO_QUOTA = Quota()


@value
class Meter:
    """What a limit's owner has used. ``*_empty_us`` is when its bucket is empty again."""

    open: int = 0
    requests_empty_us: int = 0
    tokens_empty_us: int = 0
    day: int = 0  # days since the epoch, UTC
    day_tokens: int = 0
    day_micros: int = 0
    month: int = 0  # year * 12 + month - 1
    month_micros: int = 0


@value
class Limit:
    """One quota and whose it is. ``meter`` names its meter; ``who`` is for people."""

    meter: str
    who: str
    quota: Quota


@value
class Use:
    """What a request may use at most, or has used."""

    tokens: int = 0
    micros: int = 0


@value
class Admitted:
    """``meters`` replace those that were passed in, in their order; ``reserved`` is held until ``settle``."""

    meters: tuple[Meter, ...]
    reserved: Use


@value
class Refused:
    """``code`` is for programs, ``reasons`` for people; ``retry_after_us`` 0 means that waiting is no use."""

    code: str
    reasons: tuple[str, ...]
    retry_after_us: int = 0


def admit(limits: Sequence[Limit], meters: Sequence[Meter], asked: Use, now_us: int) -> Admitted | Refused:
    """Admit a request that uses at most ``asked``, or say which limits forbid it.

    ``meters`` are those of ``limits``, in their order. Every limit is looked at, so that ``Refused.reasons``
    is complete. On a refusal nothing is charged.
    """
    charged: list[Meter] = []
    for limit, meter in zip(limits, meters, strict=True):
        kept = _charged(limit.quota, meter, asked, now_us)
        if kept is None:
            return _refused(limits, meters, asked, now_us)
        charged.append(kept)
    return Admitted(tuple(charged), asked)


def _refused(limits: Sequence[Limit], meters: Sequence[Meter], asked: Use, now_us: int) -> Refused:
    """Why not, by every limit that forbids it."""
    reasons: list[str] = []
    wait_us = 0
    never = broke = False
    for limit, meter in zip(limits, meters, strict=True):
        limit_wait, limit_never = _refusals(limit.who, limit.quota, meter, asked.tokens, now_us, reasons)
        wait_us = max(wait_us, limit_wait)
        never = never or limit_never
        if limit.quota.in_money and not limit.quota.warn:
            broke = _over_budget(limit, meter, asked.micros, now_us, reasons) or broke
    code = "insufficient_quota" if broke else "request_too_large" if never else "rate_limit_exceeded"
    return Refused(code, tuple(reasons), 0 if never or broke else max(wait_us, 1))


def settle(
    limits: Sequence[Limit],
    meters: Sequence[Meter],
    reserved: Use,
    used: Use,
    admitted_us: int,
    now_us: int,
) -> tuple[Meter, ...]:
    """Close an admitted request: give back what it did not use, or take what it used beyond its reserve.

    Call it exactly once per ``Admitted``. A request counts where it ends: one that began on another day or in
    another month gave that one's reserve up when it passed.
    """
    begun = admitted_us // DAY_US
    return tuple(
        [
            _corrected(limit.quota, meter, reserved, used, begun, now_us)
            for limit, meter in zip(limits, meters, strict=True)
        ]
    )


@value
class Left:
    """What a quota still allows at one moment, for ``x-ratelimit-*`` headers; ``None`` is unlimited.

    ``tokens_limit`` is the smaller bound of minute and day. ``micros`` is the tighter of day and month, below
    zero when a soft bound is passed; ``micros_limit`` is that bound.
    """

    requests: int | None
    tokens: int | None
    requests_reset_us: int
    tokens_reset_us: int
    requests_limit: int = 0
    tokens_limit: int = 0
    micros: int | None = None
    micros_limit: int = 0


def left(quota: Quota, meter: Meter, now_us: int) -> Left:
    """Requests and tokens left in this minute's buckets, how long until each is full, and money left."""
    requests = tokens = micros = None
    tokens_limit = micros_limit = 0
    requests_reset = meter.requests_empty_us - now_us if meter.requests_empty_us > now_us else 0
    tokens_reset = meter.tokens_empty_us - now_us if meter.tokens_empty_us > now_us else 0
    requests_limit = quota.requests_per_minute
    if requests_limit is not None:
        requests = _unfilled(requests_reset, requests_limit)
    if quota.tokens_per_minute is not None:
        tokens_limit = quota.tokens_per_minute
        tokens = _unfilled(tokens_reset, tokens_limit)
    by_day = quota.tokens_per_day
    if by_day is not None:
        in_day = by_day - meter.day_tokens if meter.day == now_us // DAY_US else by_day
        in_day = in_day if in_day > 0 else 0
        tokens_limit = by_day if tokens is None or by_day < tokens_limit else tokens_limit
        tokens = in_day if tokens is None or in_day < tokens else tokens
    if quota.in_money:
        for bound, spent, _ in _budgets(quota, meter, now_us):
            if micros is None or bound - spent < micros:
                micros, micros_limit = bound - spent, bound
    return Left(
        requests,
        tokens,
        requests_reset,
        tokens_reset,
        requests_limit or 0,
        tokens_limit,
        micros,
        micros_limit,
    )


def _unfilled(reset_us: int, per_minute: int) -> int:
    """What still fits into a bucket that is empty again in ``reset_us``."""
    return (MINUTE_US - reset_us) * per_minute // MINUTE_US if reset_us < MINUTE_US else 0


def _budgets(quota: Quota, meter: Meter, now_us: int) -> list[tuple[int, int, str]]:
    """``(bound, spent, period)`` of each bound in money."""
    found = []
    day = now_us // DAY_US
    if quota.micros_per_day is not None:
        found.append((quota.micros_per_day, meter.day_micros if meter.day == day else 0, "UTC day"))
    if quota.micros_per_month is not None:
        spent = meter.month_micros if meter.month == month_of(day) else 0
        found.append((quota.micros_per_month, spent, "UTC month"))
    return found


def _over_budget(limit: Limit, meter: Meter, micros: int, now_us: int, reasons: list[str]) -> bool:
    """Append one sentence per hard bound in money that the request could pass.

    What costs nothing passes as long as nothing is overspent.
    """
    over = False
    for bound, spent, period in _budgets(limit.quota, meter, now_us):
        if spent + micros > bound:
            over = True
            reasons.append(
                f"{limit.who}: {_amount(spent)} spent or reserved, up to {_amount(micros)} asked, "
                f"budget {_amount(bound)} per {period}"
            )
    return over


def _amount(micros: int) -> str:
    return f"{micros // 1_000_000}.{micros % 1_000_000:06d}"


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
        if limit is None or limit == amount == 0:
            continue
        if amount > limit:
            never = True
            reasons.append(f"{who}: asks for {amount} {name} at once, limit {limit} {name} per minute")
            continue
        over_us = max(empty_us, now_us) - now_us - MINUTE_US - (-amount * MINUTE_US // limit)
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


def _charged(quota: Quota, meter: Meter, asked: Use, now_us: int) -> Meter | None:
    """The meter with the request on it, or ``None`` where that is more than the quota allows."""
    opened, tokens = meter.open, asked.tokens
    at_once, requests_per_minute = quota.concurrent_requests, quota.requests_per_minute
    tokens_per_minute = quota.tokens_per_minute
    if at_once is not None and opened >= at_once:
        return None
    if requests_per_minute == 0 or (tokens_per_minute == 0 and tokens):
        return None
    requests_empty_us = tokens_empty_us = 0
    if requests_per_minute is not None:
        requests_empty_us = _filled(meter.requests_empty_us, 1, requests_per_minute, now_us)
    if tokens_per_minute:
        tokens_empty_us = _filled(meter.tokens_empty_us, tokens, tokens_per_minute, now_us)
    if requests_empty_us > now_us + MINUTE_US or tokens_empty_us > now_us + MINUTE_US:
        return None
    if not _by_day(quota):
        return Meter(opened + 1, requests_empty_us, tokens_empty_us)
    day, day_tokens, day_micros, month, month_micros = _spent(quota, meter, now_us)
    day_tokens += tokens
    day_micros += asked.micros
    month_micros += asked.micros
    if quota.tokens_per_day is not None and day_tokens > quota.tokens_per_day:
        return None
    if not quota.warn:
        by_day, by_month = quota.micros_per_day, quota.micros_per_month
        if (by_day is not None and day_micros > by_day) or (by_month is not None and month_micros > by_month):
            return None
    return Meter(
        opened + 1, requests_empty_us, tokens_empty_us, day, day_tokens, day_micros, month, month_micros
    )


def _filled(empty_us: int, amount: int, per_minute: int, now_us: int) -> int:
    """When a bucket of ``per_minute`` is empty again once ``amount`` is in it, rounded up: no limit leaks."""
    return (now_us if empty_us < now_us else empty_us) - (-amount * MINUTE_US // per_minute)


def _corrected(quota: Quota, meter: Meter, reserved: Use, used: Use, begun: int, now_us: int) -> Meter:
    tokens_empty_us = meter.tokens_empty_us
    if quota.tokens_per_minute:
        # Giving back never moves the bucket below empty: that would hand out more than one minute's worth.
        floor_us = now_us if now_us < tokens_empty_us else tokens_empty_us
        tokens_empty_us -= (reserved.tokens - used.tokens) * MINUTE_US // quota.tokens_per_minute
        if tokens_empty_us < floor_us:
            tokens_empty_us = floor_us
    still_open = meter.open - 1 if meter.open > 0 else 0
    if not _by_day(quota):
        return Meter(still_open, meter.requests_empty_us, tokens_empty_us)
    day, day_tokens, day_micros, month, month_micros = _spent(quota, meter, now_us)
    day_tokens += used.tokens
    day_micros += used.micros
    month_micros += used.micros
    if begun == day:
        day_tokens -= reserved.tokens
        day_micros -= reserved.micros
    if month and month_of(begun) == month:
        month_micros -= reserved.micros
    return Meter(
        still_open,
        meter.requests_empty_us,
        tokens_empty_us,
        day,
        day_tokens if day_tokens > 0 else 0,
        day_micros if day_micros > 0 else 0,
        month,
        month_micros if month_micros > 0 else 0,
    )


def _by_day(quota: Quota) -> bool:
    return (
        quota.tokens_per_day is not None
        or quota.micros_per_day is not None
        or quota.micros_per_month is not None
    )


def _spent(quota: Quota, meter: Meter, now_us: int) -> tuple[int, int, int, int, int]:
    """The day and what the meter has of it in tokens and money, the month and what it has of that in money.

    The month is 0 where nothing is bounded by it.
    """
    day = now_us // DAY_US
    tokens, micros = (meter.day_tokens, meter.day_micros) if meter.day == day else (0, 0)
    if quota.micros_per_month is None:
        return day, tokens, micros, 0, 0
    month = month_of(day)
    return day, tokens, micros, month, meter.month_micros if meter.month == month else 0
