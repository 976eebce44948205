from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.domain.calendar import DAY_US
from tokenmill.domain.factory import Quota
from tokenmill.policy import admit as policy
from tokenmill.policy.admit import MINUTE_US, Admitted, Limit, Meter, Refused, Use, left

NOW = 20_000 * DAY_US + 5_000_000
FREE = Quota()


NEW = (Meter(), Meter())


def tenant(quota: Quota) -> Limit:
    return Limit("a", "tenant a", quota)


def both(entry: Limit, project: Quota) -> tuple[Limit, Limit]:
    return entry, Limit("a/p", "project", project)


def admit(
    entry: Limit, project: Quota, meters: tuple[Meter, ...], given: int, most: int, now: int, micros: int = 0
) -> Admitted | Refused:
    return policy.admit(both(entry, project), meters, Use(given + most, micros), now)


def settle(
    entry: Limit, project: Quota, meters: tuple[Meter, ...], reserved: Use, used: Use, now: int
) -> tuple[Meter, ...]:
    return policy.settle(both(entry, project), meters, reserved, used, NOW, now)


def test_requests_per_minute_refill_continuously() -> None:
    entry, memory = tenant(Quota(requests_per_minute=2)), NEW
    for _ in range(2):
        found = admit(entry, FREE, memory, 1, 1, NOW)
        assert isinstance(found, Admitted)
        memory = found.meters
    refused = admit(entry, FREE, memory, 1, 1, NOW)
    assert isinstance(refused, Refused)
    assert refused.code == "rate_limit_exceeded"
    assert refused.retry_after_us == MINUTE_US // 2
    assert isinstance(admit(entry, FREE, memory, 1, 1, NOW + refused.retry_after_us), Admitted)
    assert isinstance(admit(entry, FREE, memory, 1, 1, NOW + refused.retry_after_us - 1), Refused)


def test_tokens_are_reserved_and_corrected() -> None:
    quota = Quota(tokens_per_minute=100, tokens_per_day=150)
    entry = tenant(quota)
    first = admit(entry, FREE, NEW, 20, 80, NOW)
    assert isinstance(first, Admitted)
    assert first.reserved == Use(100)
    assert isinstance(admit(entry, FREE, first.meters, 1, 0, NOW), Refused)
    after = settle(entry, FREE, first.meters, first.reserved, Use(30), NOW)
    assert left(quota, after[0], NOW).tokens == 70
    assert after[0].day_tokens == 30
    assert after[0].open == 0
    over = settle(entry, FREE, first.meters, first.reserved, Use(140), NOW)
    assert over[0].day_tokens == 140


def test_day_is_the_utc_day() -> None:
    entry = tenant(Quota(tokens_per_day=100))
    first = admit(entry, FREE, NEW, 50, 50, NOW)
    assert isinstance(first, Admitted)
    refused = admit(entry, FREE, first.meters, 1, 0, NOW)
    assert isinstance(refused, Refused)
    assert refused.retry_after_us == DAY_US - 5_000_000
    assert isinstance(admit(entry, FREE, first.meters, 50, 50, NOW + refused.retry_after_us), Admitted)


def test_every_limit_that_forbids_is_named_and_waiting_is_no_use_for_the_impossible() -> None:
    entry = tenant(Quota(requests_per_minute=0, tokens_per_minute=10, concurrent_requests=0))
    refused = admit(entry, Quota(tokens_per_day=5), NEW, 20, 0, NOW)
    assert isinstance(refused, Refused)
    assert refused.code == "request_too_large"
    assert refused.retry_after_us == 0
    assert len(refused.reasons) == 4
    assert refused.reasons[-1].startswith("project:")


def test_concurrency_counts_open_requests() -> None:
    entry = tenant(Quota(concurrent_requests=1))
    first = admit(entry, FREE, NEW, 1, 1, NOW)
    assert isinstance(first, Admitted)
    assert isinstance(admit(entry, FREE, first.meters, 1, 1, NOW), Refused)
    after = settle(entry, FREE, first.meters, Use(2), Use(2), NOW)
    assert isinstance(admit(entry, FREE, after, 1, 1, NOW), Admitted)


