"""Opens a store: checks the database's revision, migrates it, and hands out its parts."""

from __future__ import annotations

from tokenmill.domain.errors import StoreError
from tokenmill.store.database import Database, sqlite_path
from tokenmill.store.journal import Journal
from tokenmill.store.leader import Leader
from tokenmill.store.ledger import Ledger
from tokenmill.store.migrate import check_revision, head_revision, upgrade
from tokenmill.store.registry import Registry
from tokenmill.store.tenancy import BatchRecords, FileRecords


class Store:
    """An open store. Its methods block: call them in a thread from async code. Threads may share it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.leader = Leader(database)
        self.journal = Journal(database)
        self.ledger = Ledger(database)
        self.registry = Registry(database)
        self.files = FileRecords(database)
        self.batches = BatchRecords(database)

    @property
    def where(self) -> str:
        """The database's URL without its password."""
        return self.database.where

    def close(self) -> None:
        """Close the connections; safe to call twice."""
        self.database.close()


def open_store(url: str, *, wait_s: float = 10.0) -> Store:
    """Open the database at ``url``, bringing it to the current revision first.

    ``wait_s`` bounds how long a transaction waits for a lock. Raises ``StoreError`` when it cannot be
    opened, holds something else, or was written by a newer Tokenmill (before anything is changed).
    """
    path = sqlite_path(url)
    if path is not None and not path.parent.is_dir():
        raise StoreError(
            f"the folder {path.parent} does not exist", fix="Create it, or correct TOKENMILL_DATABASE_URL."
        )
    database = Database(url, wait_s=wait_s)
    try:
        with database.read() as connection:
            revision = check_revision(connection, database.where)
        if revision != head_revision():
            database.set_wal()
            with database.write() as connection:
                upgrade(connection)
        else:
            database.set_wal()
    except BaseException:
        database.close()
        raise
    return Store(database)
