"""The compiled router and admission decide what ``policy.route`` and ``policy.admit`` decide."""

from __future__ import annotations

import random

import numpy as np
import pytest

pytest.importorskip("numpy", reason="the twin's core needs the extra [twin]")

from twin_floor import table

from tokenmill.domain.factory import Quota
from tokenmill.domain.table import Endpoint
from tokenmill.policy import route as live
from tokenmill.policy.admit import Admitted, Limit, Meter, Use, admit, settle
from tokenmill.twin import floor_arrays as fa
from tokenmill.twin import quota_kernel, router_kernel
from tokenmill.twin.fleet import Fleet, requests_of
from tokenmill.twin.step_table import EngineRules

SLOTS = 4
RULES = EngineRules(token_budget=256, max_sequences=SLOTS)


def test_the_rules_are_those_of_the_policy():
    assert router_kernel.QUEUE_PER_SLOT == live.QUEUE_PER_SLOT
    assert router_kernel.PREFIX_BONUS_MILLI == live.PREFIX_BONUS_MILLI
    assert router_kernel.PREFIX_HITS_MOST == live.PREFIX_HITS_MOST


def filled(seed: int, count: int = 6, kind: str = "least-work"):
    """A fleet with some load on every replica, all looked at at the same time."""
    draw = random.Random(seed)
    fleet = Fleet([table(RULES)], [0] * count, [kind])
    for r in range(count):
        fleet.pool(0, [r])
        n = draw.randrange(0, SLOTS * 9)
        fleet.send(requests_of(np.zeros(n), np.full(n, 300), np.full(n, 400)))
    fleet.pool(0, range(count))
    fleet.advance(0.001)
    return fleet, draw


def endpoint(r: int) -> Endpoint:
    return Endpoint(replica=f"r{r:04}", address=f"r{r:04}:1", release="release", jurisdiction="", slots=SLOTS)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["random", "two-choices", "least-work", "prefix-affinity"])
def test_it_routes_as_the_live_policy_does(seed, kind):
    fleet, draw = filled(seed, kind=kind)
    count = len(fleet.engine_of)
    outstanding = fleet.outstanding()
    request = requests_of(np.array([0.001]), np.array([10]), np.array([10]))
    request["draw"], request["draw2"] = draw.randrange(2**31), draw.randrange(2**31)
    request["key"], request["units"] = 77, draw.randrange(1, 6)
    home, seen = draw.randrange(count), draw.randrange(1, 8)
    if kind == "prefix-affinity":
        fleet.home[77] = (78, home, seen)
    candidates = {int(request["draw"][0]) * count >> 31: 0}
    if kind != "random":
        candidates[int(request["draw2"][0]) * count >> 31] = 0
    if kind == "prefix-affinity":
        candidates[home] = min(seen, int(request["units"][0]))
    free = [r for r in candidates if outstanding[r] < SLOTS * live.QUEUE_PER_SLOT]
    if kind == "least-work" or not free:
        candidates = dict.fromkeys(range(count), 0)
    asked = [live.Candidate(endpoint(r), int(outstanding[r]), 0, hits) for r, hits in candidates.items()]
    expected = live.route(asked, (("release", 1000),), 1000, 0)
    fleet.send(request)
    added = np.flatnonzero(fleet.outstanding() - outstanding)
    if isinstance(expected, live.Routed):
        assert [expected.endpoint.replica] == [f"r{r:04}" for r in added]
    else:
        assert expected.full
        assert not len(added)
        assert fleet.count(fa.REFUSED) >= 1


def test_full_replicas_occur_in_these_tests():
    full = [int((filled(seed)[0].outstanding() >= SLOTS * 8).sum()) for seed in range(20)]
    assert any(full)


def quota_of(draw: random.Random) -> Quota:
    def some(most: int) -> int | None:
        return draw.randint(1, most) if draw.random() < 0.7 else None

    return Quota(some(40), some(20_000), some(60_000), some(8))


@pytest.mark.parametrize("seed", range(40))
def test_it_admits_as_the_live_policy_does(seed):
    draw = random.Random(seed)
    quota = quota_of(draw)
    bounds = (Limit("tenant", "tenant", quota),)
    found = (
        quota.requests_per_minute,
        quota.tokens_per_minute,
        quota.tokens_per_day,
        quota.concurrent_requests,
    )
    limits = np.array([-1 if limit is None else limit for limit in found], np.int64)
    meter = np.zeros(5, np.int64)
    kept = (Meter(),)
    now_us, opened, decisions = 86_390_000_000, [], set()
    for _ in range(300):
        now_us += int(draw.expovariate(1.0) * 1_000_000)
        if opened and draw.random() < 0.45:
            tokens, begun_us = opened.pop()
            kept = settle(bounds, kept, Use(tokens), Use(tokens), begun_us, now_us)
            quota_kernel.give_back(limits, meter, tokens, begun_us, now_us)
        tokens = draw.randint(2, 3_000)
        asked = admit(bounds, kept, Use(tokens), now_us)
        allowed = quota_kernel.within(limits, meter, tokens, now_us)
        assert allowed == isinstance(asked, Admitted)
        decisions.add(allowed)
        if isinstance(asked, Admitted):
            kept = asked.meters
            quota_kernel.charge(limits, meter, tokens, now_us)
            opened.append((tokens, now_us))
        assert same(kept[0], meter, quota)
    assert True in decisions or quota.tokens_per_day is not None or quota.tokens_per_minute is not None


def same(live_meter: Meter, meter: np.ndarray, quota: Quota) -> bool:
    kept = [live_meter.open, live_meter.requests_empty_us, live_meter.tokens_empty_us]
    return kept == meter[:3].tolist() and (
        quota.tokens_per_day is None or live_meter.day_tokens == int(meter[4])
    )
