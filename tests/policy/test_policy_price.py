from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.domain.effects import ChargeWork
from tokenmill.domain.factory import Price
from tokenmill.domain.ledger import Outcome, Settlement
from tokenmill.domain.work import WorkUsage
from tokenmill.policy.price import (
    FREE,
    book_of,
    price_ahead,
    price_id,
    price_of,
    settlement_postings,
    work_postings,
)

PRICE = Price("chat", 150_000, 75_000, 600_000, 2_000_000_000, 300_000)
DONE = Settlement("q1", 5, "a", "p", "k", "chat", "rel", "r1", "chat.completions", Outcome.OK, 200)


def amounts(settlement: Settlement, price: Price = PRICE) -> dict[str, int]:
    return {posting.unit: posting.amount for posting in settlement_postings(settlement, price)}


def test_cached_and_reasoning_tokens_are_parts_not_extras() -> None:
    found = amounts(replace(DONE, input_tokens=100, cached_tokens=40, output_tokens=50, reasoning_tokens=20))
    assert found == {
        "token.input": 60,
        "token.cached": 40,
        "token.output": 30,
        "token.reasoning": 20,
        "micros:USD": (60 * 150_000 + 40 * 75_000 + 50 * 600_000) // 1_000_000,
    }


def test_half_a_millionth_rounds_up_once_and_zero_is_not_posted() -> None:
    assert amounts(replace(DONE, input_tokens=1), Price("*", 500_000))["micros:USD"] == 1
    assert "micros:USD" not in amounts(replace(DONE, input_tokens=1), Price("*", 499_999))
    assert settlement_postings(DONE, PRICE) == ()


@given(*(st.integers(0, 10**6),) * 4)
def test_token_units_sum_to_what_the_engine_counted(i: int, cached: int, o: int, reasoning: int) -> None:
    found = amounts(
        replace(DONE, input_tokens=i, cached_tokens=cached, output_tokens=o, reasoning_tokens=reasoning)
    )
    assert found.get("token.input", 0) + found.get("token.cached", 0) == i
    assert found.get("token.output", 0) + found.get("token.reasoning", 0) == o


def test_price_is_by_alias_then_model_then_star() -> None:
    star, model = Price("*", 1), Price("m", 2)
    assert price_of([star, model, PRICE], "chat", "m") is PRICE
    assert price_of([star, model], "chat", "m") is model
    assert price_of([star], "chat", "m") is star
    assert price_of([], "chat") is FREE


def test_work_is_time_energy_and_money_and_the_factory_pays_itself_nothing() -> None:
    hour = WorkUsage(cpu_us=7, accelerator_us=3_600_000_000, energy_mj=3_600_000_000)
    charge = ChargeWork("l-1", "a", "p", "train", "chat", hour)
    found = work_postings(charge, [PRICE], 9)
    assert {p.unit: p.amount for p in found}["micros:USD"] == 2_000_300_000
    assert {p.entry for p in found} == {"work:l-1"}
    assert [p.line for p in found] == [0, 1, 2, 3]
    own = work_postings(replace(charge, tenant="", project=""), [PRICE], 9)
    assert {p.unit for p in own} == {"accelerator_us", "cpu_us", "energy_mj"}
    assert {p.debit for p in own} == {"factory/chat"}


def test_the_price_that_began_last_before_admission_is_valid() -> None:
    old, new, star = Price("chat", 1), Price("chat", 2, from_us=100), Price("*", 9, from_us=50)
    prices = [new, star, old]
    assert [price_of(prices, "chat", at_us=at).input_micros_per_mtok for at in (0, 99, 100)] == [1, 1, 2]
    assert book_of(prices, "chat") == (old, new)
    assert book_of([star], "chat") == (FREE, star)
    assert book_of([star, new], "chat", "") == (FREE, star, new)
    assert price_of([new, star], "chat", at_us=60) is star
    assert price_id(old) == price_id(replace(new, input_micros_per_mtok=1, from_us=0)) != price_id(new)


def test_reasoning_has_a_price_of_its_own_where_one_is_written() -> None:
    done = replace(DONE, output_tokens=50, reasoning_tokens=20)
    assert amounts(done)["micros:USD"] == 30
    dear = replace(PRICE, reasoning_micros_per_mtok=6_000_000)
    assert amounts(done, dear)["micros:USD"] == (30 * 600_000 + 20 * 6_000_000) // 1_000_000


def test_an_hour_costs_what_its_type_does_and_every_other_type_the_rest() -> None:
    """Two H200 and one A100 for an hour each; then a type that has no price of its own; then none known."""
    book = [
        Price(
            "*", accelerator_hour_micros=1_000_000, type_hour_micros=(("a100", 500_000), ("h200", 2_000_000))
        ),
        Price("*", accelerator_hour_micros=9_000_000, from_us=10),
    ]
    used = WorkUsage(accelerator_us=3 * 3_600_000_000)

    def money(held: tuple[tuple[str, int], ...], at_us: int = 9) -> int:
        charge = ChargeWork("l-1", "a", "p", "train", "chat", used, held)
        return {one.unit: one.amount for one in work_postings(charge, book, at_us)}["micros:USD"]

    assert money((("a100", 1), ("h200", 2))) == 4_500_000
    assert money((("h200", 3),)) == 6_000_000
    assert money((("b200", 3),)) == money(()) == 3_000_000
    assert money((("h200", 3),), at_us=10) == 27_000_000


def test_a_plan_counts_with_the_price_of_all_that_begins_last() -> None:
    assert price_ahead([]) is None
    old, new, other = Price("*", 1), Price("*", 2, from_us=5), Price("chat", 3, from_us=9)
    assert price_ahead([other, old, new]) == new
    assert price_ahead([other, Price("code")]) == other
