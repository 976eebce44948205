"""When a line starts by itself: cron times, new rows, drift; each alone and at its edge."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.domain.calendar import date_of
from tokenmill.domain.profile import Profile, bucket
from tokenmill.domain.trigger import Trigger, parse_cron
from tokenmill.policy.trigger import divergence_milli, due, stability_milli


def us(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


@pytest.mark.parametrize(
    ("cron", "after", "expected"),
    [
        ("30 2 * * *", "2026-11-26T02:29:59", "2026-11-26T02:30"),
        ("30 2 * * *", "2026-11-26T02:30:00", "2026-11-27T02:30"),
        ("*/15 * * * *", "2026-12-31T23:50", "2027-01-01T00:00"),
        ("0 9 * * 1-5", "2026-11-27T10:00", "2026-11-30T09:00"),
        ("0 0 29 2 *", "2026-03-01T00:00", "2028-02-29T00:00"),
        ("0 0 13 * 5", "2026-11-12T00:00", "2026-11-13T00:00"),
        ("0 0 1 * 7", "2026-11-26T00:00", "2026-11-29T00:00"),
        ("5,10-12/2 8 * 1,6 *", "2026-06-30T08:11", "2026-06-30T08:12"),
    ],
)
def test_the_next_time_that_is_due(cron: str, after: str, expected: str) -> None:
    assert parse_cron(cron).next_after(us(after)) == us(expected)


def test_a_day_that_never_comes_is_never_due() -> None:
    assert parse_cron("0 0 31 2 *").next_after(us("2026-01-01")) is None


@given(st.integers(0, 60_000))
def test_the_calendar_is_the_gregorian_one(day: int) -> None:
    expected = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)
    assert date_of(day) == (expected.year, expected.month, expected.day)


@pytest.mark.parametrize(
    "cron",
    ["", "* * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "a * * * *", "5-2 * * * *", "*/0 * * * *"],
)
def test_what_is_no_cron_is_refused(cron: str) -> None:
    with pytest.raises(ValueError, match=r"expected|is no"):
        parse_cron(cron)


def decided(trigger: Trigger, profile: list[int], before: list[int], now: str = "2026-11-26T03:00") -> bool:
    return due(
        trigger,
        profile,
        last_profile=before,
        last_started_us=us("2026-11-26T01:00"),
        now_us=us(now),
    ).run


def test_enough_new_rows_start_a_run() -> None:
    assert not decided(Trigger(new_rows=100), [0, 199], [0, 100])
    assert decided(Trigger(new_rows=100), [0, 200], [0, 100])
    assert decided(Trigger(new_rows=100), [0, 100], [])
    assert not decided(Trigger(new_rows=100), [0, 50], [0, 500])


def test_drift_is_of_the_new_rows_only() -> None:
    before = [0, 400, 400, 0]
    assert not decided(Trigger(drift_milli=250), [0, 500, 500, 0], before)
    assert decided(Trigger(drift_milli=250), [0, 400, 400, 100], before)
    assert not decided(Trigger(drift_milli=250), [0, 400, 400, 20], before)  # too few to tell
    assert stability_milli([0, 10], [0, 10]) == 0
    assert stability_milli([], [5]) == 0


def test_time_starts_a_run_once() -> None:
    trigger = Trigger(cron="0 2 * * *")
    assert decided(trigger, [], [])
    assert not decided(trigger, [], [], now="2026-11-26T01:59")
    at_us, now_us = us("2026-11-26T02:00"), us("2026-11-26T03:00")
    found = due(trigger, [], last_profile=[], last_started_us=at_us, now_us=now_us)
    assert not found.run
    assert found.reasons == ("not due: cron '0 2 * * *'",)


def test_rows_are_counted_by_the_length_of_their_line() -> None:
    assert [bucket(n) for n in (0, 1, 2, 3, 4, 1023, 1024, 1 << 40)] == [0, 0, 1, 1, 2, 9, 10, 23]


def words_of(vocabulary: str, rows: int, seed: int) -> list[int]:
    """Counts of rows of eight words each, drawn from a vocabulary."""
    draw, found = random.Random(seed), Profile()
    for _ in range(rows):
        line = " ".join(draw.choice(vocabulary.split()) for _ in range(8)).encode()
        found.add(line, len(line))
    return found.words


CARDS = "card lost stolen pin blocked new replace arrive when travel abroad cash machine swallowed fee charge"
LOANS = "loan rate mortgage months repay early house deposit credit score lender signed terms insurance"


def test_words_that_change_at_the_same_length_are_drift() -> None:
    before = words_of(CARDS, 400, 1)
    trigger = Trigger(words_drift_milli=50)

    def decide(new: list[int], rows: int = 80) -> bool:
        now = [a + b for a, b in zip(before, new, strict=True)]
        return due(
            trigger,
            [0, 400 + rows],
            last_profile=[0, 400],
            words=now,
            last_words=before,
            last_started_us=0,
            now_us=1,
        ).run

    assert not decide(words_of(CARDS, 80, 2))
    assert decide(words_of(LOANS, 80, 2))
    assert not decide(words_of(LOANS, 80, 2), rows=20)  # too few rows to tell
    assert not decide(words_of(LOANS, 20, 2))  # too few words


def test_divergence_is_symmetric_bounded_and_nothing_by_chance() -> None:
    assert divergence_milli([10_000, 0], [0, 10_000]) == pytest.approx(1000, abs=2)
    one, other = words_of(CARDS, 300, 3), words_of(LOANS, 300, 4)
    assert divergence_milli(one, other) == divergence_milli(other, one) > 300
    assert max(divergence_milli(one, words_of(CARDS, 60, seed)) for seed in range(40)) < 25
    assert divergence_milli([], [1]) == 0


def test_words_of_long_rows_are_counted_at_both_ends() -> None:
    found = Profile()
    found.add(b"alpha " + b"x1 " * 10_000 + b"omega", 30_011)
    assert sum(found.words) == 2
    other = Profile()
    other.join(found)
    assert other == found


@pytest.mark.parametrize(
    ("good", "bad", "starts"), [(5, 25, True), (22, 8, False), (2, 8, False), (0, 0, False), (60, 40, True)]
)
def test_worse_answers_start_a_run_when_it_is_no_luck(good: int, bad: int, starts: bool) -> None:
    found = due(
        Trigger(quality_milli=750),
        [0, 10],
        last_profile=[0, 10],
        opinions=(good, bad),
        last_started_us=0,
        now_us=1,
    )
    assert found.run is starts
    assert f"{good} of {good + bad} opinions are good, 75 % is the bound" in found.reasons[0]
