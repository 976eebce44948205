"""``ledger verify`` holds what was billed against tokens and price, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import update

from tokenmill.domain.factory import Price
from tokenmill.domain.ledger import Settlement
from tokenmill.policy.price import price_id, settlement_cost, settlement_postings
from tokenmill.store import Store
from tokenmill.store.schema import postings

Make = Callable[..., Settlement]

DOLLARS = Price("chat", 100_000, 20_000, 400_000, reasoning_micros_per_mtok=900_000)
EUROS = Price("chat", 3_000_000, 1, 7_000_000, currency="EUR", from_us=5)


@pytest.fixture
def billed(store: Store, settlement: Make) -> Store:
    store.ledger.keep_prices({price_id(one): one for one in (DOLLARS, EUROS)})
    batch = [
        (settlement("a", price=price_id(DOLLARS)), DOLLARS),
        (settlement("b", price=price_id(DOLLARS)), DOLLARS),
        (settlement("c", price=price_id(DOLLARS), reasoning_tokens=31, cached_tokens=999), DOLLARS),
        (settlement("d", price=price_id(EUROS), input_tokens=123_457), EUROS),
        (settlement("e", price=price_id(EUROS), input_tokens=0, cached_tokens=0, output_tokens=0), EUROS),
        (settlement("f", price=price_id(EUROS), tenant="", project="", key=""), EUROS),  # nobody's: a copy
        (settlement("g"), DOLLARS),  # of a gateway that named no price
        (settlement("h", price="chat:unknown"), EUROS),
    ]
    lines = [line for item, price in batch for line in settlement_postings(item, price)]
    store.ledger.settle([item for item, _ in batch], lines, "", 0)
    return store


def test_what_each_request_owes_is_its_tokens_at_its_price(billed: Store, settlement: Make) -> None:
    report = billed.ledger.verify(Path("/nowhere"))
    assert report.problems == ()
    owed = settlement_cost(settlement("d", input_tokens=123_457), EUROS)
    assert report.balances["tenant/acme/search"]["micros:EUR"] >= owed > 300_000


@pytest.mark.parametrize(
    ("entry", "change", "said"),
    [
        ("a", {"amount": 5}, "request a: its tokens cost 0.000028 USD, posted are 0.000005 USD"),
        ("d", {"amount": 0}, "request d: its tokens cost 0.370661 EUR, posted are 0.00 EUR"),
        ("d", {"unit": "micros:USD"}, "request d: its tokens cost 0.370661 EUR, posted are 0.370661 USD"),
    ],
)
def test_money_that_its_tokens_do_not_cost_is_found(
    billed: Store, entry: str, change: dict[str, object], said: str
) -> None:
    money = postings.c.unit.startswith("micros:", autoescape=True)
    with billed.database.write() as connection:
        found = connection.execute(update(postings).where(postings.c.entry == entry, money).values(change))
        assert found.rowcount == 1
    problems = billed.ledger.verify(Path("/nowhere")).problems
    assert [text for text in problems if not text.startswith("usage of")] == [said]
