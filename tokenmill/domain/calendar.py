"""Days and months of the Gregorian calendar in UTC, as integers: no clock, no zone but the one written.

A day is counted from 1 January 1970. The arithmetic is Howard Hinnant's ``days_from_civil`` and
``civil_from_days`` (2013), which begin years in March.
"""

from __future__ import annotations

import re

from tokenmill.domain.errors import UsageError

DAY_US = 86_400_000_000
SECOND_US = 1_000_000
_MOMENT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,6}))?)?(?:[zZ]|([+-])(\d\d):(\d\d)))?"
)


def date_of(day: int) -> tuple[int, int, int]:
    """Year, month and day of the month of a day."""
    era, of_era = divmod(day + 719_468, 146_097)
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153  # since March
    year += era * 400 + (month >= 10)
    return year, (month + 3 if month < 10 else month - 9), of_year - (153 * month + 2) // 5 + 1


def day_of(year: int, month: int, day: int) -> int:
    """The day of a date; of what is no date, some day whose ``date_of`` is another."""
    year -= month <= 2
    era, of_cycle = divmod(year, 400)
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * 146_097 + of_cycle * 365 + of_cycle // 4 - of_cycle // 100 + of_year - 719_468


def month_of(day: int) -> int:
    """``year * 12 + month - 1`` of a day."""
    year, month, _ = date_of(day)
    return year * 12 + month - 1


def parse_moment(value: object) -> int:
    """Microseconds since the epoch of "2026-01-01" (its first moment in UTC) or "...T09:00:00+01:00"."""
    match = _MOMENT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise _no_date(value)
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    days = day_of(year, month, day)
    if date_of(days) != (year, month, day) or hour > 23 or minute > 59 or second > 59:
        raise _no_date(value)
    fraction, sign, zone_hours, zone_minutes = match.groups()[6:]
    zone_s = (int(zone_hours or 0) * 60 + int(zone_minutes or 0)) * (-60 if sign == "-" else 60)
    seconds = days * 86_400 + hour * 3600 + minute * 60 + second - zone_s
    if seconds < 0:
        raise UsageError(f"{value!r} is before 1970", expected="a date from 1970-01-01 on")
    return seconds * SECOND_US + int((fraction or "0").ljust(6, "0"))


def format_moment(at_us: int) -> str:
    """The date in UTC, with the time when it is not midnight: "2026-01-01", "2026-01-01T08:00:00Z"."""
    day, rest_us = divmod(at_us, DAY_US)
    date = "{:04}-{:02}-{:02}".format(*date_of(day))
    seconds, micros = divmod(rest_us, SECOND_US)
    clock = f"T{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return date if not rest_us else f"{date}{clock}{f'.{micros:06}' if micros else ''}Z"


def _no_date(value: object) -> UsageError:
    return UsageError(
        f"{value!r} is not a date",
        expected="a date, or a time with its zone, for example 2026-01-01 or 2026-01-01T00:00:00Z",
    )
