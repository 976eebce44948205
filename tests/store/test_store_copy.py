"""Copying a store: everything arrives, or nothing does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from tokenmill.domain.errors import ConflictError, NotFoundError, StoreError
from tokenmill.domain.events import NodeLost
from tokenmill.domain.ledger import Posting, Settlement
from tokenmill.domain.work import Release
from tokenmill.store import Store, copy, copy_store, open_store
from tokenmill.store.schema import metadata

Make = Callable[..., Settlement]
Price = Callable[..., list[Posting]]


@pytest.fixture
def full(tmp_path: Path, settlement: Make, postings_of: Price) -> str:
    """A store with something in every table, and more settlements than a batch holds."""
    url = f"sqlite:///{tmp_path}/full.db"
    store = open_store(url)
    epoch = store.leader.acquire("a", 10, 0)
    store.journal.append([NodeLost(n, f"n{n}", "ü 漢 \x00 '") for n in range(50)], epoch)
    store.journal.save_snapshot(40, {"a": [1, "ü"]})
    batch = [settlement(f"req-{n:05}-{'zZaA_'[n % 5]}", reason="ünïcode" * (n % 3)) for n in range(2_100)]
    store.ledger.settle(batch, [p for item in batch for p in postings_of(item)], "gateway-0.jsonl", 77)
    store.registry.record_release(Release("rel-1", "chat", "sha256:a", "", "sha256:b", "import"))
    store.close()
    return url


def digests(store: Store) -> list[copy.CopiedTable]:
    with store.database.read() as connection:
        return [copy.table_digest(connection, table) for table in metadata.sorted_tables]


def test_a_copy_is_equal(full: str, url: str) -> None:
    told: list[tuple[str, int, int]] = []
    report = copy_store(full, url, lambda *step: told.append(step))
    source, destination = open_store(full), open_store(url)
    assert digests(destination) == digests(source) == list(report.tables)
    assert destination.journal.read() == source.journal.read()
    assert destination.ledger.usage(["tenant"]) == source.ledger.usage(["tenant"])
    assert ("settlements", 2_000, 2_100) in told
    assert ("settlements", 2_100, 2_100) in told
    # It goes on where the source stopped.
    epoch = destination.leader.acquire("b", 10, 20)
    assert epoch == 2
    assert destination.journal.append([NodeLost(1, "n")], epoch) == 51
    source.close()
    destination.close()


@pytest.mark.postgres
def test_there_and_back(full: str, postgres_url: str, tmp_path: Path) -> None:
    there = copy_store(full, postgres_url)
    back = copy_store(postgres_url, f"sqlite:///{tmp_path}/back.db")
    assert there == back


def test_a_destination_in_use_is_refused(full: str, url: str, settlement: Make) -> None:
    used = open_store(url)
    used.ledger.settle([settlement("mine", input_tokens=0, output_tokens=0)], [], "", 0)
    used.close()
    with pytest.raises(ConflictError, match="in use: settlements"):
        copy_store(full, url)
    used = open_store(url)
    assert used.ledger.usage([])[0].requests == 1
    used.close()


def test_a_newer_destination_or_source_is_refused(full: str, url: str) -> None:
    newer = open_store(url)
    with newer.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    newer.close()
    with pytest.raises(StoreError, match="9999"):
        copy_store(full, url)
    with pytest.raises(StoreError, match="9999"):
        copy_store(url, full)


def test_a_source_that_is_not_there(tmp_path: Path, url: str) -> None:
    with pytest.raises(NotFoundError):
        copy_store(f"sqlite:///{tmp_path}/none.db", url)
    assert not (tmp_path / "none.db").exists()


def test_a_store_in_use_is_refused(full: str, url: str) -> None:
    source = open_store(full)
    source.leader.acquire("mill", 60_000_000, time.time_ns() // 1000)
    with pytest.raises(ConflictError, match="'mill' is using"):
        copy_store(full, url)
    assert copy_store(full, url, allow_live=True).tables
    source.close()


def test_a_copy_that_differs_is_not_kept(full: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy, "table_digest", lambda _c, table: copy.CopiedTable(table.name, 0, "0" * 64))
    with pytest.raises(StoreError, match="not the original"):
        copy_store(full, url)
    kept = open_store(url)
    assert kept.leader.acquire("b", 10, 0) == 1
    assert kept.journal.read() == []
    kept.close()
