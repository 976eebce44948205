"""From spool to ledger: each request once, energy divided exactly, spools removed only when they are read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from tokenmill.domain.codec import to_plain
from tokenmill.domain.effects import ChargeWork
from tokenmill.domain.errors import StoreError
from tokenmill.domain.factory import Deployment, Factory, Price
from tokenmill.domain.ledger import Outcome, Settlement
from tokenmill.domain.work import WorkUsage
from tokenmill.floor.books import IDLE_AFTER_US, Books
from tokenmill.store.opening import Store, open_store

NOW_US = 1_800_000_000_000_000
FACTORY = Factory(
    name="f",
    prices=(Price("*", input_micros_per_mtok=1_000_000, output_micros_per_mtok=2_000_000),),
    deployments=(Deployment("smol", model="smol"),),
)


class Account:
    """An energy account in memory."""

    def __init__(self, owed: Mapping[str, int]) -> None:
        self.amounts = dict(owed)
        self.gone: set[str] = set()

    def refresh(self) -> None:
        pass

    def owed(self) -> dict[str, int]:
        return dict(self.amounts)

    def ended(self) -> frozenset[str]:
        return frozenset(self.gone)

    def forget_ended(self) -> None:
        for name in list(self.gone):
            if not self.amounts.get(name):
                self.gone.discard(name)

    def take(self, amounts: Mapping[str, int]) -> None:
        for name, amount in amounts.items():
            self.amounts[name] -= amount

    def give_back(self, amounts: Mapping[str, int]) -> None:
        for name, amount in amounts.items():
            self.amounts[name] += amount

    def source(self) -> str:
        return "test"

    def watts(self) -> float:
        return 0.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path}/t.db")
    yield opened
    opened.close()


def settlement(request: str, replica: str = "r-1", output: int = 10, at_us: int = NOW_US) -> Settlement:
    return Settlement(
        request=request,
        at_us=at_us,
        tenant="acme",
        project="default",
        key="key-1",
        alias="smol",
        release="import-smol",
        replica=replica,
        endpoint="chat.completions",
        outcome=Outcome.OK,
        status=200,
        input_tokens=5,
        output_tokens=output,
        counted_by="engine",
    )


def write(path: Path, *settlements: Settlement) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        for one in settlements:
            file.write(msgspec.json.encode({"t": "settle", **to_plain(one)}) + b"\n")


def units(store: Store, entry: str) -> dict[str, int]:
    return {posting.unit: posting.amount for posting in store.ledger.postings(entry)}


def test_settlements_are_priced_and_energy_is_divided_by_tokens(tmp_path: Path, store: Store) -> None:
    account = Account({"r-1": 101})
    books = Books(store.ledger, tmp_path / "spool", account)
    write(tmp_path / "spool/gateway-0.jsonl", settlement("a", output=5), settlement("b", output=25))
    assert books.pass_over(FACTORY, NOW_US) == 2
    assert units(store, "a") == {"token.input": 5, "token.output": 5, "micros:USD": 15, "energy_mj": 25}
    assert units(store, "b")["energy_mj"] == 76
    assert account.amounts == {"r-1": 0}
    assert (books.stats["requests"], books.stats["output_tokens"]) == (2, 30)
    assert store.ledger.verify(tmp_path / "spool").problems == ()


def test_a_second_pass_and_a_second_reader_change_nothing(tmp_path: Path, store: Store) -> None:
    write(tmp_path / "spool/gateway-0.jsonl", settlement("a"))
    assert Books(store.ledger, tmp_path / "spool", Account({})).pass_over(FACTORY, NOW_US) == 1
    again = Books(store.ledger, tmp_path / "spool", Account({"r-1": 50}))
    assert again.pass_over(FACTORY, NOW_US) == 0
    assert len(store.ledger.postings("a")) == 3


def test_energy_is_given_back_when_the_ledger_is_away(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = Account({"r-1": 40})
    books = Books(store.ledger, tmp_path / "spool", account)
    write(tmp_path / "spool/gateway-0.jsonl", settlement("a"))
    with monkeypatch.context() as patch:

        def away(*_: object) -> int:
            raise StoreError("away")

        patch.setattr(store.ledger, "settle", away)
        with pytest.raises(StoreError):
            books.pass_over(FACTORY, NOW_US)
    assert account.amounts == {"r-1": 40}
    assert books.pass_over(FACTORY, NOW_US) == 1
    assert units(store, "a")["energy_mj"] == 40


def test_idle_energy_goes_to_the_factory_after_a_minute(tmp_path: Path, store: Store) -> None:
    account = Account({"r-1": 30})
    books = Books(store.ledger, tmp_path / "spool", account)
    books.pass_over(FACTORY, NOW_US)
    assert account.amounts == {"r-1": 30}
    later_us = NOW_US + IDLE_AFTER_US
    books.pass_over(FACTORY, later_us)
    assert account.amounts == {"r-1": 0}
    (posting,) = store.ledger.postings(f"idle:r-1:{later_us}")
    assert (posting.tenant, posting.debit, posting.kind, posting.amount) == (
        "factory",
        "factory/idle",
        "idle",
        30,
    )


def test_energy_of_a_replica_that_is_gone_is_posted_at_once(tmp_path: Path, store: Store) -> None:
    account = Account({"r-1": 7})
    account.gone.add("r-1")
    books = Books(store.ledger, tmp_path / "spool", account)
    books.pass_over(FACTORY, NOW_US)
    assert units(store, f"idle:r-1:{NOW_US}") == {"energy_mj": 7}
    assert account.gone == set()


def test_work_is_charged_once(tmp_path: Path, store: Store) -> None:
    books = Books(store.ledger, tmp_path / "spool", Account({}))
    charge = ChargeWork("l-1", "acme", "default", "train", "smol", WorkUsage(cpu_us=5, energy_mj=9))
    assert books.charge(FACTORY, charge, NOW_US)
    assert not books.charge(FACTORY, charge, NOW_US + 1)
    assert units(store, "work:l-1") == {"cpu_us": 5, "energy_mj": 9}


def test_a_rotated_spool_is_removed_once_it_is_read_and_old(tmp_path: Path, store: Store) -> None:
    first, second = tmp_path / "spool/gateway-0.jsonl", tmp_path / "spool/gateway-1.jsonl"
    write(first, settlement("a"))
    write(second, settlement("b"))
    books = Books(store.ledger, tmp_path / "spool", Account({}))
    now_us = int(first.stat().st_mtime * 1e6)
    books.pass_over(FACTORY, now_us)
    assert first.exists()
    os.utime(first, (now_us / 1e6 - 120, now_us / 1e6 - 120))
    books.pass_over(FACTORY, now_us)
    assert not first.exists()
    assert second.exists()
    assert store.ledger.offset("gateway-0.jsonl") == 0


def test_a_damaged_line_is_counted_and_passed(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "spool/gateway-0.jsonl"
    write(path, settlement("a"))
    with path.open("ab") as file:
        file.write(b'{"t":"settle","request":"tor\n')
    write(path, settlement("b"))
    books = Books(store.ledger, tmp_path / "spool", Account({}))
    assert books.pass_over(FACTORY, NOW_US) == 2
    assert books.stats["damaged_lines"] == 1
