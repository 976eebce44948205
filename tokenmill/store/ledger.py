"""The ledger: one settlement per request, the postings made from it, and how far each spool was read.

Whatever arrives twice is written once. Nothing here prices, and nothing is ever changed or deleted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from msgspec.json import decode, encode
from sqlalchemy import Connection, case, func, select

from tokenmill.domain.errors import invariant
from tokenmill.domain.factory import Price
from tokenmill.domain.ledger import Outcome, Posting, Settlement
from tokenmill.store.bulk import insert_absent, insert_rows
from tokenmill.store.database import Database
from tokenmill.store.forwarded import Forwarded, forwarded_rows
from tokenmill.store.schema import feedback, prices, spools
from tokenmill.store.schema import postings as postings_table
from tokenmill.store.schema import settlements as settlements_table
from tokenmill.store.usage import UsageRow, add_usage, measure, storable, usage_rows
from tokenmill.store.verify import IN_FLIGHT_US, LedgerReport, verify_ledger
from tokenmill.store.verify_engines import CountEngines

T = TypeVar("T")

_SETTLEMENT_FIELDS = tuple(item.name for item in fields(Settlement))
_POSTING_FIELDS = tuple(item.name for item in fields(Posting))

# SQLite allows 32,766 variables in a statement, PostgreSQL 65,535.
_KEYS_PER_QUERY = 10_000


@dataclass(frozen=True, slots=True)
class Served:
    """What one key had from a release under one alias."""

    tenant: str
    project: str
    key: str
    alias: str
    requests: int
    output_tokens: int
    first_us: int
    last_us: int


class Ledger:
    """The ledger of one store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def settle(
        self, settlements: Sequence[Settlement], postings: Sequence[Posting], spool: str, offset: int
    ) -> int:
        """Write what is new in one transaction and return how many settlements were.

        A request that is settled already keeps its first settlement, and its postings here are dropped.
        Every posting's ``entry`` must be one of the requests. ``spool`` is then read up to byte ``offset``;
        an offset never goes back. With an empty ``spool`` only the settlements are written.
        """
        first: dict[str, Settlement] = {}
        for settlement in settlements:
            first.setdefault(settlement.request, settlement)
        lines: dict[str, list[Posting]] = defaultdict(list)
        for posting in postings:
            invariant(posting.entry in first, "a posting belongs to a settlement of its batch")
            lines[posting.entry].append(posting)
        with self._database.write() as connection:
            # In the same order everywhere, so that two writers cannot wait for each other in a circle.
            rows = [_settlement_row(first[request]) for request in sorted(first)]
            new = insert_absent(connection, settlements_table, rows)
            posted = [posting for request in new for posting in lines.get(request, ())]
            insert_rows(connection, postings_table, _posting_rows(posted))
            add_usage(self._database, connection, measure((first[request] for request in new), posted))
            if spool:
                self._move(connection, spool, offset)
        return len(new)

    def offset(self, spool: str) -> int:
        """The byte up to which ``spool`` is in the ledger; 0 for one that was never read."""
        wanted = select(spools.c.offset_bytes).where(spools.c.spool == spool)
        with self._database.read() as connection:
            return int(connection.execute(wanted).scalar() or 0)

    def offsets(self) -> dict[str, int]:
        """Every spool's offset, by name."""
        with self._database.read() as connection:
            rows = connection.execute(select(spools).order_by(spools.c.spool)).all()
        return {row.spool: row.offset_bytes for row in rows}

    def forget_spool(self, spool: str) -> None:
        """Drop the offset of a spool file that was deleted, so that its name may be used again."""
        with self._database.write() as connection:
            connection.execute(spools.delete().where(spools.c.spool == spool))

    def post_work(self, entry: str, postings: Sequence[Posting]) -> bool:
        """Post what a lease used, once per ``entry``; False when that entry has postings already."""
        invariant(all(posting.entry == entry for posting in postings), "work is posted under its entry")
        known = select(postings_table.c.entry).where(postings_table.c.entry == entry).limit(1)
        insert = self._database.insert(postings_table).on_conflict_do_nothing()
        rows = _posting_rows(postings)
        with self._database.write() as connection:
            if not rows or connection.execute(known).first() is not None:
                return False
            # The first line decides between two who post the same entry at once: the second one waits for
            # the first one's transaction and then finds the line taken.
            won = connection.execute(insert.returning(postings_table.c.line), rows[:1]).first()
            if won is None:
                return False
            if rows[1:]:
                connection.execute(postings_table.insert(), rows[1:])
            add_usage(self._database, connection, measure((), postings))
        return True

    def settlements(self, requests: Sequence[str]) -> dict[str, Settlement]:
        """The settlements of these requests, by request; one that is not settled is absent."""
        found: dict[str, Settlement] = {}
        with self._database.read() as connection:
            for keys in _chunks(requests, _KEYS_PER_QUERY):
                wanted = select(settlements_table).where(settlements_table.c.request.in_(keys))
                for row in connection.execute(wanted):
                    found[row.request] = settlement_of(row)
        return found

    def keep_prices(self, book: Mapping[str, Price]) -> None:
        """Write down what each price id stands for. One that is known stays as it is."""
        rows = [{"id": name, "body": encode(book[name]).decode()} for name in sorted(book)]
        with self._database.write() as connection:
            connection.execute(self._database.insert(prices).on_conflict_do_nothing(), rows)

    def price(self, name: str) -> Price | None:
        """The price of this id."""
        with self._database.read() as connection:
            body = connection.execute(select(prices.c.body).where(prices.c.id == name)).scalar()
        return decode(body, type=Price) if body is not None else None

    def find(self, name: str) -> Settlement | None:
        """The settlement of a request, by its own id or by what its answer called itself; the newest one."""
        table = settlements_table
        with self._database.read() as connection:
            for column in (table.c.request, table.c.response):
                wanted = select(table).where(column == name).order_by(table.c.at_us.desc()).limit(1)
                row = connection.execute(wanted).first() if name else None
                if row is not None:
                    return settlement_of(row)
        return None

    def served_by(self, release: str, since_us: int = 0) -> list[Served]:
        """Whom a release answered, by tenant, project, key and alias. Reads every request since then."""
        t = settlements_table
        group = (t.c.tenant, t.c.project, t.c.key, t.c.alias)
        counts = (func.count(), func.sum(t.c.output_tokens), func.min(t.c.at_us), func.max(t.c.at_us))
        wanted = (
            select(*group, *counts)
            .where(t.c.release == release, t.c.at_us >= since_us, t.c.outcome != Outcome.REFUSED.value)
            .group_by(*group)
            .order_by(*group)
        )
        with self._database.read() as connection:
            rows = connection.execute(wanted).all()
        return [Served(*row) for row in rows]

    def give_feedback(self, settlement: Settlement, good: bool, at_us: int) -> bool:
        """Write down what a client said of an answer; False when something was said of it before."""
        row = {
            "request": settlement.request,
            "at_us": at_us,
            "tenant": settlement.tenant,
            "project": settlement.project,
            "alias": settlement.alias,
            "release": settlement.release,
            "good": int(good),
        }
        insert = self._database.insert(feedback).on_conflict_do_nothing().returning(feedback.c.request)
        with self._database.write() as connection:
            return connection.execute(insert, row).first() is not None

    def feedback(self, request: str) -> bool | None:
        """What was said of an answer: good, not good, or nothing."""
        wanted = select(feedback.c.good).where(feedback.c.request == request)
        with self._database.read() as connection:
            found = connection.execute(wanted).scalar()
        return None if found is None else bool(found)

    def opinions(self, aliases: Sequence[str], since_us: int) -> list[tuple[str, int, int]]:
        """What was said of answers under these aliases after ``since_us``: release, good, not good."""
        t = feedback
        counts = (func.sum(t.c.good), func.count())
        wanted = (
            select(t.c.release, *counts)
            .where(t.c.at_us > since_us, t.c.alias.in_(aliases))
            .group_by(t.c.release)
            .order_by(t.c.release)
        )
        with self._database.read() as connection:
            rows = connection.execute(wanted).all()
        return [(str(release), int(good), int(count) - int(good)) for release, good, count in rows]

    def postings(self, entry: str) -> list[Posting]:
        """The postings of one request or piece of work, by line."""
        wanted = select(postings_table).where(postings_table.c.entry == entry)
        with self._database.read() as connection:
            rows = connection.execute(wanted.order_by(postings_table.c.line)).all()
        return [Posting(**row._mapping) for row in rows]

    def usage(
        self, by: Sequence[str], since_us: int = 0, until_us: int = 0, tenant: str = ""
    ) -> list[UsageRow]:
        """What was used, grouped by any of tenant, project, key, model and day.

        ``until_us`` is exclusive and 0 is open. Raises ``UsageError`` for another grouping.
        """
        with self._database.read() as connection:
            return usage_rows(connection, by, since_us, until_us, tenant)

    def forwarded(self, since_us: int = 0, until_us: int = 0) -> list[Forwarded]:
        """What peers answered for us, by peer."""
        with self._database.read() as connection:
            return forwarded_rows(connection, since_us, until_us)

    def verify(
        self, spool_dir: Path, count_engines: CountEngines = tuple, *, in_flight_us: int = IN_FLIGHT_US
    ) -> LedgerReport:
        """Compare the ledger with itself, with what is still spooled and with what engines counted."""
        with self._database.read() as connection:
            return verify_ledger(connection, spool_dir, in_flight_us, count_engines)

    def _move(self, connection: Connection, spool: str, offset: int) -> None:
        insert = self._database.insert(spools)
        new, old = insert.excluded.offset_bytes, spools.c.offset_bytes
        farther = case((new > old, new), else_=old)
        connection.execute(
            insert.on_conflict_do_update(index_elements=[spools.c.spool], set_={"offset_bytes": farther}),
            {"spool": spool, "offset_bytes": offset},
        )


def settlement_of(row: Any) -> Settlement:
    """A row of the settlements table as a ``Settlement``."""
    values = dict(row._mapping)
    values["outcome"] = Outcome(values["outcome"])
    return Settlement(**values)


def _settlement_row(settlement: Settlement) -> dict[str, Any]:
    row = {name: getattr(settlement, name) for name in _SETTLEMENT_FIELDS}
    row["outcome"] = settlement.outcome.value
    # These hold words of the client and of an engine; the rest is ours.
    row["alias"] = storable(settlement.alias)
    row["reason"] = storable(settlement.reason)
    row["response"] = storable(settlement.response)
    return row


def _posting_rows(batch: Sequence[Posting]) -> list[dict[str, Any]]:
    return [{name: getattr(posting, name) for name in _POSTING_FIELDS} for posting in batch]


def _chunks(items: Sequence[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
