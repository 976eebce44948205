"""Dates as people write them, held to the standard library's calendar."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.domain.calendar import DAY_US, date_of, day_of, format_moment, month_of, parse_moment
from tokenmill.domain.errors import UsageError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@given(st.dates(date(1970, 1, 1), date(2999, 12, 31)))
def test_days_and_months_are_those_of_the_calendar(written: date) -> None:
    day = (written - date(1970, 1, 1)).days
    assert date_of(day) == (written.year, written.month, written.day)
    assert day_of(written.year, written.month, written.day) == day
    assert month_of(day) == written.year * 12 + written.month - 1


@given(st.integers(DAY_US, 30_000 * DAY_US), st.integers(-14 * 60, 14 * 60))
def test_a_moment_is_read_in_its_zone_and_shown_in_utc(clock_us: int, zone_minutes: int) -> None:
    clock = (EPOCH + timedelta(microseconds=clock_us)).replace(tzinfo=None)
    sign, (hours, minutes) = "-" if zone_minutes < 0 else "+", divmod(abs(zone_minutes), 60)
    at_us = clock_us - zone_minutes * 60_000_000
    assert parse_moment(f"{clock.isoformat()}{sign}{hours:02}:{minutes:02}") == at_us
    assert parse_moment(format_moment(at_us)) == at_us


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2026-01-01", "2026-01-01"),
        ("2026-01-01T09:00:00+01:00", "2026-01-01T08:00:00Z"),
        ("2026-01-01 09:30Z", "2026-01-01T09:30:00Z"),
        ("2026-01-01T00:00:00.25Z", "2026-01-01T00:00:00.250000Z"),
    ],
)
def test_a_moment_is_shown(text: str, shown: str) -> None:
    assert format_moment(parse_moment(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tomorrow",
        "2026",
        "2026-02-30",
        "2026-13-01",
        "2026-00-01",
        "2026-01-01T09:00:00",
        "2026-01-01T24:00Z",
        7,
    ],
)
def test_what_is_no_moment_is_refused(text: object) -> None:
    with pytest.raises(UsageError, match="is not a date"):
        parse_moment(text)


def test_nothing_is_before_the_epoch() -> None:
    with pytest.raises(UsageError, match="before 1970"):
        parse_moment("1969-12-31")
    with pytest.raises(UsageError, match="before 1970"):
        parse_moment("1970-01-01T00:00:00+01:00")
