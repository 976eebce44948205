"""``usage`` of a running controller: groups, windows, and files that a spreadsheet may open."""

from __future__ import annotations

import csv
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from console_bed import Bed


def test_usage_as_table_and_files(factory: Any, bed: Bed) -> None:
    assert "nothing has been used yet" in factory("usage").stdout
    assert "used by tenant nope, if there is one" in factory("usage", "--tenant", "nope").stdout
    assert "used by anybody in this window" in factory("usage", "--since", "1h").stdout
    bed.settle("acme", "support", "smol", 3)
    assert "acme" in factory("usage", "--by", "tenant", "--since", "1h").stdout
    assert factory.json("usage")[0]["requests"] == 3
    factory("usage", "--csv", "u.csv")
    with Path("u.csv").open() as file:
        assert next(csv.DictReader(file))["micros_USD"] != "0"
    assert "wrote" in factory("usage", "--parquet", "u.parquet").stdout
    factory("usage", "--focus", "focus.csv")
    assert "BilledCost" in Path("focus.csv").read_text().splitlines()[0]
    factory("usage", "--csv", "a", "--focus", "b", code=2)
    for option in ("--csv", "--parquet", "--focus"):
        assert "cannot be written" in factory("usage", option, "no/such/folder/u", code=13).stderr
    factory("usage", "--by", "shoe_size", code=2)


def test_usage_of_a_window_of_dates(factory: Any, bed: Bed) -> None:
    bed.settle("acme", "support", "smol", 3)
    date = datetime.now(UTC).date()
    after, before = date + timedelta(days=1), date - timedelta(days=1)
    assert factory.json("usage", "--since", str(date), "--until", str(after))[0]["requests"] == 3
    assert factory.json("usage", "--since", str(before), "--until", str(date)) == []
    assert factory.json("usage", "--until", "1h") == []
    factory("usage", "--since", "1h", "--focus", "part.csv")
    factory("usage", "--since", str(date), "--until", f"{date}T23:59:59Z", "--focus", "day.csv")
    assert Path("part.csv").read_text() == Path("day.csv").read_text()  # a row is always its whole day
    assert len(Path("day.csv").read_text().splitlines()) == 2
    for wrong in ("yesterday", "2026-13-01", "2026-11", "-1h"):
        assert "--since is" in factory("usage", f"--since={wrong}", code=2).stderr
    assert (
        "--until is not after" in factory("usage", "--since", str(date), "--until", str(date), code=2).stderr
    )


def test_no_cell_of_a_usage_file_is_a_formula(factory: Any, bed: Bed) -> None:
    bed.settle("acme", "support", "=cmd|calc", 1)
    factory("usage", "--csv", "u.csv")
    with Path("u.csv").open() as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["'=cmd|calc"]
