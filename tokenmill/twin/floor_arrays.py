"""The arrays in which the twin's core keeps replicas, requests and results: one record is one cache line
or two.

Plain NumPy, made here and changed by the kernels. ``Floor`` bundles them, so that a kernel takes one
argument.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

Array = Any
"""A NumPy array or one record of it; the kernels index them in ways that stubs do not describe."""

UNIT = 1024
"""Cached tokens are counted in 1/1024, so that a fractional gain per step (speculative decoding) stays
exact."""

REPLICA = np.dtype(
    [
        ("now", "f8"),  # end of the last iteration, seconds
        ("quiet", "f8"),  # before this nothing ends in it unless a request comes; a look needs no advance
        ("step", "i8"),  # decoding iterations done
        ("cached", "i8"),  # tokens of decoding sequences in the cache, in 1/1024
        ("blocks", "i8"),  # blocks of the cache that are taken
        ("batch", "i4"),  # sequences that decode
        ("waiting", "i4"),  # requests that wait, a list of slots from first to last
        ("first", "i4"),
        ("last", "i4"),
        ("engine", "i4"),  # which step table
        ("open", "i2"),  # takes new requests
        ("alone", "i2"),  # 1 after it threw out a sequence, until its next iteration is over
        ("joules", "f8"),  # above idle
        ("busy", "f8"),  # seconds in iterations
        ("progress", "i8"),  # tokens of the first waiting prompt that are done; 0 is not admitted yet
        ("order", "i8"),  # counts sequences as they begin to decode
        ("units", "i8"),  # in the prefix cache, a list from newest to oldest, and its free entries
        ("newest", "i8"),
        ("oldest", "i8"),
        ("spare", "i8"),
    ]
)

SLOT = np.dtype(
    [
        ("arrival", "f8"),
        ("first", "f8"),  # time of the first token
        ("key", "i8"),  # session, or offset into ``units``
        ("input", "i4"),
        ("output", "i4"),
        ("made", "i4"),  # output tokens made before it was thrown out
        ("next", "i4"),  # the slot behind it while it waits or is free; while it decodes, its ``order``
        ("units", "i4"),  # leading prefix units of the prompt
        ("shared", "i4"),  # of these, units that belong to the tenant and not to the session
        ("alias", "i4"),
        ("tenant", "i4"),
        ("id", "i4"),  # row of the log, or -1
        ("hits", "i4"),  # tokens of the prompt that the cache held
    ]
)

REQUEST = np.dtype(
    [
        ("at", "f8"),
        ("key", "i8"),
        ("input", "i4"),
        ("output", "i4"),
        ("units", "i4"),
        ("shared", "i4"),
        ("alias", "i4"),  # LOOK: no request, every replica is brought to this time
        ("tenant", "i4"),
        ("id", "i4"),
        ("draw", "i4"),  # 0 to 2**31 - 1, for the router
        ("draw2", "i4"),
    ],
    align=True,
)

LOOK = -1

ENGINE = np.dtype(
    [
        ("cached_s", "f8"),  # per 1/1024 cached token
        ("pair_s", "f8"),
        ("cached_j", "f8"),
        ("pair_j", "f8"),
        ("idle_w", "f8"),
        ("prefill", "f8"),  # shares of a prompt's time: what the engine spends, and what comes on top for its
        ("late", "f8"),  # own request
        ("eager_s", "f8"),
        ("capacity", "i8"),  # blocks
        ("block", "i8"),
        ("budget", "i8"),
        ("sequences", "i8"),
        ("most", "i8"),  # requests that it takes, running and waiting
        ("width", "i8"),  # tokens of one sequence in one iteration
        ("gain", "i8"),  # tokens won per iteration, in 1/1024
        ("mixed", "i8"),
        ("preempt", "i8"),
        ("prefix", "i8"),
    ]
)

# Totals, by position in ``Floor.counts``.
FINISHED, OUTPUT, PREFILLED, HIT, PREEMPTED, RECOMPUTED, REFUSED, EVENTS, TAKEN, INPUT, OVER_QUOTA, GOOD = (
    range(12)
)
COUNTS = 12

TTFT, TPOT, END_TO_END = range(3)

# By alias, by position in a row of ``Floor.served``: requests that ended, their output tokens, those of good
# ones, and requests whose first token came late; slow ones began in time and then took too long per token.
ENDED, MADE, MADE_GOOD, LATE, SLOW = range(5)


LINE = 64
"""Bytes of a cache line."""


def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    """Zeros that begin with a cache line. What is never touched takes no memory."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + size].view(dtype).reshape(shape)


class Floor(NamedTuple):
    """All of a factory's replicas. R replicas, at most S requests each, B the largest batch, E step tables, A
    aliases."""

    replicas: Array  # R of REPLICA
    slots: Array  # R times S of SLOT, for whichever replica needs one
    spare: Array  # 2, int64: the first free slot or -1, and how many were ever used
    heap: Array  # R x (B or more), int64: last step << 28 | slot, of those that decode
    phases: Array  # R x block tokens, int32: sequences by (length - step) modulo block, when preempting
    engines: Array  # E of ENGINE
    curves: Array  # E x tokens x 2: seconds and joules of an iteration
    counts: Array  # COUNTS, int64
    refused: Array  # A, int64: requests that no replica of the alias could take
    served: Array  # A x 5, int64
    histograms: Array  # A x 3 x bins, int64: TTFT, TPOT, end to end
    targets: Array  # A x 2: TTFT and TPOT in seconds that count as good
    log: Array  # rows x 3: first token, end, replica; no rows when it is not wanted
    unit_tokens: int  # tokens of a prefix unit
    units: Array  # keys of prefix units when requests name them one by one
    nodes: Array  # R x C entries of the prefix cache
    index: Array  # R x H, int32: hash table of entries
    quotas: Array  # T x 4, int64: requests/min, tokens/min, tokens/day, open at once; -1 is no limit
    meters: Array  # T x 5, int64: open, two buckets, day, tokens of the day


NODE = np.dtype([("key", "i8"), ("newer", "i4"), ("older", "i4")])
