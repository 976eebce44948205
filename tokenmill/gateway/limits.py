"""The ``x-ratelimit-*`` headers: what a key's tenant and project may still use, in money too.

Shows the tightest of all limits. Decides nothing; ``policy.admit`` does.
"""

from __future__ import annotations

from tokenmill.control.requests import EdgeMemory, Index
from tokenmill.domain.table import KeyEntry
from tokenmill.policy.admit import Left, Meter, left

MICRO = 1_000_000
NO_USE = Meter()


def ratelimit_headers(index: Index, memory: EdgeMemory, key: KeyEntry, now_us: int, alias: str = "") -> bytes:
    """Header lines, or nothing when neither requests, tokens nor money are limited."""
    requests: Left | None = None  # what the limit leaves that leaves the fewest
    tokens: Left | None = None
    money: Left | None = None
    for limit in index.bounds(key, alias):
        now = left(limit.quota, memory.meters.get(limit.meter) or NO_USE, now_us)
        if now.requests is not None and (requests is None or now.requests < (requests.requests or 0)):
            requests = now
        if now.tokens is not None and (tokens is None or now.tokens < (tokens.tokens or 0)):
            tokens = now
        if now.micros is not None and (money is None or now.micros < (money.micros or 0)):
            money = now
    lines = b""
    if requests is not None:
        lines = _lines(
            b"requests", requests.requests or 0, requests.requests_limit, requests.requests_reset_us
        )
    if tokens is not None:
        lines += _lines(b"tokens", tokens.tokens or 0, tokens.tokens_limit, tokens.tokens_reset_us)
    return lines if money is None else lines + _money(money.micros or 0, money.micros_limit)


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
