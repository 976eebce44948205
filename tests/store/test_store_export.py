"""Cost rows: what a finance tool reads adds up to the ledger."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from tokenmill.domain.errors import MissingExtraError, ResourceError
from tokenmill.domain.ledger import Posting, Settlement
from tokenmill.store import Store, export


def fill(
    store: Store, settlement: Callable[..., Settlement], postings_of: Callable[..., list[Posting]]
) -> None:
    day = 86_400_000_000
    batch = [
        settlement("a"),
        settlement("b"),
        settlement("c", at_us=1_700_000_000_000_000 + day, tenant="=blue"),
    ]
    store.ledger.settle(batch, [p for item in batch for p in postings_of(item, 1_500_001)], "", 0)
    work = postings_of(settlement("work:1"))[0]
    work = replace(work, unit="cpu_us", amount=5_400_000_000, kind="train", key="", release="")
    store.ledger.post_work("work:1", [work, replace(work, line=1, unit="micros:EUR", amount=7)])


def test_rows_add_up_to_the_ledger(
    store: Store,
    settlement: Callable[..., Settlement],
    postings_of: Callable[..., list[Posting]],
    tmp_path: Path,
) -> None:
    fill(store, settlement, postings_of)
    rows = export.cost_rows(store.database)
    assert export.write_csv(rows, tmp_path / "costs.csv", "mill") == len(rows) == 3
    with (tmp_path / "costs.csv").open(newline="") as file:
        train, serve, blue = csv.DictReader(file)
    assert serve["ProviderName"] == "mill"
    assert serve["SubAccountId"] == "acme"
    assert (serve["BillingPeriodStart"], serve["BillingPeriodEnd"]) == (
        "2023-11-01T00:00:00Z",
        "2023-12-01T00:00:00Z",
    )
    assert (serve["ChargePeriodStart"], serve["ChargePeriodEnd"]) == (
        "2023-11-14T00:00:00Z",
        "2023-11-15T00:00:00Z",
    )
    assert (serve["SkuId"], serve["ConsumedQuantity"], serve["ConsumedUnit"]) == (
        "serve/chat",
        "300",
        "Tokens",
    )
    assert (serve["BilledCost"], serve["BillingCurrency"]) == ("3.000002", "USD")
    assert serve["x_CachedTokens"] == "40"
    assert blue["SubAccountId"] == "'=blue"
    assert (train["ConsumedQuantity"], train["ConsumedUnit"]) == ("1.500000000", "CPU Hours")
    assert (train["BilledCost"], train["BillingCurrency"]) == ("0.000007", "EUR")
    spent = sum(row.micros for row in rows if row.currency == "USD")
    assert spent == sum(row.micros.get("USD", 0) for row in store.ledger.usage(["tenant"]))
    assert [row.tenant for row in export.cost_rows(store.database, tenant="acme")] == ["acme", "acme"]


FOCUS_1_0_MANDATORY = frozenset(
    {
        *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd"),
        *("BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd"),
        *("ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost"),
        *("PricingQuantity", "PricingUnit", "ProviderName", "PublisherName", "ServiceCategory"),
        "ServiceName",
    }
)
"""https://focus.finops.org/focus-specification/v1-0/: the columns with feature level Mandatory."""

MAY_BE_NULL = frozenset({"ChargeClass", "BillingAccountName", "ChargeDescription"})


def test_what_focus_makes_mandatory_is_there(
    sqlite_store: Store,
    settlement: Callable[..., Settlement],
    postings_of: Callable[..., list[Posting]],
) -> None:
    fill(sqlite_store, settlement, postings_of)
    for row in export.cost_rows(sqlite_store.database):
        record = export.focus_record(row, "mill")
        assert record.keys() >= FOCUS_1_0_MANDATORY
        assert all(record[name] not in (None, "") for name in FOCUS_1_0_MANDATORY - MAY_BE_NULL)
        assert record["ChargeClass"] is None
        assert record["ListCost"] == record["ContractedCost"] == record["BilledCost"]
        ours = record.keys() - FOCUS_1_0_MANDATORY
        assert all(name.startswith("x_") for name in ours if "Token" in name or "Hours" in name)


def test_parquet_holds_the_same(
    sqlite_store: Store,
    settlement: Callable[..., Settlement],
    postings_of: Callable[..., list[Posting]],
    tmp_path: Path,
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    fill(sqlite_store, settlement, postings_of)
    rows = export.cost_rows(sqlite_store.database)
    assert export.write_parquet(rows, tmp_path / "costs.parquet", "mill") == 3
    read = parquet.read_table(tmp_path / "costs.parquet").to_pylist()
    assert read == [export.focus_record(row, "mill") for row in rows]
    assert sum(record["BilledCost"] for record in read) == Decimal("4.500010")


def test_an_empty_ledger_has_a_header(sqlite_store: Store, tmp_path: Path) -> None:
    assert export.write_csv(export.cost_rows(sqlite_store.database), tmp_path / "none.csv", "mill") == 0
    assert (tmp_path / "none.csv").read_text().startswith("ProviderName,")


def test_where_it_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResourceError, match="cannot be written"):
        export.write_csv([], tmp_path / "no" / "costs.csv", "mill")
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"tokenmill\[parquet\]"):
        export.write_parquet([], tmp_path / "costs.parquet", "mill")
