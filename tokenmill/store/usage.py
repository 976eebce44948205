"""Adds up the ledger for people: tokens and requests from settlements, work and money from postings.

The sums of whole days are kept beside the ledger and grow in the transaction that posts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Table, and_, func, or_, select

from tokenmill.domain.errors import UsageError
from tokenmill.domain.ledger import Posting, Settlement
from tokenmill.store.database import Database
from tokenmill.store.schema import postings, settlements, usage_days

DAY_US = 86_400_000_000
GROUPS = ("tenant", "project", "key", "model", "day")

_TOKENS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
_WORK = ("accelerator_us", "cpu_us", "energy_mj")
_MONEY = "micros:"  # and a currency
_REQUESTS = "requests:"  # and an outcome
_GROUP_KEY = ("day", "tenant", "project", "key", "model", "measure")


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One group's sums. What was not grouped by is empty; ``day`` is YYYY-MM-DD in UTC.

    ``model`` is the alias that was asked for, or the model that was worked on. ``requests`` counts
    every settlement, ``outcomes`` splits it; ``micros`` is by currency, in millionths.
    """

    tenant: str = ""
    project: str = ""
    key: str = ""
    model: str = ""
    day: str = ""
    requests: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    accelerator_us: int = 0
    cpu_us: int = 0
    energy_mj: int = 0
    micros: Mapping[str, int] = field(default_factory=dict)


# day, tenant, project, key, model, measure
Measured = tuple[int, str, str, str, str, str]


