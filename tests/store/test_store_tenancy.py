"""Records of tenants' files and batches: pages, owners apart, and lines that are kept once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tokenmill.domain.errors import NotFoundError
from tokenmill.domain.tenancy import Batch, BatchLine, BatchStatus, Owner, Purpose, TenantFile
from tokenmill.store import Store

ACME = Owner("acme", "p")
OTHER = Owner("other", "p")


def a_file(number: int, owner: Owner = ACME, **changes: object) -> TenantFile:
    file = TenantFile(
        f"file-{number}", owner, Purpose.BATCH, f"{number}.jsonl", 10 + number, "sha256:x", number
    )
    return replace(file, **changes)  # type: ignore[arg-type]


def a_batch(number: int, owner: Owner = ACME) -> Batch:
    return Batch(f"batch-{number}", owner, "key-1", "/v1/embeddings", "file-1", "24h", number, number + 10)


def test_files_page_in_both_orders_and_by_purpose(store: Store) -> None:
    for number in (1, 2, 3, 4):
        store.files.add(a_file(number))
    store.files.add(a_file(5, purpose=Purpose.FINE_TUNE, created_us=4))
    names = [f.id for f in store.files.page(ACME, limit=3)]
    assert names == ["file-5", "file-4", "file-3"]
    assert [f.id for f in store.files.page(ACME, after="file-3", limit=3)] == ["file-2", "file-1"]
    up = store.files.page(ACME, after="file-4", limit=9, newest_first=False)
    assert [f.id for f in up] == ["file-5"]
    assert [f.id for f in store.files.page(ACME, purpose="fine-tune", limit=9)] == ["file-5"]
    with pytest.raises(NotFoundError):
        store.files.page(ACME, after="file-99", limit=1)


def test_nobody_reaches_anothers_files_or_batches(store: Store) -> None:
    store.files.add(a_file(1))
    store.batches.put(a_batch(1))
    assert store.files.get(ACME, "file-1") == a_file(1)
    for stranger in (OTHER, Owner("acme", "q")):
        assert store.files.get(stranger, "file-1") is None
        assert store.files.page(stranger, limit=9) == []
        assert not store.files.delete(stranger, "file-1")
        assert store.batches.get(stranger, "batch-1") is None
        assert store.batches.page(stranger, limit=9) == []
        with pytest.raises(NotFoundError):
            store.batches.page(stranger, after="batch-1", limit=9)
    assert store.files.total("acme") == (1, 11)
    assert store.files.total("other") == (0, 0)


def test_files_expire_and_share_bytes(store: Store) -> None:
    store.files.add(a_file(1, expires_us=50))
    store.files.add(a_file(2))
    assert [f.id for f in store.files.expired(50)] == ["file-1"]
    assert store.files.expired(49) == []
    assert store.files.uses("acme", "sha256:x") == 2
    assert store.files.delete(ACME, "file-1")
    assert store.files.uses("acme", "sha256:x") == 1


def test_a_batch_goes_on_where_it_was(store: Store) -> None:
    batch = a_batch(1)
    store.batches.put(batch)
    store.batches.put(replace(batch, status=BatchStatus.IN_PROGRESS, metadata={"a": "b"}))
    store.batches.put(a_batch(2))
    assert [b.id for b in store.batches.open()] == ["batch-1", "batch-2"]
    lines = [BatchLine(n, n != 3, f'{{"n":{n}}}') for n in (2, 1, 3)]
    store.batches.add_lines("batch-1", lines)
    store.batches.add_lines("batch-1", [BatchLine(1, False, "other"), BatchLine(4, True, "x")])
    assert store.batches.done("batch-1") == {1: True, 2: True, 3: False, 4: True}
    assert [x.number for x in store.batches.lines("batch-1", ok=True, after=1)] == [2, 4]
    assert store.batches.lines("batch-1", ok=True, after=0, limit=1)[0].body == '{"n":1}'
    ended = replace(batch, status=BatchStatus.COMPLETED)
    store.batches.finish(ended)
    assert store.batches.get(ACME, "batch-1") == ended
    assert store.batches.done("batch-1") == {}
    assert [b.id for b in store.batches.open()] == ["batch-2"]
    assert [b.id for b in store.batches.page(ACME, limit=9)] == ["batch-2", "batch-1"]
    assert [b.id for b in store.batches.page(ACME, after="batch-2", limit=9)] == ["batch-1"]
