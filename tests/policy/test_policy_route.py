from __future__ import annotations

from tokenmill.domain.table import Endpoint
from tokenmill.policy.reside import allowed, reside
from tokenmill.policy.route import QUEUE_PER_SLOT, Candidate, Routed, Unroutable, route


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
