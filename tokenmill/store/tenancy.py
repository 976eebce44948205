"""What tenants keep with us, as records: files, batches, and the ended lines of batches that still run.

Every read of a file or batch names its owner, so that a tenant's question cannot reach another's rows. The
bytes of files are artifacts; nothing here opens one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Select, and_, delete, func, or_, select, update

from tokenmill.domain.codec import from_plain, to_plain
from tokenmill.domain.errors import NotFoundError
from tokenmill.domain.tenancy import Batch, BatchLine, Owner, Purpose, TenantFile
from tokenmill.store.database import Database
from tokenmill.store.schema import batch_lines, batches, files


class FileRecords:
    """The files of all tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, file: TenantFile) -> None:
        """Write a new file down."""
        row = {
            "id": file.id,
            "tenant": file.owner.tenant,
            "project": file.owner.project,
            "purpose": file.purpose.value,
            "name": file.name,
            "size_bytes": file.size_bytes,
            "digest": file.digest,
            "created_us": file.created_us,
            "expires_us": file.expires_us,
        }
        with self._database.write() as connection:
            connection.execute(files.insert(), row)

    def get(self, owner: Owner, id: str) -> TenantFile | None:  # noqa: A002 (OpenAI's word)
        """One file of this owner."""
        wanted = select(files).where(_owned(files, owner), files.c.id == id)
        with self._database.read() as connection:
            row = connection.execute(wanted).first()
        return _file(row) if row is not None else None

    def page(
        self, owner: Owner, *, purpose: str = "", after: str = "", limit: int, newest_first: bool = True
    ) -> list[TenantFile]:
        """At most ``limit`` files behind the one named ``after``. Raises ``NotFoundError`` for that name."""
        wanted = select(files).where(_owned(files, owner))
        if purpose:
            wanted = wanted.where(files.c.purpose == purpose)
        with self._database.read() as connection:
            wanted = _paged(connection, files, wanted, owner, after, limit, newest_first=newest_first)
            return [_file(row) for row in connection.execute(wanted)]

    def delete(self, owner: Owner, id: str) -> bool:  # noqa: A002
        """Forget one file. False when there is none."""
        with self._database.write() as connection:
            found = connection.execute(delete(files).where(_owned(files, owner), files.c.id == id))
        return found.rowcount > 0

    def expired(self, now_us: int, limit: int = 1000) -> list[TenantFile]:
        """Files of any owner whose time is over."""
        wanted = select(files).where(files.c.expires_us > 0, files.c.expires_us <= now_us)
        with self._database.read() as connection:
            rows = connection.execute(wanted.order_by(files.c.expires_us, files.c.id).limit(limit))
            return [_file(row) for row in rows]

    def total(self, tenant: str) -> tuple[int, int]:
        """How many files a tenant has, over all projects, and their bytes."""
        wanted = select(func.count(), func.coalesce(func.sum(files.c.size_bytes), 0))
        with self._database.read() as connection:
            count, size = connection.execute(wanted.where(files.c.tenant == tenant)).one()
        return int(count), int(size)

    def uses(self, tenant: str, digest: str) -> int:
        """How many files of a tenant have these bytes."""
        wanted = select(func.count()).where(files.c.tenant == tenant, files.c.digest == digest)
        with self._database.read() as connection:
            return int(connection.execute(wanted).scalar_one())


