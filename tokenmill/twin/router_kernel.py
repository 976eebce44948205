"""The compiled form of ``policy.route``, and the loop that sends requests to replicas. Tests hold both
together.

Which replicas are compared is the router's kind: all of them (least work, as the live gateway does), two
drawn at random (Mitzenmacher 2001: nearly as good, at a constant price), two and the one that saw the
prefix last, or a single one. Which of these wins is ``policy.route``'s rule, with its limits.
"""

from __future__ import annotations

from tokenmill.twin.compiling import compiled, fetch, inlined
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

RANDOM, TWO_CHOICES, AFFINITY, LEAST_WORK, EVERYONE = range(5)

QUEUE_PER_SLOT = 8
PREFIX_BONUS_MILLI = 200
PREFIX_HITS_MOST = 4
"""As in ``policy.route``; a test compares them."""

FULL = 1 << 40
AHEAD = 6
"""Requests between asking for the memory of one's replicas and needing it: some hundred nanoseconds each."""

HOME_KEY, HOME_REPLICA, HOME_UNITS = range(3)


@inlined
def score(outstanding: int, slots: int, most: int, hits: int) -> int:
    """Lower is better; ``FULL`` is not to be used."""
    if outstanding >= most:
        return FULL
    return outstanding * 1000 // slots - PREFIX_BONUS_MILLI * min(hits, PREFIX_HITS_MOST)


@inlined
def replica_score(floor: Floor, r: int, hits: int) -> int:
    """A replica's score as it was when last advanced."""
    state = floor.replicas[r]
    if not state["open"]:
        return FULL
    engine = floor.engines[state["engine"]]
    return score(state["batch"] + state["waiting"], engine["sequences"], engine["most"], hits)


@inlined
def prefix_of(floor: Floor, request: Array) -> int:
    """What prompts that begin alike have in common: their session, or the block as deep as hits count."""
    if floor.units.shape[0] > 0:
        return int(floor.units[request["key"] + min(request["units"], PREFIX_HITS_MOST) - 1])
    return int(request["key"])


@inlined
def home_of(floor: Floor, request: Array, home: Array) -> Array:
    """The entry of the request's prefix, which may be another's."""
    return home[prefix_of(floor, request) % home.shape[0]]


@inlined
def compared(floor: Floor, request: Array, kind: int, count: int, home: Array) -> int:
    """How many replicas are compared, out of a pool of ``count``."""
    if kind >= LEAST_WORK:
        return count
    if kind == RANDOM or count == 0:
        return min(1, count)
    if kind == AFFINITY and request["units"] > 0:
        return 3 if home_of(floor, request, home)[HOME_KEY] == prefix_of(floor, request) + 1 else 2
    return 2


@inlined
def candidate(floor: Floor, request: Array, k: int, pool: Array, count: int, kind: int, home: Array) -> int:
    """The replica that is compared as number ``k``."""
    if kind == EVERYONE:
        return k
    if kind == LEAST_WORK:
        return int(pool[k])
    if k == 2:
        return int(home_of(floor, request, home)[HOME_REPLICA])
    draw = request["draw2"] if k else request["draw"]
    return int(pool[(draw * count) >> 31])


@inlined
def choose(floor: Floor, request: Array, pools: Array, sizes: Array, kinds: Array, home: Array) -> int:
    """The replica that takes a request, brought to its time, or -1 when all of its candidates are full.

    This loop is where replicas are advanced, and the only place: those compared unless they are quiet, then
    the chosen one. When all that were drawn are full, the whole pool is compared.
    """
    at = request["at"]
    alias = max(0, request["alias"])
    kind = kinds[alias] if request["alias"] >= 0 else EVERYONE
    pool = pools[alias]
    count = sizes[alias] if request["alias"] >= 0 else floor.replicas.shape[0]
    most = compared(floor, request, kind, count, home)
    best, least, k = -1, FULL, 0
    while True:
        r = best
        if k < most:
            r = candidate(floor, request, k, pool, count, kind, home)
        elif best < 0:
            if kind >= LEAST_WORK:
                break
            kind, most, k = LEAST_WORK, count, 0
            continue
        state = floor.replicas[r]
        if state["now"] < at and (k == most or kind == EVERYONE or state["quiet"] < at):
            advance(floor, r, at)
        if k == most:
            break
        hits = 0
        if k == 2 and kind == AFFINITY:
            hits = min(request["units"], home_of(floor, request, home)[HOME_UNITS])
        found = replica_score(floor, r, hits)
        if kind != EVERYONE and (found < least or (found == least and r < best)):
            best, least = r, found
        k += 1
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
    s = floor.spare[0]
    if s >= 0:
        floor.spare[0] = floor.slots[s]["next"]
    else:
        s = floor.spare[1]
        floor.spare[1] += 1
    slot = floor.slots[s]
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
    if state["waiting"] == 0:
        state["first"] = s
    else:
        floor.slots[state["last"]]["next"] = s
    state["last"] = s
    state["waiting"] += 1
    state["quiet"] = state["now"]


@inlined
def ask_for(floor: Floor, request: Array, pools: Array, sizes: Array, kinds: Array) -> None:
    """Let the memory of the two replicas that a later request will draw come nearer meanwhile."""
    alias = request["alias"]
    if alias < 0 or sizes[alias] == 0 or kinds[alias] == LEAST_WORK:
        return
    for k in range(2):
        draw = request["draw2"] if k else request["draw"]
        r = pools[alias, (draw * sizes[alias]) >> 31]
        fetch(floor.replicas[r])
        fetch(floor.heap[r])


@compiled
def run(floor: Floor, requests: Array, pools: Array, sizes: Array, kinds: Array, home: Array) -> None:
    """Send requests, which are in order of time, to the replicas of their alias."""
    for i in range(requests.shape[0]):
        request = requests[i]
        if i + AHEAD < requests.shape[0]:
            ask_for(floor, requests[i + AHEAD], pools, sizes, kinds)
        r = choose(floor, request, pools, sizes, kinds, home)
        alias = request["alias"]
        if alias < 0:
            continue
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
            seen = home_of(floor, request, home)
            seen[HOME_KEY] = prefix_of(floor, request) + 1
            seen[HOME_REPLICA] = r
            seen[HOME_UNITS] = request["units"]
