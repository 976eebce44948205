"""The ledger: everything once, whatever the order, the repetitions and the crashes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, update

from tokenmill.domain.codec import to_plain
from tokenmill.domain.errors import ConflictError, InvariantError, StoreError, UsageError
from tokenmill.domain.ledger import Outcome, Posting, Settlement
from tokenmill.domain.work import GateVerdict, Release
from tokenmill.store import Store, UsageRow, open_store
from tokenmill.store.schema import postings as postings_table
from tokenmill.store.schema import settlements as settlements_table
from tokenmill.store.schema import usage_days

Make = Callable[..., Settlement]
Price = Callable[..., list[Posting]]


def counts(store: Store) -> tuple[int, int]:
    report = store.ledger.verify(Path("/nowhere"))
    assert report.ok, report.problems
    return report.settlements, report.postings


def test_settling_twice_counts_once(store: Store, settlement: Make, postings_of: Price) -> None:
    one, two = settlement("a"), settlement("b")
    both = [*postings_of(one), *postings_of(two)]
    assert store.ledger.settle([one, two], both, "gateway-0.jsonl", 200) == 2
    assert store.ledger.settle([two, one, two], [*both, *both], "gateway-0.jsonl", 100) == 0
    assert store.ledger.settle([], [], "gateway-0.jsonl", 300) == 0
    assert counts(store) == (2, 8)
    assert store.ledger.offset("gateway-0.jsonl") == 300
    assert store.ledger.offset("gateway-1.jsonl") == 0
    assert store.ledger.settlements(["a", "nobody"]) == {"a": one}
    assert store.ledger.postings("b") == postings_of(two)


def test_the_first_settlement_stays(store: Store, settlement: Make, postings_of: Price) -> None:
    first, late = settlement("a"), settlement("a", output_tokens=999, outcome=Outcome.INTERRUPTED)
    store.ledger.settle([first, late], postings_of(first), "", 0)
    store.ledger.settle([late], postings_of(late), "", 0)
    assert store.ledger.settlements(["a"]) == {"a": first}
    assert store.ledger.offsets() == {}


def test_a_posting_of_another_request_is_a_mistake(
    store: Store, settlement: Make, postings_of: Price
) -> None:
    with pytest.raises(InvariantError):
        store.ledger.settle([settlement("a")], postings_of(settlement("b")), "", 0)


def test_a_failed_batch_leaves_nothing(store: Store, settlement: Make, postings_of: Price) -> None:
    good = settlement("a")
    twice = [*postings_of(good), *postings_of(good)]
    with pytest.raises(StoreError):
        store.ledger.settle([good], twice, "gateway-0.jsonl", 10)
    assert counts(store) == (0, 0)
    assert store.ledger.offset("gateway-0.jsonl") == 0


def test_what_a_client_sends_cannot_stop_the_ledger(store: Store, settlement: Make) -> None:
    odd = settlement("a", alias="no\x00such", reason="\x00", outcome=Outcome.REFUSED, status=404)
    odd = replace(odd, input_tokens=0, cached_tokens=0, output_tokens=0)
    assert store.ledger.settle([odd], [], "", 0) == 1
    assert store.ledger.settlements(["a"])["a"].alias == "no\ufffdsuch"


def test_opinions_are_counted_by_release_and_since(store: Store, settlement: Make) -> None:
    said = [
        ("a", "rel-1", True, 10),
        ("b", "rel-1", False, 20),
        ("c", "rel-2", False, 20),
        ("d", "rel-1", True, 5),
    ]
    for name, release, good, at_us in said:
        one = replace(settlement(name), alias="desk", release=release)
        assert store.ledger.give_feedback(one, good, at_us)
        assert not store.ledger.give_feedback(one, not good, at_us + 1)  # the first word counts
    assert store.ledger.opinions(["desk"], 5) == [("rel-1", 1, 1), ("rel-2", 0, 1)]
    assert store.ledger.opinions(["desk"], 0) == [("rel-1", 2, 1), ("rel-2", 0, 1)]
    assert store.ledger.opinions(["other"], 0) == []


def test_threads_that_settle_the_same_requests(url: str, settlement: Make, postings_of: Price) -> None:
    stores = [open_store(url), open_store(url)]
    every = [settlement(f"req-{number:04}") for number in range(400)]
    start = threading.Barrier(2)
    new = [0, 0]

    def work(which: int) -> None:
        order = every if which == 0 else every[::-1]
        start.wait()
        for first in range(0, len(order), 40):
            batch = order[first : first + 40]
            prices = [posting for item in batch for posting in postings_of(item)]
            new[which] += stores[which].ledger.settle(batch, prices, f"gateway-{which}.jsonl", first)

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(new) == 400
    assert counts(stores[0]) == (400, 1600)
    for each in stores:
        each.close()


def test_work_is_posted_once(store: Store) -> None:
    posting = Posting(
        "work:l-000001", 0, 5, "tenant/acme/search", "factory/chat", "cpu_us", 10, "acme", "search", "",
        "chat", "", "train",
    )  # fmt: skip
    joules = replace(posting, line=1, unit="energy_mj", amount=77)
    assert store.ledger.post_work("work:l-000001", [posting, joules])
    assert not store.ledger.post_work("work:l-000001", [posting, joules])
    assert not store.ledger.post_work("work:l-000002", [])
    with pytest.raises(InvariantError):
        store.ledger.post_work("work:l-000003", [posting])
    assert store.ledger.postings("work:l-000001") == [posting, joules]


def test_usage_adds_up(store: Store, settlement: Make, postings_of: Price) -> None:
    day = 86_400_000_000
    start = 19_675 * day  # 2023-11-14
    batch = [
        settlement("a", at_us=start),
        settlement("b", at_us=start + day - 1, outcome=Outcome.CANCELLED, reasoning_tokens=10),
        settlement("c", at_us=start + day, alias="embed"),
        settlement("d", at_us=start, tenant="blue", project="web", key="key-0002"),
    ]
    store.ledger.settle(batch, [p for item in batch for p in postings_of(item)], "", 0)
    work = Posting(
        "work:1", 0, start, "tenant/acme/search", "factory/chat", "accelerator_us", 9, "acme", "search", "",
        "chat", "", "train",
    )  # fmt: skip
    extra = [replace(work, line=1, unit="energy_mj"), replace(work, line=2, unit="micros:EUR", amount=3)]
    store.ledger.post_work("work:1", [work, *extra])

    assert store.ledger.usage(["tenant", "day"], tenant="acme") == [
        UsageRow(
            tenant="acme",
            day="2023-11-14",
            requests=2,
            outcomes={"cancelled": 1, "ok": 1},
            input_tokens=200,
            cached_tokens=40,
            output_tokens=100,
            reasoning_tokens=10,
            accelerator_us=9,
            energy_mj=9,
            micros={"EUR": 3, "USD": 14},
        ),
        UsageRow(
            tenant="acme",
            day="2023-11-15",
            requests=1,
            outcomes={"ok": 1},
            input_tokens=100,
            cached_tokens=20,
            output_tokens=50,
            micros={"USD": 7},
        ),
    ]
    assert [row.requests for row in store.ledger.usage([])] == [4]
    models = {row.model: row.requests for row in store.ledger.usage(["model"], since_us=start + 1)}
    assert models == {"chat": 1, "embed": 1}
    assert [(r.project, r.key) for r in store.ledger.usage(["key", "project"], until_us=start + 1)] == [
        ("search", ""),
        ("search", "key-0001"),
        ("web", "key-0002"),
    ]
    with pytest.raises(UsageError, match="moon"):
        store.ledger.usage(["moon"])


def test_verify_finds_what_was_tampered_with(store: Store, settlement: Make, postings_of: Price) -> None:
    batch = [settlement(name) for name in "abcd"]
    store.ledger.settle(batch, [p for item in batch for p in postings_of(item)], "", 0)
    report = store.ledger.verify(Path("/nowhere"))
    assert report.ok
    assert report.balances["tenant/acme/search"]["token.output"] == 200
    assert report.balances["factory/chat"]["token.output"] == -200
    with store.database.write() as connection:
        target = postings_table.c.entry == "a"
        connection.execute(update(postings_table).where(target, postings_table.c.line == 2).values(amount=1))
        target = postings_table.c.entry == "b"
        connection.execute(update(postings_table).where(target).values(debit="factory/chat"))
        connection.execute(delete(settlements_table).where(settlements_table.c.request == "c"))
        connection.execute(delete(postings_table).where(postings_table.c.entry == "d"))
    problems = "\n".join(store.ledger.verify(Path("/nowhere")).problems)
    assert "request a: settled 100 in, 50 out; posted 100 in, 1 out" in problems
    assert "posting b/0" in problems
    assert "request d: settled 100 in, 50 out; posted 0 in, 0 out" in problems
    assert "c was posted but never settled" in problems
    assert "usage of 2023-11-14 acme/search/key-0001/chat/requests:ok: kept 4, counted 3" in problems


def test_usage_of_a_window_is_what_its_requests_add_up_to(
    store: Store, settlement: Make, postings_of: Price
) -> None:
    """Whole days come from kept sums and broken days from the rows; every cut must agree with a plain sum."""
    day, start = 86_400_000_000, 19_675 * 86_400_000_000
    every = [settlement(f"req-{n}", at_us=start + n * day // 4, output_tokens=1 << n) for n in range(14)]
    store.ledger.settle(every, [p for item in every for p in postings_of(item)], "", 0)
    edges = [
        0,
        start - 1,
        start,
        start + 1,
        start + day // 4,
        start + day,
        start + 2 * day - 1,
        start + 3 * day,
    ]
    for since in edges:
        for until in (*edges, start + 9 * day):
            inside = [s for s in every if s.at_us >= since and (not until or s.at_us < until)]
            rows = store.ledger.usage(["tenant"], since, until)
            assert sum(row.output_tokens for row in rows) == sum(s.output_tokens for s in inside), (
                since,
                until,
            )
            assert sum(row.requests for row in rows) == len(inside)
            assert sum(row.micros["USD"] for row in rows) == 7 * len(inside)
    assert store.ledger.usage(["tenant"], until_us=10) == []


def release(**changes: object) -> Release:
    values: dict[str, object] = {
        "id": "rel-000001", "model": "chat", "weights": "sha256:aa", "adapter": "", "digest": "sha256:bb",
        "origin": "import", "created_us": 5, "verdict": GateVerdict(True, ("better",), p_value=0.01),
    }  # fmt: skip
    return Release(**(values | changes))  # type: ignore[arg-type]


def test_releases_are_immutable(store: Store) -> None:
    first, second = release(), release(id="rel-000002", created_us=4)
    store.registry.record_release(first)
    store.registry.record_release(first)
    store.registry.record_release(second)
    assert store.registry.releases() == [second, first]
    with pytest.raises(ConflictError, match="other contents"):
        store.registry.record_release(release(adapter="sha256:cc"))
    assert store.registry.releases() == [second, first]


@st.composite
def arrivals(draw: st.DrawFn) -> list[list[int]]:
    """Batches of request numbers in any order, with repetitions; each number occurs at least once."""
    every = draw(st.permutations(range(8)))
    again = draw(st.lists(st.integers(0, 7), max_size=8))
    order = [*every, *again]
    cuts = sorted(draw(st.lists(st.integers(0, len(order)), max_size=4)))
    return [order[start:end] for start, end in zip([0, *cuts], [*cuts, len(order)], strict=True)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=arrivals())
def test_the_order_of_settling_does_not_matter(
    store: Store, settlement: Make, postings_of: Price, batches: list[list[int]]
) -> None:
    """Any split into batches, in any order, with any repetition, leaves what all at once would."""
    every = [settlement(f"req-{n}", output_tokens=n, reasoning_tokens=n // 2) for n in range(8)]
    with store.database.write() as connection:
        for table in (settlements_table, postings_table, usage_days):
            connection.execute(delete(table))
    new = 0
    for batch in batches:
        items = [every[number] for number in batch]
        prices = [posting for number in set(batch) for posting in postings_of(every[number])]
        new += store.ledger.settle(items, prices, "gateway-0.jsonl", len(batch))
    assert new == 8
    assert store.ledger.settlements([item.request for item in every]) == {s.request: s for s in every}
    for item in every:
        assert store.ledger.postings(item.request) == postings_of(item)
    assert counts(store)[0] == 8


CRASH = """
import json, sys
from tokenmill.domain.codec import from_plain
from tokenmill.domain.events import NodeLost
from tokenmill.domain.ledger import Posting, Settlement
from tokenmill.store import open_store
url, count, plain = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
store = open_store(url)
epoch = store.leader.acquire("victim", 10, 0)
batch = store.ledger.offset("gateway-0.jsonl")
while True:
    items, prices = [], []
    for n in range(count):
        name = f"req-{batch}-{n}"
        items.append(from_plain({**plain["settlement"], "request": name}, Settlement))
        prices += [from_plain({**p, "entry": name}, Posting) for p in plain["postings"]]
    batch += 1
    store.ledger.settle(items, prices, "gateway-0.jsonl", batch)
    seq = store.journal.append([NodeLost(batch, "n"), NodeLost(batch, "m")], epoch)
    print(batch, seq, flush=True)
