from __future__ import annotations

import random
from dataclasses import replace

from tokenmill.control.edge import EndpointMemory, set_back
from tokenmill.control.requests import (
    Break,
    Call,
    EdgeMemory,
    Forward,
    Index,
    Phase,
    Refuse,
    Request,
    Settle,
    TokenUsage,
    Turn,
    arrive,
    client_gone,
    engine_lost,
    finished,
    first_byte,
    identify,
    index_of,
    interrupted,
    refresh,
    visible_aliases,
)
from tokenmill.domain.factory import Quota
from tokenmill.domain.ledger import Outcome
from tokenmill.domain.table import AliasEntry, Endpoint, KeyEntry, Table, TenantEntry

NOW = 1_800_000_000_000_000
KEY = KeyEntry("k1", "d1", "a", "p", "inference")
FREE = Quota()
USED = TokenUsage(10, 4, 20, 0, "engine")


def index(replicas: int = 2, quota: Quota = FREE, law: tuple[str, ...] = (), **alias: object) -> Index:
    endpoints = tuple(Endpoint(f"r{i}", "rel", f"127.0.0.1:{i}", "EU", 2) for i in range(1, replicas + 1))
    entry = AliasEntry("chat", "chat", 2048, (("rel", 1000),), endpoints, (), 0, "mill")
    table = Table(
        1,
        "mill",
        (KEY, KeyEntry("k2", "d2", "a", "p", "inference", expires_us=NOW)),
        (TenantEntry("a", quota, law, (("p", Quota()),)), TenantEntry("b", Quota(), (), ())),
        (replace(entry, **alias), replace(entry, name="private", tenants=("b",))),  # type: ignore[arg-type]
    )
    return index_of(table)


def call(name: str = "q1", alias: str = "chat", **more: object) -> Call:
    return Call(name, NOW, "chat.completions", KEY, alias, 10, 90, **more)  # type: ignore[arg-type]


def settled(turn: Turn) -> Settle:
    (found,) = [action for action in turn.actions if isinstance(action, Settle)]
    assert turn.request.phase is Phase.SETTLED
    return found


def test_identify() -> None:
    assert identify(index(), "d1", NOW) == KEY
    for digest in ("d2", "nothing"):
        found = identify(index(), digest, NOW)
        assert isinstance(found, Refuse)
        assert found.status == 401


def test_a_key_that_no_quota_would_bind_is_unknown() -> None:
    table = index(quota=Quota(requests_per_minute=1)).table
    assert identify(index_of(table), "d1", NOW) == KEY
    for lost in (replace(KEY, project="q"), replace(KEY, tenant="c"), replace(KEY, tenant="b")):
        found = identify(index_of(replace(table, keys=(lost,))), "d1", NOW)
        assert isinstance(found, Refuse), lost
        assert found.status == 401


def test_answer_to_the_end() -> None:
    turn = arrive(index(), EdgeMemory(), call())
    assert turn.actions == (Forward(index().aliases["chat"].endpoints[0]),)
    assert turn.memory.endpoints["r1"].outstanding == 1
    turn = first_byte(turn.memory, turn.request, NOW + 500)
    turn = finished(index(), turn.memory, turn.request, NOW + 900, 200, USED)
    found = settled(turn).settlement
    assert (found.outcome, found.status, found.first_token_us, found.duration_us) == (
        Outcome.OK,
        200,
        500,
        900,
    )
    assert (found.input_tokens, found.cached_tokens, found.output_tokens) == (10, 4, 20)
    assert (found.release, found.replica, found.counted_by) == ("rel", "r1", "engine")
    assert turn.memory.endpoints["r1"].outstanding == 0
    again = client_gone(index(), turn.memory, turn.request, NOW + 950, USED)
    assert again.actions == ()
    assert again.memory == turn.memory


