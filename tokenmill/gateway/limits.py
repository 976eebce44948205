"""The ``x-ratelimit-*`` headers: what a key's tenant and project may still use.

Shows the tighter of both. Decides nothing; ``policy.admit`` does.
"""

from __future__ import annotations

from tokenmill.control.requests import EdgeMemory, Index
from tokenmill.domain.factory import Quota
from tokenmill.domain.table import KeyEntry
from tokenmill.policy.admit import Left, Meter, left

UNLIMITED = Quota()


def ratelimit_headers(index: Index, memory: EdgeMemory, key: KeyEntry, now_us: int) -> bytes:
    """Header lines, or nothing when neither requests nor tokens are limited per minute or day."""
    tenant = index.tenants.get(key.tenant)
    quotas = [
        (tenant.quota if tenant else UNLIMITED, key.tenant),
        (index.projects.get((key.tenant, key.project), UNLIMITED), f"{key.tenant}/{key.project}"),
    ]
    shown = [
        (quota, left(quota, memory.meters.get(name) or Meter(), now_us))
        for quota, name in quotas
        if quota != UNLIMITED
    ]
    if not shown:
        return b""
    return _requests(shown) + _tokens(shown)


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


def _lines(what: bytes, remaining: int, limit: int, reset_us: int) -> bytes:
    return (
        b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %d.%03ds\r\n"
        % (what, limit, what, remaining, what, reset_us // 1_000_000, reset_us // 1000 % 1000)
    )