"""


@pytest.mark.live
def test_killed_while_settling(url: str, settlement: Make, postings_of: Price) -> None:
    """SIGKILL in the middle of a loop: what was acknowledged is there, and nothing is there twice or half.

    A cheaper test could not cover it: the database's own recovery has to run.
    """
    plain = {"settlement": to_plain(settlement("x")), "postings": to_plain(postings_of(settlement("x")))}
    batch = acknowledged_seq = 0
    for stop_after in (3, 7, 5):
        command = [sys.executable, "-c", CRASH, url, "20", json.dumps(plain)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
            assert victim.stdout is not None
            for _ in range(stop_after):
                batch, acknowledged_seq = map(int, victim.stdout.readline().split())
            victim.kill()
            # What it managed to say before it died was acknowledged as well.
            for line in victim.stdout:
                if line.endswith("\n"):
                    batch, acknowledged_seq = map(int, line.split())
        store = open_store(url)
        settled = store.ledger.offset("gateway-0.jsonl")
        assert batch <= settled <= batch + 1
        assert counts(store) == (20 * settled, 4 * 20 * settled)
        seqs = [seq for seq, _ in store.journal.replay()]
        assert acknowledged_seq <= len(seqs) <= acknowledged_seq + 2
        assert len(seqs) % 2 == 0
        store.close()