def test_refusals_settle_once_and_use_nothing() -> None:
    for table, asked, status, code in (
        (index(), call(alias="nothing"), 404, "model_not_found"),
        (index(), call(alias="private"), 404, "model_not_found"),
        (index(0, targets=(), reason="replicas are starting"), call(), 503, "model_not_ready"),
        (index(0), call(), 503, "model_not_ready"),
        (index(law=("US",)), call(), 403, "residency_refused"),
        (index(quota=Quota(requests_per_minute=0)), call(), 429, "request_too_large"),
        (index(quota=Quota(concurrent_requests=0)), call(), 429, "rate_limit_exceeded"),
    ):
        turn = arrive(table, EdgeMemory(), asked)
        refusal = turn.actions[0]
        assert isinstance(refusal, Refuse)
        assert (refusal.status, refusal.code) == (status, code)
        found = settled(turn).settlement
        assert (found.outcome, found.status, found.replica) == (Outcome.REFUSED, status, "")
        assert turn.memory == EdgeMemory()


def test_unknown_and_forbidden_models_are_told_apart_by_nobody() -> None:
    forbidden = arrive(index(), EdgeMemory(), call(alias="private")).actions[0]
    unknown = arrive(index(), EdgeMemory(), call(alias="nothing")).actions[0]
    assert isinstance(forbidden, Refuse)
    assert isinstance(unknown, Refuse)
    assert forbidden.message.replace("private", "x") == unknown.message.replace("nothing", "x")
    assert [alias.name for alias in visible_aliases(index(), KEY)] == ["chat"]


def test_a_replica_that_cools_is_asked_again_after_the_clock_was_set_back() -> None:
    table = index()
    turn = arrive(table, EdgeMemory(), call())
    lost = engine_lost(table, turn.memory, turn.request, NOW, "it died", TokenUsage())
    [cooling] = [m.cooling_until_us for _, m in lost.memory.endpoints.items() if m.failures]
    assert cooling > NOW
    hour = 3_600_000_000
    memory = set_back(table, lost.memory, NOW - hour)
    assert max(m.cooling_until_us for _, m in memory.endpoints.items()) <= NOW - hour + 30_000_000
    assert set_back(table, lost.memory, NOW) == lost.memory


def test_a_dead_engine_is_replaced_before_the_first_byte_only() -> None:
    table = index(3)
    turn = arrive(table, EdgeMemory(), call())
    tried = [turn.request.endpoint]
    for _ in range(2):
        turn = engine_lost(table, turn.memory, turn.request, NOW + 5, "connection refused", TokenUsage())
        assert isinstance(turn.actions[0], Forward)
        tried.append(turn.request.endpoint)
    assert len({endpoint.replica for endpoint in tried if endpoint}) == 3
    turn = engine_lost(table, turn.memory, turn.request, NOW + 9, "connection refused", TokenUsage())
    assert isinstance(turn.actions[0], Refuse)
    assert settled(turn).settlement.outcome is Outcome.ENGINE_FAILED
    assert all(entry.outstanding == 0 for entry in turn.memory.endpoints.values())
    assert turn.memory.endpoints["r1"].cooling_until_us == NOW + 5 + 1_000_000

    turn = arrive(table, EdgeMemory(), call())
    turn = first_byte(turn.memory, turn.request, NOW + 1)
    turn = engine_lost(
        table, turn.memory, turn.request, NOW + 9, "stream broke", TokenUsage(10, 0, 3, 0, "stream")
    )
    assert isinstance(turn.actions[0], Break)
    found = settled(turn).settlement
    assert (found.status, found.output_tokens, found.counted_by) == (200, 3, "stream")


def test_quota_is_reserved_and_given_back() -> None:
    table = index(quota=Quota(tokens_per_minute=100, concurrent_requests=5))
    first = arrive(table, EdgeMemory(), call())
    assert isinstance(arrive(table, first.memory, call("q2")).actions[0], Refuse)
    done = finished(table, first.memory, first.request, NOW, 200, TokenUsage())
    assert isinstance(arrive(table, done.memory, call("q2")).actions[0], Forward)


def test_prefix_affinity_and_full() -> None:
    table, memory = index(), EdgeMemory()
    turn = arrive(table, memory, call(prefix=(1, 2, 3)))
    turn = finished(table, turn.memory, turn.request, NOW, 200, USED)
    busy = arrive(table, turn.memory, call("q2"))
    assert busy.request.endpoint == turn.request.endpoint
    other = arrive(table, busy.memory, call("q3"))
    assert other.request.endpoint != busy.request.endpoint
    memory = EdgeMemory()
    for number in range(32):
        memory = arrive(table, memory, call(f"q{number}")).memory
    full = arrive(table, memory, call("one too many")).actions[0]
    assert isinstance(full, Refuse)
    assert (full.status, full.code) == (503, "overloaded")
    assert len(full.reasons) == 2


