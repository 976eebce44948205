"""The registry of releases: written once each, never changed, kept longer than the journal."""

from __future__ import annotations

import msgspec
from sqlalchemy import select

from tokenmill.domain.codec import from_plain, to_plain
from tokenmill.domain.errors import ConflictError
from tokenmill.domain.work import Recall, Release
from tokenmill.store.database import Database
from tokenmill.store.schema import recalls, releases


class Registry:
    """The releases of one store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record_release(self, release: Release) -> None:
        """Write a release down; the same one again changes nothing.

        Raises ``ConflictError`` when another release has its id: releases are immutable.
        """
        body = msgspec.json.encode(to_plain(release)).decode()
        row = {
            "id": release.id,
            "model": release.model,
            "line": release.line,
            "created_us": release.created_us,
            "body": body,
        }
        insert = self._database.insert(releases).on_conflict_do_nothing()
        with self._database.write() as connection:
            connection.execute(insert, row)
            kept = connection.execute(select(releases.c.body).where(releases.c.id == release.id)).scalar_one()
        if _decode(kept) != release:
            raise ConflictError(
                f"release {release.id!r} is recorded with other contents",
                expected="a new id for a new release",
                fix="This is a mistake of Tokenmill, or two factories share one database.",
                where=self._database.where,
            )

    def record_recall(self, recall: Recall) -> None:
        """Write a recall down; the first one of a release is kept."""
        row = {"release": recall.release, "at_us": recall.at_us, "by": recall.by, "reason": recall.reason}
        insert = self._database.insert(recalls).on_conflict_do_nothing()
        with self._database.write() as connection:
            connection.execute(insert, row)

    def recalls(self) -> list[Recall]:
        """All recalls, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(recalls).order_by(recalls.c.at_us, recalls.c.release)).all()
        return [Recall(row.release, row.at_us, row.by, row.reason) for row in rows]

    def release(self, name: str) -> Release | None:
        """One release, or nothing."""
        wanted = select(releases.c.body).where(releases.c.id == name)
        with self._database.read() as connection:
            body = connection.execute(wanted).scalar()
        return _decode(body) if body is not None else None

    def releases(self) -> list[Release]:
        """All releases, oldest first."""
        order = (releases.c.created_us, releases.c.id)
        with self._database.read() as connection:
            rows = connection.execute(select(releases.c.body).order_by(*order)).scalars().all()
        return [_decode(body) for body in rows]


def _decode(body: str) -> Release:
    return from_plain(msgspec.json.decode(body), Release)
