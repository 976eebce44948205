"""The compiled form of ``policy.admit``: the generic cell rate algorithm over arrays. Tests hold both
together.

In the twin a request reserves what it will use, so ``settle`` has nothing to correct but the open count.
"""

from __future__ import annotations

from tokenmill.twin.compiling import inlined
from tokenmill.twin.floor_arrays import Array

MINUTE_US = 60_000_000
DAY_US = 86_400_000_000
OPEN, REQUESTS_EMPTY, TOKENS_EMPTY, DAY, DAY_TOKENS = range(5)
REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE, TOKENS_PER_DAY, CONCURRENT = range(4)


@inlined
def _span_us(amount: int, per_minute: int) -> int:
    return int((amount * MINUTE_US + per_minute - 1) // per_minute)


@inlined
def _in_bucket(rate: int, empty_us: int, amount: int, now_us: int) -> bool:
    if rate < 0:
        return True
    if amount > rate:
        return False
    return bool(max(empty_us, now_us) + _span_us(amount, rate) - now_us <= MINUTE_US)


@inlined
def within(quota: Array, meter: Array, tokens: int, now_us: int) -> bool:
    """Whether a request of this many tokens keeps all limits of its tenant. -1 is no limit."""
    limit = quota[CONCURRENT]
    if limit >= 0 and meter[OPEN] >= limit:
        return False
    if not _in_bucket(quota[REQUESTS_PER_MINUTE], meter[REQUESTS_EMPTY], 1, now_us):
        return False
    if not _in_bucket(quota[TOKENS_PER_MINUTE], meter[TOKENS_EMPTY], tokens, now_us):
        return False
    limit = quota[TOKENS_PER_DAY]
    used = meter[DAY_TOKENS] if meter[DAY] == now_us // DAY_US else 0
    return bool(limit < 0 or used + tokens <= limit)


@inlined
def charge(quota: Array, meter: Array, tokens: int, now_us: int) -> None:
    """Take a request that is within its limits."""
    meter[OPEN] += 1
    if quota[REQUESTS_PER_MINUTE] >= 0:
        start = max(meter[REQUESTS_EMPTY], now_us)
        meter[REQUESTS_EMPTY] = start + _span_us(1, quota[REQUESTS_PER_MINUTE])
    if quota[TOKENS_PER_MINUTE] >= 0:
        start = max(meter[TOKENS_EMPTY], now_us)
        meter[TOKENS_EMPTY] = start + _span_us(tokens, quota[TOKENS_PER_MINUTE])
    if quota[TOKENS_PER_DAY] >= 0:
        day = now_us // DAY_US
        meter[DAY_TOKENS] = tokens + (meter[DAY_TOKENS] if meter[DAY] == day else 0)
        meter[DAY] = day


@inlined
def give_back(quota: Array, meter: Array, tokens: int, begun_us: int, now_us: int) -> None:
    """A request of the tenant ended; its tokens count on the day on which it ends."""
    meter[OPEN] -= 1
    day = now_us // DAY_US
    if quota[TOKENS_PER_DAY] >= 0 and begun_us // DAY_US != day:
        meter[DAY_TOKENS] = tokens + (meter[DAY_TOKENS] if meter[DAY] == day else 0)
        meter[DAY] = day
