"""The journal: every event that changed the factory, numbered without gaps, and snapshots to start from.

It does not interpret events. Only the current leader appends; anyone may read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import delete, func, select, update

from tokenmill.domain.codec import decode_event, encode_event
from tokenmill.domain.errors import StoreError, invariant
from tokenmill.domain.events import Event
from tokenmill.store.bulk import insert_rows
from tokenmill.store.database import Database
from tokenmill.store.leader import LeaseView, not_leader
from tokenmill.store.schema import journal, leader, snapshots

KEPT_SNAPSHOTS = 2
PAGE = 10_000


class Journal:
    """The journal of one store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, events: Sequence[Event], epoch: int, decided: Sequence[Sequence[str]] = ()) -> int:
        """Write all events in one transaction and return the last one's number. ``decided`` are sentences
        beside each event, for people.

        Raises ``NotLeaderError``, and writes nothing, when ``epoch`` is not the current one.
        """
        encoded = [(event.at_us, *encode_event(event)) for event in events]
        beside = [json.dumps(said) if said else "" for said in decided] or [""] * len(encoded)
        take = (
            update(leader)
            .where(leader.c.id == 1, leader.c.epoch == epoch)
            .values(last_seq=leader.c.last_seq + len(encoded))
            .returning(leader.c.last_seq)
        )
        with self._database.write() as connection:
            last = connection.execute(take).scalar()
            if last is None:
                row = connection.execute(select(leader)).one()
                raise not_leader(
                    epoch, LeaseView(row.epoch, row.holder, row.expires_us), self._database.where
                )
            first = last - len(encoded) + 1
            rows = [
                dict(seq=seq, epoch=epoch, at_us=at_us, kind=kind, body=body.decode(), decided=said)  # noqa: C408
                for seq, ((at_us, kind, body), said) in enumerate(zip(encoded, beside, strict=True), first)
            ]
            insert_rows(connection, journal, rows)
        return int(last)

    def read(self, after: int = 0, limit: int = PAGE) -> list[tuple[int, Event]]:
        """Events with a number above ``after``, oldest first. Those that were compacted away are not there.

        Raises ``DataError`` for an event that this version cannot read.
        """
        wanted = select(journal.c.seq, journal.c.kind, journal.c.body).where(journal.c.seq > after)
        with self._database.read() as connection:
            rows = connection.execute(wanted.order_by(journal.c.seq).limit(limit)).all()
        return [(row.seq, decode_event(row.kind, row.body)) for row in rows]

    def tail(self, limit: int = 200) -> list[tuple[int, Event]]:
        """The last ``limit`` events, oldest first."""
        wanted = select(journal.c.seq, journal.c.kind, journal.c.body).order_by(journal.c.seq.desc())
        with self._database.read() as connection:
            rows = connection.execute(wanted.limit(limit)).all()
        return [(row.seq, decode_event(row.kind, row.body)) for row in reversed(rows)]

    def decisions(self, first: int, last: int) -> dict[int, tuple[str, ...]]:
        """By number, what was decided at the events from ``first`` to ``last``, where anything was."""
        wanted = select(journal.c.seq, journal.c.decided).where(journal.c.seq.between(first, last))
        with self._database.read() as connection:
            rows = connection.execute(wanted.where(journal.c.decided != "")).all()
        return {row.seq: tuple(json.loads(row.decided)) for row in rows}

    def replay(self, after: int = 0) -> Iterator[tuple[int, Event]]:
        """Every event above ``after`` up to the last one, in pages.

        Raises ``StoreError`` when one is missing: a state that is built around a hole would be wrong.
        """
        last = self.last_seq()
        while after < last:
            page = self.read(after, PAGE)
            for seq, event in page:
                if seq != after + 1:
                    break
                yield seq, event
                after = seq
            if not page or page[-1][0] != after:
                raise StoreError(
                    f"the journal has no event {after + 1}, though it goes on to {last}",
                    expected="every event since the snapshot that one starts from",
                    fix="Restore the database from a copy (tokenmill store copy).",
                    where=self._database.where,
                )

    def last_seq(self) -> int:
        """The number of the newest event; 0 before the first."""
        with self._database.read() as connection:
            return int(connection.execute(select(leader.c.last_seq)).scalar_one())

    def save_snapshot(self, seq: int, body: dict[str, Any]) -> None:
        """Keep the state as it is after event ``seq``, and drop all but the newest two snapshots."""
        text = json.dumps(body, separators=(",", ":"), ensure_ascii=True)
        row = {"seq": seq, "digest": _digest(text), "body": text}
        kept = select(snapshots.c.seq).order_by(snapshots.c.seq.desc()).limit(KEPT_SNAPSHOTS)
        with self._database.write() as connection:
            connection.execute(self._database.insert(snapshots).on_conflict_do_nothing(), row)
            keep = connection.execute(kept).scalars().all()
            connection.execute(delete(snapshots).where(snapshots.c.seq.not_in(keep)))

    def latest_snapshot(self) -> tuple[int, dict[str, Any]] | None:
        """The newest snapshot whose bytes are whole, or ``None`` when there is none yet.

        Raises ``StoreError`` when snapshots exist and none of them can be read.
        """
        with self._database.read() as connection:
            rows = connection.execute(select(snapshots).order_by(snapshots.c.seq.desc())).all()
        for row in rows:
            if _digest(row.body) == row.digest:
                body: dict[str, Any] = json.loads(row.body)
                return row.seq, body
        if rows:
            raise StoreError(
                f"none of {len(rows)} snapshots is whole",
                fix="Restore the database from a copy (tokenmill store copy).",
                where=self._database.where,
            )
        return None

    def compact(self, keep_events: int = 100_000) -> int:
        """Delete events that no kept snapshot needs, except the newest ``keep_events``; return how many.

        Only what the *older* of the two kept snapshots already covers may go, so that the state can be
        rebuilt even when the newer one is damaged. With fewer than two snapshots nothing is deleted.
        """
        invariant(keep_events >= 0, "keep_events is a count")
        with self._database.write() as connection:
            held = connection.execute(select(func.count(), func.min(snapshots.c.seq))).one()
            if held[0] < KEPT_SNAPSHOTS:
                return 0
            last = connection.execute(select(leader.c.last_seq)).scalar_one()
            horizon = min(held[1], last - keep_events)
            return connection.execute(delete(journal).where(journal.c.seq <= horizon)).rowcount


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
