"""Which replica takes this request? Weights of the alias choose the release, least work the replica.

Candidates that residency forbids were removed before (``policy.reside``); nothing is scored that may not be
used. The caller gives ``draw``, so that a canary's share is random in the gateway and replayed in a test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tokenmill.domain.table import Endpoint
from tokenmill.domain.value import value

QUEUE_PER_SLOT = 8
"""A replica takes this many requests per slot, running and waiting; more would only time out in its queue."""

FULL_MILLI = 1000 * QUEUE_PER_SLOT

PREFIX_BONUS_MILLI = 200
PREFIX_HITS_MOST = 4
"""Each leading block of the prompt that a replica has seen outweighs a fifth of its slots, four at most:
a warm prefix wins among replicas with a free slot, and loses to an idle one when its own slots are taken."""

PEER_PREFIX = "peer:"
"""Endpoints of peers carry ``peer:<name>`` as their release; they are used when no own replica can be."""


FEW = 16
"""Up to so many replicas are all looked at; of more, two by chance and those with a warm prefix. The better
of two is nearly as good as the best of all (Mitzenmacher, IEEE TPDS 12(10), 2001), and what a request costs
does not grow with the factory."""


class Candidate(NamedTuple):
    """One endpoint as the gateway sees it now. ``prefix_hits`` counts leading prompt blocks it has seen.

    A plain tuple will do, and is made in a tenth of the time.
    """

    endpoint: Endpoint
    outstanding: int = 0
    cooling_until_us: int = 0
    prefix_hits: int = 0


@value
class Routed:
    endpoint: Endpoint


@value
class Unroutable:
    """No candidate can take it. ``full`` says that it was for want of room alone, so waiting helps."""

    reasons: tuple[str, ...]
    full: bool
    retry_after_us: int


NONE_YET = (FULL_MILLI, "", None)

Seen = tuple[Endpoint, int, int, int]
"""A ``Candidate``, or a tuple of the same."""


def route(
    candidates: Sequence[Seen], targets: Sequence[tuple[str, int]], now_us: int, draw: int
) -> Routed | Unroutable:
    """Choose an endpoint for one request.

    ``targets`` are (release, weight in thousandths) and ``draw`` is 0..999. Weights count among the releases
    that have a usable replica, so a canary that died does not lose its share of requests. Ties end in the
    replica's id.
    """
    best: dict[str, tuple[int, str, Endpoint]] = {}
    of, low, first = "", FULL_MILLI, ""  # the best score of this release, and the replica that has it
    for endpoint, outstanding, cooling_until_us, prefix_hits in candidates:
        score = outstanding * 1000 // (endpoint.slots or 1)
        if score >= FULL_MILLI or cooling_until_us > now_us or endpoint.draining:
            continue
        if prefix_hits:
            score -= PREFIX_BONUS_MILLI * min(prefix_hits, PREFIX_HITS_MOST)
        if endpoint.release != of:
            of = endpoint.release
            low, first, _ = best.get(of, NONE_YET)
        if score < low or (score == low and endpoint.replica < first):
            low, first = score, endpoint.replica
            best[of] = (score, first, endpoint)
    release = _release(targets, best, draw)
    if release is not None:
        return Routed(best[release][2])
    peers = [found for name, found in best.items() if name.startswith(PEER_PREFIX)]
    if peers:
        return Routed(min(peers, key=lambda found: (found[0], found[1]))[2])
    return _unroutable(candidates, targets, now_us)


def shortlist(
    pools: Mapping[str, Sequence[Endpoint]],
    targets: Sequence[tuple[str, int]],
    warm: Mapping[str, Endpoint],
    draw: int,
    lot: int,
) -> tuple[str, list[Endpoint]] | None:
    """The release that ``draw`` chooses and the replicas of it that are looked at, or ``None`` for all.

    ``pools`` are the replicas by release, ``warm`` those with a warm prefix by id, ``lot`` any whole number.
    Where none of them can take the request all are looked at, so nothing is refused for want of luck.
    """
    release = _release(targets, pools, draw)
    if release is None:
        return None
    pool = pools[release]
    if len(pool) <= FEW:
        return release, list(pool)
    first = lot % len(pool)
    second = (first + 1 + lot // len(pool) % (len(pool) - 1)) % len(pool)
    found = [endpoint for endpoint in warm.values() if endpoint.release == release]
    found += [pool[at] for at in (first, second) if pool[at].replica not in warm]
    return release, found


def _release(targets: Sequence[tuple[str, int]], there: Mapping[str, object], draw: int) -> str | None:
    """Of the releases that are ``there``, the one that ``draw`` falls to."""
    if len(targets) == 1:
        return targets[0][0] if targets[0][0] in there else None
    usable = [(release, weight) for release, weight in targets if weight > 0 and release in there]
    total = sum(weight for _, weight in usable)
    point = draw * total // 1000
    for release, weight in usable:
        point -= weight
        if point < 0:
            return release
    return None


def _unroutable(candidates: Sequence[Seen], targets: Sequence[tuple[str, int]], now_us: int) -> Unroutable:
    names = {release for release, weight in targets if weight > 0}
    reasons: list[str] = []
    full = bool(candidates)
    retry_us = 1_000_000
    for endpoint, outstanding, cooling_until_us, _ in candidates:
        if endpoint.draining:
            reason = "is draining"
        elif cooling_until_us > now_us:
            reason = f"failed and is left alone for {(cooling_until_us - now_us) // 1000} ms"
            retry_us = max(retry_us, cooling_until_us - now_us)
        elif endpoint.release not in names and not endpoint.release.startswith(PEER_PREFIX):
            reason = f"serves {endpoint.release}, which gets no traffic now"
        else:
            reasons.append(f"{endpoint.replica}: has {outstanding} requests on {endpoint.slots} slots")
            continue
        full = False
        reasons.append(f"{endpoint.replica}: {reason}")
    if not candidates:
        reasons.append("no replica is ready")
    return Unroutable(tuple(reasons), full, retry_us)