@given(st.lists(st.tuples(st.integers(0, 90_000_000), st.integers(0, 60), st.integers(0, 60)), max_size=40))
def test_never_more_than_a_burst_and_the_refill(calls: list[tuple[int, int, int]]) -> None:
    """However requests come and are corrected, what was used stays within one bucket and its refill."""
    quota = Quota(tokens_per_minute=100)
    entry, memory, now, used = tenant(quota), tuple(NEW), NOW, 0
    for wait_us, reserved, spent in calls:
        now += wait_us
        found = admit(entry, FREE, memory, reserved, 0, now)
        if isinstance(found, Admitted):
            spent = min(spent, reserved)
            memory = settle(entry, FREE, found.meters, Use(reserved), Use(spent), now)
            used += spent
    assert used <= 100 + (now - NOW) * 100 // MINUTE_US + 1


def test_money_is_reserved_settled_and_never_passed() -> None:
    quota = Quota(micros_per_day=100, micros_per_month=150)
    entry = tenant(quota)
    first = admit(entry, FREE, NEW, 1, 1, NOW, 90)
    assert isinstance(first, Admitted)
    refused = admit(entry, FREE, first.meters, 1, 1, NOW, 20)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.retry_after_us) == ("insufficient_quota", 0)
    assert refused.reasons == (
        "tenant a: 0.000090 spent or reserved, up to 0.000020 asked, budget 0.000100 per UTC day",
    )
    after = settle(entry, FREE, first.meters, first.reserved, Use(2, 30), NOW)
    shown = left(quota, after[0], NOW)
    assert (shown.micros, shown.micros_limit) == (70, 100)
    tomorrow = NOW + DAY_US
    assert left(quota, after[0], tomorrow).micros == 100  # of the day; the month has 120 left
    second = admit(entry, FREE, after, 1, 1, tomorrow, 100)
    assert isinstance(second, Admitted)
    month = admit(entry, FREE, second.meters, 1, 1, tomorrow, 21)
    assert isinstance(month, Refused)
    assert len(month.reasons) == 2


def test_a_soft_budget_warns_and_lets_pass() -> None:
    quota = Quota(micros_per_day=10, warn=True)
    found = admit(tenant(quota), FREE, NEW, 1, 1, NOW, 25)
    assert isinstance(found, Admitted)
    assert left(quota, found.meters[0], NOW).micros == -15


def test_what_ends_on_another_day_counts_there() -> None:
    """As in the ledger, whose days are those of the settlements."""
    quota = Quota(micros_per_day=100, tokens_per_day=100)
    entry = tenant(quota)
    first = admit(entry, FREE, NEW, 10, 10, NOW, 60)
    assert isinstance(first, Admitted)
    after = settle(entry, FREE, first.meters, first.reserved, Use(15, 40), NOW + DAY_US)
    assert (after[0].day, after[0].day_tokens, after[0].day_micros) == (NOW // DAY_US + 1, 15, 40)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.booleans()), max_size=40))
def test_a_hard_budget_is_never_passed(calls: list[tuple[int, int, bool]]) -> None:
    """Whatever is reserved, used and still open: spent money stays within the budget."""
    quota = Quota(micros_per_month=100)
    entry, meters, spent = tenant(quota), NEW, 0
    for reserved, used, ends in calls:
        found = admit(entry, FREE, meters, 0, 0, NOW, reserved)
        if isinstance(found, Admitted):
            meters = (found.meters[0], found.meters[1])
            if ends:
                kept = settle(entry, FREE, meters, found.reserved, Use(0, min(used, reserved)), NOW)
                meters = (kept[0], kept[1])
                spent += min(used, reserved)
            assert spent <= meters[0].month_micros <= 100


def test_a_quota_of_no_tokens_lets_a_request_without_any_pass() -> None:
    limits = (Limit("a", "tenant a", Quota(tokens_per_minute=0)),)
    assert isinstance(policy.admit(limits, (Meter(),), Use(0), NOW), Admitted)
    refused = policy.admit(limits, (Meter(),), Use(1), NOW)
    assert isinstance(refused, Refused)
    assert refused.code == "request_too_large"
    two = (*limits, Limit("b", "project b", Quota(concurrent_requests=0)))
    refused = policy.admit(two, (Meter(), Meter()), Use(0), NOW)
    assert isinstance(refused, Refused)
    assert refused.reasons == ("project b: 0 requests are open, limit 0",)
