from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.domain.factory import Quota
from tokenmill.domain.table import TenantEntry
from tokenmill.policy.admit import DAY_US, MINUTE_US, AdmitMemory, Admitted, Refused, admit, left, settle

NOW = 20_000 * DAY_US + 5_000_000
FREE = Quota()


def tenant(quota: Quota) -> TenantEntry:
    return TenantEntry("a", quota, (), (("p", FREE),))


def test_requests_per_minute_refill_continuously() -> None:
    entry, memory = tenant(Quota(requests_per_minute=2)), AdmitMemory()
    for _ in range(2):
        found = admit(entry, FREE, memory, 1, 1, NOW)
        assert isinstance(found, Admitted)
        memory = found.memory
    refused = admit(entry, FREE, memory, 1, 1, NOW)
    assert isinstance(refused, Refused)
    assert refused.code == "rate_limit_exceeded"
    assert refused.retry_after_us == MINUTE_US // 2
    assert isinstance(admit(entry, FREE, memory, 1, 1, NOW + refused.retry_after_us), Admitted)
    assert isinstance(admit(entry, FREE, memory, 1, 1, NOW + refused.retry_after_us - 1), Refused)


def test_tokens_are_reserved_and_corrected() -> None:
    quota = Quota(tokens_per_minute=100, tokens_per_day=150)
    entry = tenant(quota)
    first = admit(entry, FREE, AdmitMemory(), 20, 80, NOW)
    assert isinstance(first, Admitted)
    assert first.reserved == 100
    assert isinstance(admit(entry, FREE, first.memory, 1, 0, NOW), Refused)
    after = settle(entry, FREE, first.memory, first.reserved, 30, NOW)
    assert left(quota, after.tenant, NOW).tokens == 70
    assert after.tenant.day_tokens == 30
    assert after.tenant.open == 0
    over = settle(entry, FREE, first.memory, first.reserved, 140, NOW)
    assert over.tenant.day_tokens == 140


def test_day_is_the_utc_day() -> None:
    entry = tenant(Quota(tokens_per_day=100))
    first = admit(entry, FREE, AdmitMemory(), 50, 50, NOW)
    assert isinstance(first, Admitted)
    refused = admit(entry, FREE, first.memory, 1, 0, NOW)
    assert isinstance(refused, Refused)
    assert refused.retry_after_us == DAY_US - 5_000_000
    assert isinstance(admit(entry, FREE, first.memory, 50, 50, NOW + refused.retry_after_us), Admitted)


def test_every_limit_that_forbids_is_named_and_waiting_is_no_use_for_the_impossible() -> None:
    entry = tenant(Quota(requests_per_minute=0, tokens_per_minute=10, concurrent_requests=0))
    refused = admit(entry, Quota(tokens_per_day=5), AdmitMemory(), 20, 0, NOW)
    assert isinstance(refused, Refused)
    assert refused.code == "request_too_large"
    assert refused.retry_after_us == 0
    assert len(refused.reasons) == 4
    assert refused.reasons[-1].startswith("project:")


def test_concurrency_counts_open_requests() -> None:
    entry = tenant(Quota(concurrent_requests=1))
    first = admit(entry, FREE, AdmitMemory(), 1, 1, NOW)
    assert isinstance(first, Admitted)
    assert isinstance(admit(entry, FREE, first.memory, 1, 1, NOW), Refused)
    after = settle(entry, FREE, first.memory, 2, 2, NOW)
    assert isinstance(admit(entry, FREE, after, 1, 1, NOW), Admitted)


@given(st.lists(st.tuples(st.integers(0, 90_000_000), st.integers(0, 60), st.integers(0, 60)), max_size=40))
def test_never_more_than_a_burst_and_the_refill(calls: list[tuple[int, int, int]]) -> None:
    """However requests come and are corrected, what was used stays within one bucket and its refill."""
    quota = Quota(tokens_per_minute=100)
    entry, memory, now, used = tenant(quota), AdmitMemory(), NOW, 0
    for wait_us, reserved, spent in calls:
        now += wait_us
        found = admit(entry, FREE, memory, reserved, 0, now)
        if isinstance(found, Admitted):
            spent = min(spent, reserved)
            memory = settle(entry, FREE, found.memory, reserved, spent, now)
            used += spent
    assert used <= 100 + (now - NOW) * 100 // MINUTE_US + 1
