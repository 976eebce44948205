"""Cost rows for a finance tool, as CSV or Parquet, with the column names of FOCUS.

FOCUS is the FinOps Open Cost and Usage Specification (https://focus.finops.org/focus-specification/). A row
is one day of one tenant, project, key, model, release and kind of work. All columns that FOCUS 1.0 makes
mandatory are there; those for commitments and regions, which a factory has none of, are not. Prices of the
factory file are list prices and nothing is taken off them, so list, contracted, effective and billed cost
are one figure; null means that FOCUS allows none. Columns of our own begin with ``x_``, as it asks.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import cast

from sqlalchemy import func, select

from tokenmill.domain.errors import MissingExtraError, ResourceError
from tokenmill.store.database import Database
from tokenmill.store.schema import postings
from tokenmill.store.usage import DAY_US, within

MICRO = Decimal(1_000_000)
HOUR_US = Decimal(3_600_000_000)
KWH_MJ = Decimal(3_600_000_000)

# day, tenant, project, key, model, release, kind
_Group = tuple[int, str, str, str, str, str, str]
_TOKEN_UNITS = ("token.input", "token.cached", "token.output", "token.reasoning")
_SERVICES = {
    "serve": "Inference",
    "train": "Training",
    "evaluate": "Evaluation",
    "command": "Jobs",
    "lease": "Leases",
}


@dataclass(frozen=True, slots=True)
class CostRow:
    """One charge. Quantities are integers of the ledger's units; ``micros`` is in ``currency``.

    ``units`` maps a unit (token.input, accelerator_us ...) to what was used. When a group was charged in two
    currencies, the second row repeats no quantity.
    """

    day: int  # since 1970-01-01, UTC
    tenant: str
    project: str
    key: str
    model: str
    release: str
    kind: str
    units: tuple[tuple[str, int], ...]
    micros: int
    currency: str


def cost_rows(
    database: Database, since_us: int = 0, until_us: int = 0, tenant: str = "", currency: str = "USD"
) -> list[CostRow]:
    """Every charge in the window, by day, tenant, project, key, model, release and kind.

    ``currency`` is named for what cost nothing.
    """
    column = postings.c
    day = (column.at_us // DAY_US).label("day")
    groups = (day, column.tenant, column.project, column.key, column.model, column.release, column.kind)
    wanted = (
        select(*groups, column.unit, func.sum(column.amount).label("amount"))
        .where(within(postings, since_us, until_us, tenant))
        .group_by(*groups, column.unit)
    )
    found: dict[_Group, dict[str, int]] = defaultdict(dict)
    with database.read() as connection:
        for row in connection.execute(wanted):
            found[cast(_Group, tuple(row)[:7])][row.unit] = int(row.amount)
    rows = []
    for group in sorted(found):
        units = tuple(sorted((u, n) for u, n in found[group].items() if not u.startswith("micros:")))
        money = sorted(
            (u.removeprefix("micros:"), n) for u, n in found[group].items() if u.startswith("micros:")
        )
        for index, (name, micros) in enumerate(money or [(currency, 0)]):
            rows.append(CostRow(*group, units if index == 0 else (), micros, name))
    return rows


Cell = str | Decimal | datetime | None


def focus_record(row: CostRow, provider: str) -> dict[str, Cell]:
    """A row under FOCUS's column names. ``provider`` is the factory's name."""
    start = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=row.day)
    month = start.replace(day=1)
    units = defaultdict(int, row.units)
    service = _SERVICES.get(row.kind, row.kind.capitalize())
    quantity, unit = _consumed(row.kind, units)
    cost = Decimal(row.micros) / MICRO
    return {
        "ProviderName": provider,
        "PublisherName": provider,
        "InvoiceIssuerName": provider,
        "BillingAccountId": provider,
        "BillingAccountName": provider,
        "SubAccountId": row.tenant or None,
        "SubAccountName": row.tenant or None,
        "BillingPeriodStart": month,
        "BillingPeriodEnd": (month + timedelta(days=32)).replace(day=1),
        "ChargePeriodStart": start,
        "ChargePeriodEnd": start + timedelta(days=1),
        "ChargeCategory": "Usage",
        "ChargeClass": None,  # a correction of an earlier invoice, which there is none
        "ChargeFrequency": "Usage-Based",
        "ChargeDescription": f"{service} on {row.model or 'the factory'}",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": service,
        "SkuId": f"{row.kind}/{row.model}",
        "ResourceId": row.release or row.model or None,
        "PricingCategory": "Standard",
        "PricingQuantity": quantity,
        "PricingUnit": unit,
        "ConsumedQuantity": quantity,
        "ConsumedUnit": unit,
        "ListCost": cost,
        "ContractedCost": cost,
        "EffectiveCost": cost,
        "BilledCost": cost,
        "BillingCurrency": row.currency,
        "Tags": json.dumps({"key": row.key, "project": row.project, "release": row.release}, sort_keys=True),
        "x_InputTokens": Decimal(units["token.input"]),
        "x_CachedTokens": Decimal(units["token.cached"]),
        "x_OutputTokens": Decimal(units["token.output"]),
        "x_ReasoningTokens": Decimal(units["token.reasoning"]),
        "x_AcceleratorHours": _quantity(units["accelerator_us"], HOUR_US),
        "x_CpuHours": _quantity(units["cpu_us"], HOUR_US),
        "x_EnergyKwh": _quantity(units["energy_mj"], KWH_MJ),
    }


def write_csv(rows: Iterable[CostRow], path: Path, provider: str) -> int:
    """Write rows to ``path`` as CSV with a header; return how many. An older file is replaced at the end."""
    records = [focus_record(row, provider) for row in rows]
    header = list(focus_record(_EMPTY, provider))

    def write(target: Path) -> None:
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, header)
            writer.writeheader()
            writer.writerows({name: _text(value) for name, value in record.items()} for record in records)

    replace_file(path, write)
    return len(records)


def write_parquet(rows: Iterable[CostRow], path: Path, provider: str) -> int:
    """Write rows to ``path`` as Parquet; return how many. Raises ``MissingExtraError`` without pyarrow."""
    if importlib.util.find_spec("pyarrow") is None:
        raise MissingExtraError(
            "Parquet needs pyarrow, which is not installed",
            fix="pip install 'tokenmill[parquet]', or use CSV",
        )
    arrow = importlib.import_module("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    types = {Decimal: arrow.decimal128(38, 9), datetime: arrow.timestamp("us", tz="UTC")}
    columns = focus_record(_EMPTY, provider)
    schema = arrow.schema([(name, types.get(type(value), arrow.string())) for name, value in columns.items()])
    records = [focus_record(row, provider) for row in rows]
    table = arrow.Table.from_pylist(records, schema=schema)
    replace_file(path, lambda target: parquet.write_table(table, target))
    return len(records)


_EMPTY = CostRow(0, "", "", "", "", "", "", (), 0, "")


def _consumed(kind: str, units: dict[str, int]) -> tuple[Decimal, str]:
    """What a charge is about: tokens when any moved, else the hours of accelerators, else of CPUs."""
    tokens = sum(units[unit] for unit in _TOKEN_UNITS)
    if tokens or kind == "serve":
        return Decimal(tokens), "Tokens"
    if units["accelerator_us"]:
        return _quantity(units["accelerator_us"], HOUR_US), "Accelerator Hours"
    return _quantity(units["cpu_us"], HOUR_US), "CPU Hours"


def _quantity(amount: int, unit: Decimal) -> Decimal:
    return (Decimal(amount) / unit).quantize(Decimal("1e-9"))


def _text(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, Decimal):
        return f"{value:f}"
    return no_formula(value)


def no_formula(text: str) -> str:
    """As a cell that no spreadsheet runs: a tenant's name, or a model that a client made up, must not be."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a file beside ``path``, then put it there. Raises ``ResourceError``."""
    target = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(target)
        target.replace(path)
    except OSError as error:
        raise ResourceError(
            f"the export cannot be written: {error.strerror}",
            fix="Name a folder that exists, has room and that you may write to.",
            where=str(path),
        ) from error
    finally:
        with suppress(OSError):
            target.unlink()
