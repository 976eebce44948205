from __future__ import annotations

import random

from tokenmill.domain.table import Endpoint
from tokenmill.policy.reside import allowed, reside
from tokenmill.policy.route import FEW, QUEUE_PER_SLOT, Candidate, Routed, Unroutable, route, shortlist


def endpoint(
    name: str, release: str = "a", slots: int = 4, draining: bool = False, law: str = "EU"
) -> Endpoint:
    return Endpoint(name, release, "127.0.0.1:1", law, slots, draining)


def chosen(
    candidates: list[Candidate], targets: tuple[tuple[str, int], ...] = (("a", 1000),), draw: int = 0
) -> str:
    found = route(candidates, targets, 0, draw)
    assert isinstance(found, Routed)
    return found.endpoint.replica


def test_least_work_relative_to_slots_then_id() -> None:
    assert chosen([Candidate(endpoint("r1", slots=2), 2), Candidate(endpoint("r2", slots=8), 4)]) == "r2"
    assert chosen([Candidate(endpoint("r2")), Candidate(endpoint("r1"))]) == "r1"


def test_a_warm_prefix_wins_among_the_free_and_loses_to_the_idle_when_full() -> None:
    warm = Candidate(endpoint("r2"), 2, prefix_hits=4)
    assert chosen([Candidate(endpoint("r1"), 0), warm]) == "r2"
    full = Candidate(endpoint("r2"), 4, prefix_hits=8)
    assert chosen([Candidate(endpoint("r1"), 0), full]) == "r1"


def test_weights_share_the_draw_among_usable_releases() -> None:
    candidates = [Candidate(endpoint("r1", "a")), Candidate(endpoint("r2", "b"))]
    targets = (("a", 900), ("b", 100))
    drawn = [chosen(candidates, targets, draw) for draw in range(1000)]
    assert drawn.count("r2") == 100
    assert {chosen(candidates[:1], targets, draw) for draw in range(0, 1000, 50)} == {"r1"}


def test_peers_answer_only_when_no_own_replica_can() -> None:
    peer = Candidate(endpoint("peer:x", "peer:x"))
    assert chosen([Candidate(endpoint("r1"), 30), peer]) == "r1"
    assert chosen([Candidate(endpoint("r1", draining=True)), peer]) == "peer:x"


def test_a_no_lists_every_candidate() -> None:
    candidates = [
        Candidate(endpoint("r1", draining=True)),
        Candidate(endpoint("r2"), cooling_until_us=3_000_000),
        Candidate(endpoint("r3", "old")),
        Candidate(endpoint("r4"), 4 * QUEUE_PER_SLOT),
    ]
    found = route(candidates, (("a", 1000),), 0, 0)
    assert isinstance(found, Unroutable)
    assert [reason.split(":")[0] for reason in found.reasons] == ["r1", "r2", "r3", "r4"]
    assert not found.full
    assert found.retry_after_us == 3_000_000
    full = route(candidates[3:], (("a", 1000),), 0, 0)
    assert isinstance(full, Unroutable)
    assert full.full


def test_residency_removes_and_fails_closed() -> None:
    endpoints = (endpoint("r1", law="EU"), endpoint("r2", law="US"), endpoint("r3", law=""))
    kept, reasons = reside(endpoints, ("EU",))
    assert [e.replica for e in kept] == ["r1"]
    assert len(reasons) == 2
    assert reside(endpoints, ()) == (endpoints, ())
    assert allowed("", ())
    assert not allowed("", ("EU",))


POOL = [endpoint(f"r{number:03}") for number in range(100)]


def test_of_many_two_and_the_warm_are_looked_at() -> None:
    pools, warm = {"a": POOL, "b": POOL[:FEW]}, {"r050": POOL[50]}
    for lot in (0, 1, 99, 100, 12_345_678):
        found = shortlist(pools, (("a", 1000),), warm, 0, lot)
        assert found is not None
        names = [e.replica for e in found[1]]
        assert names[0] == "r050"
        assert len({*names}) == len(names) >= 2
    assert shortlist(pools, (("b", 1000),), {}, 0, 7) == ("b", POOL[:FEW])
    assert shortlist(pools, (("gone", 1000),), {}, 0, 7) is None
    every = {
        name for lot in range(9900) for name in (shortlist(pools, (("a", 1000),), {}, 0, lot) or ("", []))[1]
    }
    assert len(every) == 100


def test_the_better_of_two_keeps_work_even() -> None:
    """1,000 requests on 100 replicas that end none: by chance alone one would have some twenty."""
    draws = random.Random(3)
    work = dict.fromkeys([e.replica for e in POOL], 0)
    for _ in range(1000):
        found = shortlist({"a": POOL}, (("a", 1000),), {}, 0, draws.getrandbits(30))
        assert found is not None
        chosen_one = route([Candidate(e, work[e.replica]) for e in found[1]], ((found[0], 1000),), 0, 0)
        assert isinstance(chosen_one, Routed)
        work[chosen_one.endpoint.replica] += 1
    assert max(work.values()) <= 13