class BatchRecords:
    """The batches of all tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, batch: Batch) -> None:
        """Write a batch down, new or changed."""
        row = {
            "id": batch.id,
            "tenant": batch.owner.tenant,
            "project": batch.owner.project,
            "created_us": batch.created_us,
            "ended": int(batch.status.ended),
            "body": msgspec.json.encode(to_plain(batch)).decode(),
        }
        insert = self._database.insert(batches).values(row)
        upsert = insert.on_conflict_do_update(
            index_elements=["id"], set_={"ended": row["ended"], "body": row["body"]}
        )
        with self._database.write() as connection:
            connection.execute(upsert)

    def get(self, owner: Owner, id: str) -> Batch | None:  # noqa: A002
        """One batch of this owner."""
        wanted = select(batches.c.body).where(_owned(batches, owner), batches.c.id == id)
        with self._database.read() as connection:
            body = connection.execute(wanted).scalar_one_or_none()
        return _batch(body) if body is not None else None

    def page(self, owner: Owner, *, after: str = "", limit: int) -> list[Batch]:
        """At most ``limit`` batches, newest first, behind ``after``, which raises ``NotFoundError``."""
        wanted = select(batches.c.body).where(_owned(batches, owner))
        with self._database.read() as connection:
            wanted = _paged(connection, batches, wanted, owner, after, limit, newest_first=True)
            return [_batch(body) for body in connection.execute(wanted).scalars()]

    def open(self) -> list[Batch]:
        """Every batch that has not ended, oldest first."""
        wanted = select(batches.c.body).where(batches.c.ended == 0)
        with self._database.read() as connection:
            rows = connection.execute(wanted.order_by(batches.c.created_us, batches.c.id)).scalars().all()
        return [_batch(body) for body in rows]

    def add_lines(self, batch: str, lines: Sequence[BatchLine]) -> None:
        """Keep ended lines. A line that is kept already stays as it is."""
        rows = [
            {"batch": batch, "number": line.number, "ok": int(line.ok), "body": line.body} for line in lines
        ]
        insert = self._database.insert(batch_lines).on_conflict_do_nothing()
        with self._database.write() as connection:
            connection.execute(insert, rows)

    def done(self, batch: str) -> dict[int, bool]:
        """Numbers of the lines that ended, and whether each succeeded."""
        wanted = select(batch_lines.c.number, batch_lines.c.ok).where(batch_lines.c.batch == batch)
        with self._database.read() as connection:
            return {number: bool(ok) for number, ok in connection.execute(wanted)}

    def lines(self, batch: str, *, ok: bool, after: int, limit: int = 500) -> list[BatchLine]:
        """Ended lines behind number ``after``, in order."""
        wanted = (
            select(batch_lines)
            .where(batch_lines.c.batch == batch, batch_lines.c.ok == int(ok), batch_lines.c.number > after)
            .order_by(batch_lines.c.number)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [BatchLine(row.number, bool(row.ok), row.body) for row in connection.execute(wanted)]

    def finish(self, batch: Batch) -> None:
        """Write the end of a batch and drop its lines, which are in its files now, at once."""
        body = msgspec.json.encode(to_plain(batch)).decode()
        with self._database.write() as connection:
            connection.execute(
                update(batches)
                .where(batches.c.id == batch.id)
                .values(ended=int(batch.status.ended), body=body)
            )
            connection.execute(delete(batch_lines).where(batch_lines.c.batch == batch.id))


def _owned(table: Any, owner: Owner) -> ColumnElement[bool]:
    return and_(table.c.tenant == owner.tenant, table.c.project == owner.project)


def _paged(
    connection: Any,
    table: Any,
    wanted: Select[Any],
    owner: Owner,
    after: str,
    limit: int,
    *,
    newest_first: bool,
) -> Select[Any]:
    """Order by creation and begin behind ``after``."""
    created, name = table.c.created_us, table.c.id
    if after:
        place = select(created).where(_owned(table, owner), name == after)
        at_us = connection.execute(place).scalar_one_or_none()
        if at_us is None:
            raise NotFoundError(f"there is no {after!r} to list after", fix="Use the last_id of a page.")
        if newest_first:
            wanted = wanted.where(or_(created < at_us, and_(created == at_us, name < after)))
        else:
            wanted = wanted.where(or_(created > at_us, and_(created == at_us, name > after)))
    order: Iterable[Any] = (created.desc(), name.desc()) if newest_first else (created, name)
    return wanted.order_by(*order).limit(limit)


def _file(row: Any) -> TenantFile:
    return TenantFile(
        row.id,
        Owner(row.tenant, row.project),
        Purpose(row.purpose),
        row.name,
        row.size_bytes,
        row.digest,
        row.created_us,
        row.expires_us,
    )


def _batch(body: str) -> Batch:
    return from_plain(msgspec.json.decode(body), Batch)
