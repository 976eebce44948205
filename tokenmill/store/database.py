"""One database, SQLite or PostgreSQL: connections, transactions, and its errors in our words.

SQLite: WAL, so that readers and the one writer do not wait for each other; ``synchronous=NORMAL``, which
never loses a committed transaction when a process dies and may lose the last ones when the power does
(https://www.sqlite.org/pragma.html#pragma_synchronous). PostgreSQL goes through psycopg 3, which is
imported only when such a URL is opened.
"""

from __future__ import annotations

import importlib.util
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tokenmill.domain.errors import MissingExtraError, StoreError, UsageError
from tokenmill.store.faults import explain

# UPDATE ... RETURNING and INSERT ... RETURNING came with 3.35.
_OLDEST_SQLITE = (3, 35, 0)
_WRITE = "tokenmill_write"


class Database:
    """A pool of connections to one database. ``where`` names it without its password."""

    def __init__(self, url: str, *, wait_s: float = 10.0) -> None:
        """Prepare to connect; nothing is opened yet.

        ``wait_s`` bounds how long a transaction waits for another one's lock; PostgreSQL ends one whose
        process stands still within it for six times as long. Raises ``UsageError`` for a URL that makes no
        sense and ``MissingExtraError`` when PostgreSQL is named and psycopg is absent.
        """
        parsed = parse_url(url)
        self.where = parsed.render_as_string(hide_password=True)
        self.engine = _sqlite(parsed, wait_s) if _is_sqlite(parsed) else _postgresql(parsed, wait_s)
        # SQLite has one writer. Threads of this process queue here instead of polling the file's lock.
        self._writer = threading.Lock() if _is_sqlite(parsed) else nullcontext()
        self._upsert = sqlite.insert if _is_sqlite(parsed) else postgresql.insert

    def insert(self, table: Table) -> Any:
        """An INSERT of this dialect, which has ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""
        return self._upsert(table)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one moment of the database. Raises ``StoreError``."""
        with self._explained(), self.engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that commits when the block ends, and rolls back when it raises ``StoreError``."""
        with self._explained(), self._writer, self.engine.connect() as connection:
            connection.execution_options(**{_WRITE: True})
            with connection.begin():
                yield connection

    def set_wal(self) -> None:
        """Turn on SQLite's write-ahead log; it stays on in the file. Nothing for PostgreSQL."""
        if self.engine.dialect.name != "sqlite":
            return
        with self._explained():
            raw = self.engine.raw_connection()
            try:
                raw.cursor().execute("PRAGMA journal_mode=WAL")
            finally:
                raw.close()

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, PoolTimeoutError, sqlite3.Error) as error:
            raise explain(error, self.where) from error


def parse_url(url: str) -> URL:
    """Read a database URL; ``postgresql://`` and ``postgres://`` become ``postgresql+psycopg://``."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise UsageError(
            "the database URL cannot be read",
            expected="sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE",
            fix="Correct TOKENMILL_DATABASE_URL.",
        ) from error
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise UsageError(
            f"databases of kind {parsed.drivername!r} are not supported",
            expected="sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE",
            fix="Correct TOKENMILL_DATABASE_URL.",
        )
    if _is_sqlite(parsed) and parsed.database in (None, "", ":memory:"):
        raise UsageError(
            "a database in memory would be lost with the process",
            expected="sqlite:///PATH",
            fix="Name a file in TOKENMILL_DATABASE_URL.",
        )
    return parsed


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite URL; ``None`` for PostgreSQL and for SQLite's own ``file:`` URIs."""
    parsed = parse_url(url)
    if not _is_sqlite(parsed) or not parsed.database or parsed.database.startswith("file:"):
        return None
    return Path(parsed.database)


def _is_sqlite(url: URL) -> bool:
    return url.drivername == "sqlite"


def _sqlite(url: URL, wait_s: float) -> Engine:
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise StoreError(
            f"Python's SQLite is {sqlite3.sqlite_version}",
            expected="3.35 or newer",
            fix="Use a newer Python, or set TOKENMILL_DATABASE_URL to a PostgreSQL database.",
        )
    engine = create_engine(url, connect_args={"timeout": wait_s})

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        # SQLAlchemy sends BEGIN itself (below); the driver's own rules would leave reads and DDL outside.
        connection.isolation_level = None
        for pragma in ("synchronous=NORMAL", "foreign_keys=ON", f"busy_timeout={int(wait_s * 1000)}"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        # A transaction that will write takes the lock first. One that read first could not wait for it.
        write = connection.get_execution_options().get(_WRITE, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _postgresql(url: URL, wait_s: float) -> Engine:
    if importlib.util.find_spec("psycopg") is None:
        raise MissingExtraError(
            "PostgreSQL needs psycopg, which is not installed", fix="pip install 'tokenmill[postgres]'"
        )
    wait_ms = int(wait_s * 1000)
    options = f"-c lock_timeout={wait_ms} -c idle_in_transaction_session_timeout={6 * wait_ms}"
    arguments = {"connect_timeout": max(2, int(wait_s)), "options": options, "application_name": "tokenmill"}
    return create_engine(url, pool_pre_ping=True, pool_timeout=wait_s, connect_args=arguments)
