"""The arrays in which the twin's core keeps replicas, requests and results: one record is one cache line
or two.

Plain NumPy, made here and changed by the kernels. ``Floor`` bundles them, so that a kernel takes one
argument.
"""

from __future__ import annotations

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
        ("joules", "f8"),  # above idle
        ("step", "i8"),  # decoding iterations done
        ("batch", "i8"),  # sequences that decode
        ("cached", "i8"),  # tokens of theirs in the cache, in 1/1024
        ("blocks", "i8"),  # blocks of the cache that are taken
        ("head", "i8"),  # waiting requests are queue[head:tail], as a ring
        ("tail", "i8"),
        ("progress", "i8"),  # tokens of the first waiting prompt that are done; 0 is not admitted yet
        ("engine", "i8"),  # which step table
        ("free", "i8"),  # slots on the free list
        ("fresh", "i8"),  # slots that were never used begin here
        ("order", "i8"),  # counts sequences as they begin to decode
        ("busy", "f8"),  # seconds in iterations
        ("open", "i8"),  # takes new requests
        ("alone", "i8"),  # 1 after it threw out a sequence, until its next iteration is over
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
        ("order", "i4"),
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
        ("alias", "i4"),
        ("tenant", "i4"),
        ("id", "i4"),
        ("draw", "i4"),  # 0 to 2**31 - 1, for the router
        ("draw2", "i4"),
        ("weight", "i4"),  # 0 to 999, which release
    ],
    align=True,
)

ENGINE = np.dtype(
    [
        ("cached_s", "f8"),  # per 1/1024 cached token
        ("pair_s", "f8"),
        ("cached_j", "f8"),
        ("pair_j", "f8"),
        ("idle_w", "f8"),
        ("prefill", "f8"),  # shares of a prompt's time: what the engine spends, and what comes on top for its
        ("late", "f8"),  # own request
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


class Floor(NamedTuple):
    """All of a factory's replicas. R replicas, S slots each, B the largest batch, E step tables, A
    aliases."""

    replicas: Array  # R of REPLICA
    slots: Array  # R x S of SLOT
    queue: Array  # R x S, int32: slots that wait
    heap: Array  # R x (B + 1), int64: last step << 20 | slot, of those that decode
    free: Array  # R x S, int32: slots given back
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
    cache: Array  # R of the prefix cache's header
    nodes: Array  # R x C of its entries
    index: Array  # R x H, int32: hash table of entries
    quotas: Array  # T x 4, int64: requests/min, tokens/min, tokens/day, open at once; -1 is no limit
    meters: Array  # T x 5, int64: open, two buckets, day, tokens of the day


CACHE = np.dtype([("count", "i8"), ("newest", "i8"), ("oldest", "i8"), ("spare", "i8")])
NODE = np.dtype([("key", "i8"), ("newer", "i4"), ("older", "i4")])
