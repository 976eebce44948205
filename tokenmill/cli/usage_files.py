"""Usage rows as CSV or Parquet files, and the ledger's cost rows as FOCUS for a finance tool."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenmill.cli.options import Place
from tokenmill.domain.calendar import DAY_US
from tokenmill.domain.errors import MissingExtraError
from tokenmill.spec.factory_file import load
from tokenmill.store import export
from tokenmill.store.export import cost_rows, no_formula, replace_file
from tokenmill.store.opening import open_store

Rows = Sequence[dict[str, Any]]


def flat(rows: Rows) -> list[dict[str, Any]]:
    """Rows with one column per currency and outcome; the same columns in every row."""
    currencies = sorted({currency for row in rows for currency in row["micros"]})
    outcomes = sorted({outcome for row in rows for outcome in row["outcomes"]})
    plain = []
    for row in rows:
        made = {name: value for name, value in row.items() if name not in ("micros", "outcomes")}
        made |= {f"outcome_{name}": row["outcomes"].get(name, 0) for name in outcomes}
        made |= {f"micros_{name}": row["micros"].get(name, 0) for name in currencies}
        plain.append(made)
    return plain


def write_csv(rows: Rows, path: Path) -> None:
    """Raises ``ResourceError`` for a place that cannot be written to."""
    made = [{name: _cell(value) for name, value in row.items()} for row in flat(rows)]

    def write(target: Path) -> None:
        with target.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(made[0]) if made else [])
            writer.writeheader()
            writer.writerows(made)

    replace_file(path, write)


def write_parquet(rows: Rows, path: Path) -> None:
    """Raises ``MissingExtraError`` without pyarrow."""
    try:
        import pyarrow as arrow  # heavy and optional
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtraError(
            "Parquet files need pyarrow", fix="pip install 'tokenmill[parquet]', or use --csv."
        ) from error
    made = arrow.Table.from_pylist(flat(rows))
    replace_file(path, lambda target: parquet.write_table(made, target))


def write_focus(place: Place, path: Path, since_us: int, until_us: int, tenant: str) -> int:
    """FOCUS cost rows from the factory's own store, as Parquet when the name says so; return how many.

    A row is a whole day, so that two exports never state one day differently: the window is widened to days.
    """
    since_us, until_us = since_us // DAY_US * DAY_US, -(-until_us // DAY_US) * DAY_US
    store = open_store(place.paths.database_url(place.settings))
    try:
        rows = cost_rows(store.database, since_us, until_us, tenant)
    finally:
        store.close()
    write = export.write_parquet if path.suffix == ".parquet" else export.write_csv
    return write(rows, path, load([place.need_file()], os.environ).name)


def _cell(value: Any) -> Any:
    return no_formula(value) if isinstance(value, str) else value
