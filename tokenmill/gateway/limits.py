"""The ``x-ratelimit-*`` headers: what a key's tenant and project may still use, in money too.

Shows the tightest of all limits. Decides nothing; ``policy.admit`` does.
"""

from __future__ import annotations

from tokenmill.control.requests import EdgeMemory, Index
from tokenmill.domain.table import KeyEntry
from tokenmill.policy.admit import Meter, left

MICRO = 1_000_000
NO_USE = Meter()


def ratelimit_headers(index: Index, memory: EdgeMemory, key: KeyEntry, now_us: int, alias: str = "") -> bytes:
    """Header lines, or nothing when neither requests, tokens nor money are limited."""
    requests: tuple[int, int, int] | None = None  # left, limit, reset: the tightest of all limits
    tokens: tuple[int, int, int] | None = None
    money: tuple[int, int] | None = None
    for limit in index.bounds(key, alias):
        quota = limit.quota
        now = left(quota, memory.meters.get(limit.meter) or NO_USE, now_us)
        if now.requests is not None and quota.requests_per_minute is not None:
            asked = (now.requests, quota.requests_per_minute, now.requests_reset_us)
            if requests is None or asked < requests:
                requests = asked
        if now.tokens is not None:
            counted = (now.tokens, now.tokens_limit, now.tokens_reset_us)
            if tokens is None or counted < tokens:
                tokens = counted
        if now.micros is not None and (money is None or (now.micros, now.micros_limit) < money):
            money = (now.micros, now.micros_limit)
    lines = b"" if requests is None else _lines(b"requests", *requests)
    if tokens is not None:
        lines += _lines(b"tokens", *tokens)
    return lines if money is None else lines + _money(*money)


def _money(remaining: int, limit: int) -> bytes:
    """What is left of the tightest budget; a soft one that is passed is warned of."""
    lines = b"x-ratelimit-limit-money: %d.%06d\r\nx-ratelimit-remaining-money: %d.%06d\r\n" % (
        *divmod(limit, MICRO),
        *divmod(max(0, remaining), MICRO),
    )
    return lines + (b"x-tokenmill-warning: over budget\r\n" if remaining < 0 else b"")


def _lines(what: bytes, remaining: int, limit: int, reset_us: int) -> bytes:
    return (
        b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %d.%03ds\r\n"
        % (what, limit, what, remaining, what, reset_us // 1_000_000, reset_us // 1000 % 1000)
    )
