"""Opening: migrations, refusals before anything is touched, and errors that say what to do."""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import event, text

from tokenmill.domain.errors import MissingExtraError, StoreError, UsageError
from tokenmill.domain.events import NodeLost
from tokenmill.store import Store, open_store
from tokenmill.store import database as database_module
from tokenmill.store.database import Database
from tokenmill.store.migrate import alembic_config, head_revision
from tokenmill.store.schema import metadata


def test_migrations_build_the_tables_of_the_schema(store: Store) -> None:
    with store.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_opening_again_keeps_what_is_there(url: str) -> None:
    first = open_store(url)
    epoch = first.leader.acquire("a", 10, 0)
    assert first.journal.append([NodeLost(1, "n1")], epoch) == 1
    first.close()
    second = open_store(url)
    assert second.journal.read() == [(1, NodeLost(1, "n1"))]
    second.close()


def test_a_store_of_the_first_revision_is_brought_up_to_date(url: str) -> None:
    """One that a factory has written to before there were decisions beside events."""
    database = Database(url)
    with database.write() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        body = '{"at_us":1,"node":"n1"}'
        old = {"seq": 1, "epoch": 1, "at_us": 1, "kind": "NodeLost", "body": body}
        columns = ", ".join(old)
        connection.execute(
            text(f"INSERT INTO journal ({columns}) VALUES (:seq, :epoch, :at_us, :kind, :body)"), old
        )
    database.close()
    store = open_store(url)
    assert store.journal.read() == [(1, NodeLost(1, "n1"))]
    assert store.journal.decisions(0, 9) == {}
    store.close()


def test_a_newer_revision_is_refused(url: str) -> None:
    store = open_store(url)
    with store.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    with pytest.raises(StoreError, match="9999") as caught:
        open_store(url)
    assert "Upgrade Tokenmill" in str(caught.value)
    assert head_revision() in caught.value.problem.expected


def test_a_newer_database_file_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE alembic_version (version_num TEXT)")
    raw.execute("INSERT INTO alembic_version VALUES ('9999')")
    raw.commit()
    raw.close()
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(StoreError, match="does not know"):
        open_store(f"sqlite:///{path}")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["newer.db"]


def test_a_database_of_someone_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE customers (id INTEGER)")
    raw.close()
    with pytest.raises(StoreError, match="customers"):
        open_store(f"sqlite:///{path}")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("just some notes " * 100)
    with pytest.raises(StoreError, match="not a SQLite database"):
        open_store(f"sqlite:///{path}")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        open_store(f"sqlite:///{tmp_path}/nowhere/tokenmill.db")


@pytest.mark.parametrize("bad", ["mysql://host/db", "sqlite://", "sqlite:///:memory:", "no url"])
def test_urls_that_make_no_sense(bad: str) -> None:
    with pytest.raises(UsageError):
        open_store(bad)


def test_a_server_that_does_not_answer() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match="does not answer") as caught:
        open_store("postgresql://someone:secret@127.0.0.1:1/db", wait_s=2)
    assert "secret" not in str(caught.value)


def test_postgres_without_psycopg_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"tokenmill\[postgres\]"):
        open_store("postgresql://host/db")


def test_importing_the_store_imports_no_driver_and_artifacts_no_database() -> None:
    def loaded(statement: str) -> set[str]:
        code = f"{statement}; import sys; print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    assert "psycopg" not in loaded("from tokenmill.store import open_store")
    assert "sqlalchemy" not in loaded("from tokenmill.store.artifacts import Artifacts")


def test_sqlite_settings(sqlite_store: Store) -> None:
    with sqlite_store.database.read() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert found == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1, "busy_timeout": 10_000}


def test_a_full_disk_is_explained_and_loses_nothing(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/small.db")
    epoch = store.leader.acquire("a", 10, 0)
    store.journal.append([NodeLost(1, "n1")], epoch)
    store.close()
    small = open_store(f"sqlite:///{tmp_path}/small.db")

    @event.listens_for(small.database.engine, "checkout")
    def limit(connection: sqlite3.Connection, *_: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages + 2}")

    with pytest.raises(StoreError, match="disk is full") as caught:
        small.journal.append([NodeLost(2, "n" * 100_000)], epoch)
    assert "Free space" in caught.value.problem.fix
    assert [seq for seq, _ in small.journal.read()] == [1]
    assert small.journal.last_seq() == 1
    small.close()


def test_a_locked_database_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "tokenmill.db"
    store = open_store(f"sqlite:///{path}", wait_s=0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        store.leader.acquire("a", 10, 0)
    other.execute("ROLLBACK")
    other.close()
    assert store.leader.acquire("a", 10, 0) == 1
    store.close()


def test_a_read_only_database_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "tokenmill.db"
    open_store(f"sqlite:///{path}").close()
    store = open_store(f"sqlite:///file:{path}?mode=ro&uri=true")
    with pytest.raises(StoreError, match="read-only"):
        store.leader.acquire("a", 10, 0)
    store.close()


def test_a_path_that_cannot_be_opened_is_explained(tmp_path: Path) -> None:
    (tmp_path / "tokenmill.db").mkdir()
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        open_store(f"sqlite:///{tmp_path}/tokenmill.db")
    assert "access" in caught.value.problem.fix