def measure(settlements: Iterable[Settlement], postings: Iterable[Posting]) -> dict[Measured, int]:
    """What these add to each day's sums, in order. A measure is a number of ``UsageRow`` or has a prefix."""
    sums: dict[Measured, int] = defaultdict(int)
    for item in settlements:
        group = (item.at_us // DAY_US, item.tenant, item.project, item.key, storable(item.alias))
        sums[*group, _REQUESTS + item.outcome.value] += 1
        for name in _TOKENS:
            sums[*group, name] += getattr(item, name)
    for posting in postings:
        if posting.unit in _WORK or posting.unit.startswith(_MONEY):
            group = (
                posting.at_us // DAY_US,
                posting.tenant,
                posting.project,
                posting.key,
                storable(posting.model),
            )
            sums[*group, posting.unit] += posting.amount
    return {group: sums[group] for group in sorted(sums) if sums[group]}


def add_usage(database: Database, connection: Connection, sums: Mapping[Measured, int]) -> None:
    """Add to the sums of the days, in the transaction that posts. ``sums`` is sorted, so nobody deadlocks."""
    if not sums:
        return
    insert = database.insert(usage_days)
    more = {"amount": usage_days.c.amount + insert.excluded.amount}
    names = [column.name for column in usage_days.columns]
    rows = [dict(zip(names, (*group, amount), strict=True)) for group, amount in sums.items()]
    connection.execute(insert.on_conflict_do_update(index_elements=_GROUP_KEY, set_=more), rows)


def usage_rows(
    connection: Connection, by: Sequence[str], since_us: int, until_us: int, tenant: str
) -> list[UsageRow]:
    """The sums per group, ordered by group. Raises ``UsageError`` for a grouping that is not in GROUPS.

    Whole days come from their sums; only the broken days at both ends of the window are counted request by
    request.
    """
    unknown = [name for name in by if name not in GROUPS]
    if unknown:
        raise UsageError(
            f"usage cannot be grouped by {', '.join(unknown)}", expected=f"any of {', '.join(GROUPS)}"
        )
    groups = [name for name in GROUPS if name in by]
    sums: dict[tuple[str, ...], _Sums] = defaultdict(_Sums)
    first_day, end_day = -(-since_us // DAY_US), until_us // DAY_US
    if until_us and end_day < first_day:
        parts = [(since_us, until_us)]
    else:
        parts = [(since_us, first_day * DAY_US), (end_day * DAY_US, until_us)]
        for row in connection.execute(_days(groups, first_day, end_day if until_us else None, tenant)):
            sums[_key(row, groups)].add(row.measure, int(row.amount))
    for start, end in parts:
        if start < end:
            _count(connection, groups, (start, end, tenant), sums)
    return [sums[key].row(dict(zip(groups, key, strict=True))) for key in sorted(sums)]


def counted_days(connection: Connection) -> dict[Measured, int]:
    """What the sums of the days have to be, counted from every settlement and posting."""
    groups = ("day", "tenant", "project", "key", "model")
    found: dict[Measured, int] = defaultdict(int)
    for row in connection.execute(_requests(groups, 0, 0, "")):
        group = (int(row.day), row.tenant, row.project, row.key, row.model)
        found[*group, _REQUESTS + row.outcome] += row.requests
        for name in _TOKENS:
            found[*group, name] += int(getattr(row, name))
    for row in connection.execute(_work(groups, 0, 0, "")):
        group = (int(row.day), row.tenant, row.project, row.key, row.model)
        found[*group, row.unit] += int(row.amount)
    return {group: amount for group, amount in found.items() if amount}


def kept_days(connection: Connection) -> dict[Measured, int]:
    """The sums of the days as they are kept."""
    found = {}
    for row in connection.execute(select(usage_days)):
        group = (row.day, row.tenant, row.project, row.key, row.model, row.measure)
        found[group] = row.amount
    return {group: amount for group, amount in found.items() if amount}


def _count(
    connection: Connection,
    groups: Sequence[str],
    window: tuple[int, int, str],
    sums: dict[tuple[str, ...], _Sums],
) -> None:
    for row in connection.execute(_requests(groups, *window)):
        total = sums[_key(row, groups)]
        total.add(_REQUESTS + row.outcome, row.requests)
        for name in _TOKENS:
            total.add(name, int(getattr(row, name)))
    for row in connection.execute(_work(groups, *window)):
        sums[_key(row, groups)].add(row.unit, int(row.amount))


@dataclass(slots=True)
class _Sums:
    """One group while it is added up."""

    numbers: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    outcomes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    micros: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, measure: str, amount: int) -> None:
        if measure.startswith(_REQUESTS):
            self.outcomes[measure.removeprefix(_REQUESTS)] += amount
        elif measure.startswith(_MONEY):
            self.micros[measure.removeprefix(_MONEY)] += amount
        else:
            self.numbers[measure] += amount

    def row(self, group: Mapping[str, str]) -> UsageRow:
        values: dict[str, Any] = {**group, **self.numbers}
        values["requests"] = sum(self.outcomes.values())
        values["outcomes"] = dict(sorted(self.outcomes.items()))
        values["micros"] = dict(sorted(self.micros.items()))
        return UsageRow(**values)


def storable(text: str) -> str:
    """``text`` without NUL, which PostgreSQL cannot keep and which only a client's mischief brings."""
    return text.replace("\x00", "\ufffd") if "\x00" in text else text


def day_text(day: int) -> str:
    """Day number since 1970-01-01 as YYYY-MM-DD."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).strftime("%Y-%m-%d")


def within(table: Table, since_us: int, until_us: int, tenant: str) -> ColumnElement[bool]:
    """The condition that ``table``'s rows lie in the window and belong to the tenant (if one is named)."""
    terms = [table.c.at_us >= since_us]
    if until_us:
        terms.append(table.c.at_us < until_us)
    if tenant:
        terms.append(table.c.tenant == tenant)
    return and_(*terms)


def _columns(table: Table, groups: Sequence[str], model: ColumnElement[str]) -> list[ColumnElement[Any]]:
    special = {"model": model.label("model"), "day": (table.c.at_us // DAY_US).label("day")}
    return [special[name] if name in special else table.c[name] for name in groups]


def _days(groups: Sequence[str], first_day: int, end_day: int | None, tenant: str) -> Select[Any]:
    columns = [usage_days.c[name] for name in groups]
    terms = [usage_days.c.day >= first_day]
    if end_day is not None:
        terms.append(usage_days.c.day < end_day)
    if tenant:
        terms.append(usage_days.c.tenant == tenant)
    total = func.sum(usage_days.c.amount).label("amount")
    wanted = select(*columns, usage_days.c.measure, total).where(and_(*terms))
    return wanted.group_by(*columns, usage_days.c.measure)


def _requests(groups: Sequence[str], since_us: int, until_us: int, tenant: str) -> Select[Any]:
    columns = _columns(settlements, groups, settlements.c.alias)
    totals = [func.sum(settlements.c[name]).label(name) for name in _TOKENS]
    return (
        select(*columns, settlements.c.outcome, func.count().label("requests"), *totals)
        .where(within(settlements, since_us, until_us, tenant))
        .group_by(*columns, settlements.c.outcome)
    )


def _work(groups: Sequence[str], since_us: int, until_us: int, tenant: str) -> Select[Any]:
    columns = _columns(postings, groups, postings.c.model)
    wanted = or_(postings.c.unit.in_(_WORK), postings.c.unit.startswith(_MONEY, autoescape=True))
    return (
        select(*columns, postings.c.unit, func.sum(postings.c.amount).label("amount"))
        .where(within(postings, since_us, until_us, tenant), wanted)
        .group_by(*columns, postings.c.unit)
    )


def _key(row: Any, groups: Sequence[str]) -> tuple[str, ...]:
    values = row._mapping
    return tuple(day_text(int(values[name])) if name == "day" else values[name] for name in groups)
