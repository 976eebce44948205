"""Spools: whole lines once, torn ones later, damaged ones reported; and the ledger checked against them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tokenmill.domain.codec import to_plain
from tokenmill.domain.errors import StoreError
from tokenmill.domain.ledger import Posting, Settlement
from tokenmill.store import Store
from tokenmill.store.spool import LONGEST_LINE_BYTES, Opened, read_spool, spool_files

Make = Callable[..., Settlement]
Price = Callable[..., list[Posting]]
HOUR_US = 3_600_000_000


def opened(request: str, at_us: int = 1_700_000_000_000_000) -> bytes:
    line = {"t": "open", "request": request, "at_us": at_us, "tenant": "acme", "alias": "chat"}
    return msgspec.json.encode(line) + b"\n"


def settled(settlement: Settlement) -> bytes:
    return msgspec.json.encode({"t": "settle", **to_plain(settlement)}) + b"\n"


def ingest(store: Store, path: Path, postings_of: Price) -> int:
    """What the runtime does: read on, price, settle."""
    batch = read_spool(path, store.ledger.offset(path.name))
    prices = [posting for item in batch.settlements for posting in postings_of(item)]
    return store.ledger.settle(batch.settlements, prices, path.name, batch.offset)


def test_a_torn_line_waits_for_its_end(tmp_path: Path, settlement: Make) -> None:
    path = tmp_path / "gateway-0.jsonl"
    whole, torn = opened("a") + settled(settlement("a")), settled(settlement("b"))
    path.write_bytes(whole + torn[:-20])
    batch = read_spool(path)
    assert batch.settlements == (settlement("a"),)
    assert batch.opened == (Opened("a", 1_700_000_000_000_000),)
    assert batch.offset == len(whole)
    assert batch.damaged == ()
    assert read_spool(path, batch.offset).settlements == ()
    path.write_bytes(whole + torn)
    after = read_spool(path, batch.offset)
    assert after.settlements == (settlement("b"),)
    assert after.offset == after.settlement_offsets[0] == len(whole + torn)


def test_a_damaged_line_holds_nothing_up(tmp_path: Path, settlement: Make) -> None:
    path = tmp_path / "gateway-0.jsonl"
    lines = [b'{"t":"settle","request":"x"\n', b"\xff\xfe\n", b'{"t":"dance"}\n', b"\n", b"[]\n"]
    path.write_bytes(b"".join(lines) + settled(settlement("a")))
    batch = read_spool(path)
    assert batch.settlements == (settlement("a"),)
    assert len(batch.damaged) == 4
    assert batch.damaged[0].startswith("gateway-0.jsonl:byte 0:")
    assert "dance" in batch.damaged[2]


def test_reading_in_small_pieces(tmp_path: Path, settlement: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenmill.store.spool.LONGEST_LINE_BYTES", 1_000)
    path = tmp_path / "gateway-0.jsonl"
    every = [settlement(f"req-{n}") for n in range(20)]
    path.write_bytes(b"".join(map(settled, every)))
    found: list[Settlement] = []
    offset = 0
    while (batch := read_spool(path, offset, limit_bytes=1)).offset > offset:
        found += batch.settlements
        offset = batch.offset
    assert found == every


def test_files_that_cannot_be_right(tmp_path: Path) -> None:
    path = tmp_path / "gateway-0.jsonl"
    with pytest.raises(StoreError, match="cannot be read"):
        read_spool(path)
    path.write_bytes(b"short\n")
    with pytest.raises(StoreError, match="cut or replaced"):
        read_spool(path, 100)
    path.write_bytes(b"x" * (LONGEST_LINE_BYTES + 10))
    with pytest.raises(StoreError, match="longer than"):
        read_spool(path)


def test_files_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 0):
        (tmp_path / f"gateway-{number}.jsonl").touch()
    assert [path.name[8:-6] for path in spool_files(tmp_path)] == ["0", "9", "10"]
    assert spool_files(tmp_path / "none") == []


def test_verify_against_the_spool(store: Store, settlement: Make, postings_of: Price, tmp_path: Path) -> None:
    first, second = tmp_path / "gateway-0.jsonl", tmp_path / "gateway-1.jsonl"
    first.write_bytes(opened("a") + opened("b") + settled(settlement("a")) + opened("c"))
    second.write_bytes(settled(settlement("b")))
    assert ingest(store, first, postings_of) == 1
    assert ingest(store, second, postings_of) == 1
    assert ingest(store, first, postings_of) == 0
    with second.open("ab") as file:
        file.write(opened("d") + settled(settlement("d")))
    report = store.ledger.verify(tmp_path)
    assert report.ok
    assert (report.settlements, report.spool_lines, report.pending, report.in_flight) == (2, 7, 1, 1)

    with second.open("ab") as file:
        file.write(opened("e", 1_700_000_000_000_000 + HOUR_US))
    assert store.ledger.verify(tmp_path).problems == ("request c was opened and never ended",)
    assert store.ledger.verify(tmp_path, in_flight_us=HOUR_US + 1).ok


def test_verify_finds_what_the_ledger_lost(
    store: Store, settlement: Make, postings_of: Price, tmp_path: Path
) -> None:
    path = tmp_path / "gateway-0.jsonl"
    every = [settlement("a"), settlement("b")]
    path.write_bytes(b"".join(map(settled, every)))
    told = settlement("b", output_tokens=51)
    store.ledger.settle([told], postings_of(told), path.name, path.stat().st_size)
    report = store.ledger.verify(tmp_path)
    assert report.problems == (
        "gateway-0.jsonl: request a was read but is not in the ledger",
        "gateway-0.jsonl: request b differs in output_tokens",
    )
    assert report.unreconciled_tokens == 300


def test_a_forgotten_spool_is_read_from_its_start(
    store: Store, settlement: Make, postings_of: Price, tmp_path: Path
) -> None:
    path = tmp_path / "gateway-0.jsonl"
    path.write_bytes(settled(settlement("a")))
    ingest(store, path, postings_of)
    store.ledger.forget_spool(path.name)
    assert ingest(store, path, postings_of) == 0
    path.unlink()
    store.ledger.forget_spool(path.name)
    path.write_bytes(settled(settlement("b")))
    assert ingest(store, path, postings_of) == 1