def test_refresh_forgets_what_is_gone_but_not_what_is_open() -> None:
    turn = arrive(index(), EdgeMemory(), call())
    assert refresh(index(0), turn.memory).endpoints == turn.memory.endpoints
    done = finished(index(), turn.memory, turn.request, NOW, 200, USED)
    assert not refresh(index(0), done.memory).endpoints
    limited = arrive(index(quota=Quota(concurrent_requests=5)), EdgeMemory(), call())
    done = finished(index(), limited.memory, limited.request, NOW, 200, USED)
    assert done.memory.meters
    assert not refresh(index_of(Table(2, "mill")), done.memory).meters


def test_random_lives_settle_exactly_once() -> None:
    """Whatever happens in whatever order, each request settles once and nothing stays reserved."""
    for seed in range(200):
        rng = random.Random(seed)
        table = index(rng.randrange(4), Quota(concurrent_requests=3, tokens_per_minute=350))
        memory, requests, settles = EdgeMemory(), dict[str, Request](), dict[str, int]()
        for number in range(40):
            now = NOW + number * 1000
            if rng.random() < 0.4 or not requests:
                turn = arrive(
                    table, memory, call(f"q{number}", prefix=(rng.randrange(9),), draw=rng.randrange(1000))
                )
            else:
                request = requests[rng.choice(sorted(requests))]
                kind = rng.randrange(5)
                if kind == 0:
                    turn = first_byte(memory, request, now)
                elif kind == 1:
                    turn = finished(table, memory, request, now, rng.choice((200, 400, 500)), USED)
                elif kind == 2:
                    turn = client_gone(table, memory, request, now, USED)
                elif kind == 3:
                    turn = interrupted(table, memory, request, now, USED)
                else:
                    turn = engine_lost(table, memory, request, now, "died", USED)
            memory = turn.memory
            requests[turn.request.call.id] = turn.request
            settles[turn.request.call.id] = settles.get(turn.request.call.id, 0) + sum(
                isinstance(action, Settle) for action in turn.actions
            )
        for request in requests.values():
            turn = interrupted(table, memory, request, NOW + 10**6, USED)
            memory = turn.memory
            settles[request.call.id] += len(turn.actions)
        assert set(settles.values()) == {1}, f"seed {seed}"
        assert all(meter.open == 0 for meter in memory.meters.values()), f"seed {seed}"
        assert all(entry.outstanding == 0 for entry in memory.endpoints.values()), f"seed {seed}"


def test_among_many_replicas_none_is_refused_for_want_of_luck() -> None:
    """All but one of a hundred are full: whatever is drawn, the one that is not takes it."""
    many = index(100)
    memory = EdgeMemory()
    for number in range(1, 100):
        busy = EndpointMemory(outstanding=1000)
        memory = replace(memory, endpoints=memory.endpoints.set(f"r{number}", busy))
    for lot in range(0, 10_000, 777):
        turn = arrive(many, memory, call(lot=lot))
        assert isinstance(turn.actions[0], Forward)
        assert turn.actions[0].endpoint.replica == "r100"


def test_among_many_replicas_weights_warmth_and_residency_hold() -> None:
    endpoints = tuple(
        Endpoint(f"{release}{i}", release, f"127.0.0.1:{i}", "EU" if i % 2 else "US", 2)
        for release, count in (("old", 60), ("new", 20))
        for i in range(count)
    )
    bound = index(law=("EU",), endpoints=endpoints, targets=(("old", 900), ("new", 100)))
    memory, seen = EdgeMemory(), []
    for draw in range(1000):
        turn = arrive(bound, memory, call(draw=draw, lot=draw * 7919))
        assert isinstance(turn.actions[0], Forward)
        seen.append(turn.actions[0].endpoint)
    assert [e.release for e in seen].count("new") == 100
    assert {e.jurisdiction for e in seen} == {"EU"}
    warm = arrive(bound, memory, call(prefix=(1, 2, 3), lot=5))
    assert isinstance(warm.actions[0], Forward)
    for lot in range(0, 5000, 333):
        again = arrive(bound, warm.memory, call(prefix=(1, 2, 3, 4), lot=lot))
        assert again.actions == warm.actions
