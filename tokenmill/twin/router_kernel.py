"""The compiled form of ``policy.route``, and the loop that sends requests to replicas. Tests hold both
together.

Which replicas are compared is the router's kind: all of them (least work, as the live gateway does), two
drawn at random (Mitzenmacher 2001: nearly as good, at a constant price), two and the one that saw the
prefix last, or a single one. Which of these wins is ``policy.route``'s rule, with its limits.
"""

from __future__ import annotations

from tokenmill.twin.compiling import compiled, inlined
from tokenmill.twin.floor_arrays import (
    INPUT,
    OVER_QUOTA,
    REFUSED,
    TAKEN,
    Array,
    Floor,
)
from tokenmill.twin.quota_kernel import charge, within
from tokenmill.twin.replica_kernel import advance

RANDOM, TWO_CHOICES, LEAST_WORK, AFFINITY = range(4)

QUEUE_PER_SLOT = 8
PREFIX_BONUS_MILLI = 200
PREFIX_HITS_MOST = 4
"""As in ``policy.route``; a test compares them."""

FULL = 1 << 40
HOME_KEY, HOME_REPLICA, HOME_UNITS = range(3)


@inlined
def score(outstanding: int, slots: int, most: int, hits: int) -> int:
    """Lower is better; ``FULL`` is not to be used."""
    if outstanding >= most:
        return FULL
    return outstanding * 1000 // slots - PREFIX_BONUS_MILLI * min(hits, PREFIX_HITS_MOST)


@inlined
def replica_score(floor: Floor, r: int, at: float, hits: int) -> int:
    """A replica's score as of time ``at``, to which it is advanced."""
    state = floor.replicas[r]
    if state["now"] < at:
        advance(floor, r, at)
    if not state["open"]:
        return FULL
    outstanding = state["batch"] + state["tail"] - state["head"]
    engine = floor.engines[state["engine"]]
    return score(outstanding, engine["sequences"], engine["most"], hits)


@inlined
def prefix_of(floor: Floor, request: Array) -> int:
    """What prompts that begin alike have in common: their session, or the block as deep as hits count."""
    if floor.units.shape[0] > 0:
        return int(floor.units[request["key"] + min(request["units"], PREFIX_HITS_MOST) - 1])
    return int(request["key"])


@inlined
def choose(floor: Floor, request: Array, pool: Array, count: int, kind: int, home: Array) -> int:
    """The replica that takes a request, or -1 when all of its candidates are full."""
    at = request["at"]
    if kind == LEAST_WORK:
        return _least(floor, at, pool, count)
    best = int(pool[(request["draw"] * count) >> 31])
    least = replica_score(floor, best, at, 0)
    if kind != RANDOM:
        other = int(pool[(request["draw2"] * count) >> 31])
        found = replica_score(floor, other, at, 0)
        if found < least or (found == least and other < best):
            best, least = other, found
    if kind == AFFINITY and request["units"] > 0:
        key = prefix_of(floor, request)
        seen = home[key % home.shape[0]]
        if seen[HOME_KEY] == key + 1:
            other = int(seen[HOME_REPLICA])
            found = replica_score(floor, other, at, min(request["units"], seen[HOME_UNITS]))
            if found < least or (found == least and other < best):
                best, least = other, found
    if least < FULL:
        return best
    return _least(floor, at, pool, count)


@compiled
def _least(floor: Floor, at: float, pool: Array, count: int) -> int:
    """The one with the least score of all, the first on a tie; -1 when all are full."""
    best = -1
    least = FULL
    for i in range(count):
        found = replica_score(floor, pool[i], at, 0)
        if found < least:
            best, least = int(pool[i]), found
    return best


@inlined
def fits(floor: Floor, request: Array, r: int) -> bool:
    """Whether the replica's cache can ever hold the whole request."""
    engine = floor.engines[floor.replicas[r]["engine"]]
    blocks = (request["input"] + request["output"] + engine["block"] - 1) // engine["block"]
    return bool(blocks <= engine["capacity"])


@inlined
def place(floor: Floor, request: Array, r: int, arrival: float) -> None:
    """Put a request that fits into a replica's queue."""
    state = floor.replicas[r]
    if state["free"] > 0:
        state["free"] -= 1
        s = floor.free[r, state["free"]]
    else:
        s = state["fresh"]
        state["fresh"] += 1
    slot = floor.slots[r, s]
    slot["arrival"] = arrival
    slot["key"] = request["key"]
    slot["input"] = request["input"]
    slot["output"] = request["output"]
    slot["made"] = 0
    slot["units"] = request["units"]
    slot["shared"] = request["shared"]
    slot["alias"] = request["alias"]
    slot["tenant"] = request["tenant"]
    slot["id"] = request["id"]
    slot["hits"] = 0
    floor.queue[r, state["tail"] % floor.queue.shape[1]] = s
    state["tail"] += 1


@compiled
def run(floor: Floor, requests: Array, pools: Array, sizes: Array, kinds: Array, home: Array) -> None:
    """Send requests, which are in order of time, to the replicas of their alias."""
    for i in range(requests.shape[0]):
        request = requests[i]
        alias = request["alias"]
        r = -1
        if sizes[alias] > 0:
            r = choose(floor, request, pools[alias], sizes[alias], kinds[alias], home)
        if r < 0 or not fits(floor, request, r):
            floor.counts[REFUSED] += 1
            floor.refused[alias] += 1
            continue
        if floor.quotas.shape[0] > 0:
            tokens = request["input"] + request["output"]
            now_us = int(request["at"] * 1e6)
            quota, meter = floor.quotas[request["tenant"]], floor.meters[request["tenant"]]
            if not within(quota, meter, tokens, now_us):
                floor.counts[OVER_QUOTA] += 1
                continue
            charge(quota, meter, tokens, now_us)
        place(floor, request, r, request["at"])
        floor.counts[TAKEN] += 1
        floor.counts[INPUT] += request["input"]
        if kinds[alias] == AFFINITY and request["units"] > 0:
            key = prefix_of(floor, request)
            seen = home[key % home.shape[0]]
            seen[HOME_KEY] = key + 1
            seen[HOME_REPLICA] = r
            seen[HOME_UNITS] = request["units"]


@compiled
def advance_all(floor: Floor, until: float) -> None:
    """Bring every replica to ``until``."""
    for r in range(floor.replicas.shape[0]):
        advance(floor, r, until)
