"""Copies a whole store into an empty one: SQLite to PostgreSQL when a factory grows, or back, or a backup.

Everything arrives or nothing does: the destination is written in one transaction, which commits only when
every table there has the rows and the content digest of its source.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, delete, func, select

from tokenmill.domain.errors import ConflictError, NotFoundError, StoreError
from tokenmill.store.bulk import insert_rows
from tokenmill.store.database import Database, sqlite_path
from tokenmill.store.migrate import check_revision, head_revision
from tokenmill.store.opening import open_store
from tokenmill.store.schema import leader, metadata

BATCH = 2_000

# table, rows copied so far, rows in all
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class CopiedTable:
    name: str
    rows: int
    digest: str  # sha256 over its rows in the order of the primary key


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What was copied. Both stores had these rows and digests when the copy committed."""

    revision: str
    tables: tuple[CopiedTable, ...]


def copy_store(
    source_url: str, destination_url: str, progress: Progress | None = None, *, allow_live: bool = False
) -> CopyReport:
    """Copy every table and compare both sides before committing.

    Raises ``NotFoundError`` without a source, ``ConflictError`` when the source is of another revision,
    when a controller leads it (unless ``allow_live``: what it writes later is not in the copy) or when the
    destination is not empty, and ``StoreError`` when the rows that arrived are not those that were sent.
    """
    tell = progress or (lambda _table, _done, _total: None)
    path = sqlite_path(source_url)
    if path is not None and not path.is_file():
        raise NotFoundError(f"there is no database {path}", fix="Correct the source URL.")
    source = Database(source_url)
    try:
        with source.read() as reader:
            revision = _check_source(reader, source.where, allow_live=allow_live)
            store = open_store(destination_url)
            try:
                with store.database.write() as writer:
                    _check_empty(writer, store.where)
                    writer.execute(delete(leader))
                    tables = tuple(_copy(reader, writer, table, tell) for table in metadata.sorted_tables)
            finally:
                store.close()
    finally:
        source.close()
    return CopyReport(revision, tables)


def table_digest(connection: Connection, table: Table) -> CopiedTable:
    """Rows and content digest of a table; equal for equal contents on either database."""
    digest, rows = hashlib.sha256(), 0
    for batch in _batches(connection, table):
        for row in batch:
            digest.update(_canonical(row))
        rows += len(batch)
    return CopiedTable(table.name, rows, digest.hexdigest())


def _check_source(reader: Connection, where: str, *, allow_live: bool) -> str:
    revision = check_revision(reader, where)
    if revision != head_revision():
        raise ConflictError(
            f"the source is at revision {revision or 'none'!r}",
            expected=f"revision {head_revision()}",
            fix="Start the factory once with this version, which brings its store up to date.",
            where=where,
        )
    lease = reader.execute(select(leader)).one()
    if not allow_live and lease.holder and lease.expires_us > time.time_ns() // 1000:
        raise ConflictError(
            f"the controller {lease.holder!r} is using the source",
            expected="a factory that is down, so that nothing is written after the copy",
            fix="Run tokenmill down first.",
            where=where,
        )
    return revision


def _check_empty(writer: Connection, where: str) -> None:
    for table in metadata.sorted_tables:
        wanted = select(func.count()).select_from(table)
        if table is leader:
            wanted = wanted.where(leader.c.epoch > 0)
        if rows := writer.execute(wanted).scalar_one():
            raise ConflictError(
                f"the destination is in use: {table.name} has {rows} row(s)",
                expected="an empty database",
                fix="Name a new file, or create a new database.",
                where=where,
            )


def _copy(reader: Connection, writer: Connection, table: Table, tell: Progress) -> CopiedTable:
    total = reader.execute(select(func.count()).select_from(table)).scalar_one()
    digest, done = hashlib.sha256(), 0
    tell(table.name, 0, total)
    for batch in _batches(reader, table):
        for row in batch:
            digest.update(_canonical(row))
        insert_rows(writer, table, [row._mapping for row in batch])
        done += len(batch)
        tell(table.name, done, total)
    sent = CopiedTable(table.name, done, digest.hexdigest())
    arrived = table_digest(writer, table)
    if arrived != sent or done != total:
        raise StoreError(
            f"the copy of {table.name} is not the original: {arrived.rows} of {total} rows, "
            f"digest {arrived.digest[:12]} instead of {sent.digest[:12]}",
            fix="Nothing was kept. Try again; if it happens again, check the disk and report a bug.",
        )
    return sent


def _batches(connection: Connection, table: Table) -> Any:
    """The rows in the order of the primary key, a batch at a time, never all in memory."""
    ordered = select(table).order_by(*table.primary_key.columns)
    return connection.execute(ordered, execution_options={"yield_per": BATCH}).partitions()


def _canonical(row: Any) -> bytes:
    return json.dumps(tuple(row), ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
