"""When a line starts by itself: cron expressions and bounds. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.domain.calendar import date_of

FIELDS = (
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of month", 1, 31),
    ("month", 1, 12),
    ("day of week", 0, 7),
)
MINUTE_US = 60_000_000
DAY_MINUTES = 24 * 60
SEARCH_DAYS = 366 * 9  # 29 February on a given weekday may be far off; after that it never comes


@dataclass(frozen=True, slots=True)
class Trigger:
    """Any of these starts a run; 0 and an empty text are off. All times are UTC."""

    cron: str = ""
    new_rows: int = 0  # since the last run
    drift_milli: int = 0  # of the new rows' lengths against the last run's, as a stability index
    words_drift_milli: int = 0  # of their words, as a Jensen-Shannon divergence in bits
    quality_milli: int = (
        0  # share of good opinions on the answers since the last run that must not be undercut
    )


@dataclass(frozen=True, slots=True)
class Cron:
    """Minutes, hours, days, months and weekdays (0 is Sunday) at which something is due, as in crontab(5)."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool  # both kinds of day are restricted: one that fits is enough

    def next_after(self, at_us: int) -> int | None:
        """The first full minute after ``at_us`` that is due, in microseconds; ``None`` when none ever is."""
        first_minute = at_us // MINUTE_US + 1
        for day in range(first_minute // DAY_MINUTES, first_minute // DAY_MINUTES + SEARCH_DAYS):
            if not self._fits(day):
                continue
            for hour in sorted(self.hours):
                for minute in sorted(self.minutes):
                    at = day * DAY_MINUTES + hour * 60 + minute
                    if at >= first_minute:
                        return at * MINUTE_US
        return None

    def _fits(self, day: int) -> bool:
        _, month, of_month = date_of(day)
        weekday = (day + 4) % 7  # 1 January 1970 was a Thursday
        by_month, by_week = of_month in self.days, weekday in self.weekdays
        return month in self.months and ((by_month or by_week) if self.either_day else (by_month and by_week))


def parse_cron(text: str) -> Cron:
    """Read five fields of numbers, ``*``, ranges, lists and steps. Raises ``ValueError`` that names the
    field.
    """
    parts = text.split()
    if len(parts) != len(FIELDS):
        raise ValueError(f"{text!r} has {len(parts)} fields; expected minute hour day month weekday")
    sets = [_field(part, *field) for part, field in zip(parts, FIELDS, strict=True)]
    weekdays = frozenset(day % 7 for day in sets[4])
    either = parts[2] != "*" and parts[4] != "*"
    return Cron(sets[0], sets[1], sets[2], sets[3], weekdays, either)


def _field(text: str, name: str, least: int, most: int) -> frozenset[int]:
    found: set[int] = set()
    for piece in text.split(","):
        span, slash, step = piece.partition("/")
        first, dash, last = span.partition("-")
        try:
            width = int(step) if slash else 1
            if span == "*":
                low, high = least, most
            else:
                low = int(first)
                high = int(last) if dash else (most if slash else low)
        except ValueError as error:
            raise ValueError(f"{piece!r} is no {name}") from error
        if not least <= low <= high <= most or width < 1:
            raise ValueError(f"{piece!r} is no {name}; expected {least} to {most}")
        found.update(range(low, high + 1, width))
    return frozenset(found)
