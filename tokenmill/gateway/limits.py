"""The ``x-ratelimit-*`` headers: what a key's tenant and project may still use, in money too.

Shows the tightest of all limits. Decides nothing; ``policy.admit`` does.
"""

from __future__ import annotations

from tokenmill.control.requests import EdgeMemory, Index
from tokenmill.domain.factory import Quota
from tokenmill.domain.table import KeyEntry
from tokenmill.policy.admit import Left, Meter, left

MICRO = 1_000_000


def ratelimit_headers(index: Index, memory: EdgeMemory, key: KeyEntry, now_us: int, alias: str = "") -> bytes:
    """Header lines, or nothing when neither requests, tokens nor money are limited."""
    shown = [
        (limit.quota, left(limit.quota, memory.meters.get(limit.meter) or Meter(), now_us))
        for limit in index.bounds(key, alias)
    ]
    if not shown:
        return b""
    return _requests(shown) + _tokens(shown) + _money(shown)


def _requests(shown: list[tuple[Quota, Left]]) -> bytes:
    found = [
        (now.requests, quota.requests_per_minute, now.requests_reset_us)
        for quota, now in shown
        if now.requests is not None and quota.requests_per_minute is not None
    ]
    return _lines(b"requests", *min(found)) if found else b""


def _tokens(shown: list[tuple[Quota, Left]]) -> bytes:
    found = []
    for quota, now in shown:
        limits = [n for n in (quota.tokens_per_minute, quota.tokens_per_day) if n is not None]
        if now.tokens is not None and limits:
            found.append((now.tokens, min(limits), now.tokens_reset_us))
    return _lines(b"tokens", *min(found)) if found else b""


def _money(shown: list[tuple[Quota, Left]]) -> bytes:
    """What is left of the tightest budget; a soft one that is passed is warned of."""
    found = [(now.micros, now.micros_limit) for _, now in shown if now.micros is not None]
    if not found:
        return b""
    remaining, limit = min(found)
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
