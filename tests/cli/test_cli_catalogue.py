"""``catalogue``: every type is listed, one is shown as a row writes it, own ones among them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tokenmill.cli.app import app
from tokenmill.domain.errors import NotFoundError, SpecError
from tokenmill.spec.catalogue import catalogue
from tokenmill.spec.catalogue.listing import KINDS

SHIPPED = Path(__file__).resolve().parents[2] / "tokenmill" / "spec" / "catalogue"
OURS = """
kind: catalogue
name: ours
accelerators:
  b400: {name: B400, architecture: blackwell, source: an offer, memory: 400 GB, memory_rate: 12 TB/s,
         bf16: 3 PFLOP/s, link: 1800 GB/s, idle_power: 180 W, max_power: 1.5 kW,
         hour_price: {is: 3 USD/h, source: our contract}}
  h100-sxm: {source: our contract, hour_price: 1.7 USD/h}
"""


def run(*words):
    return CliRunner().invoke(app, ["catalogue", *map(str, words)])


@pytest.fixture
def ours(tmp_path):
    path = tmp_path / "ours.yaml"
    path.write_text(OURS)
    return path


def test_all_types_of_all_nouns_are_listed():
    found = json.loads(run("--json").stdout)
    assert list(found) == list(KINDS)
    for noun, rows in found.items():
        assert [row["id"] for row in rows] == list(getattr(catalogue(), noun))
    shown = run().stdout
    assert all(row["id"] in shown for rows in found.values() for row in rows)
    assert list(json.loads(run("racks", "--json").stdout)) == ["racks"]


@pytest.mark.parametrize("noun", ["accelerators", "nodes", "racks", "models", "engines"])
def test_each_value_is_shown_as_its_row_writes_it(noun):
    """The shipped files are read without our reader, so that both directions cannot be wrong alike."""
    shown = {row["id"]: row["values"] for row in json.loads(run(noun, "--json").stdout)[noun]}
    for name, row in yaml.safe_load((SHIPPED / f"{noun}.yaml").read_text()).items():
        values = {value["field"]: value for value in shown[name]}
        for field, written in row.items():
            if field == "source" or written in (0, ""):
                continue
            stated, source = (
                (written["is"], written["source"]) if isinstance(written, dict) else (written, row["source"])
            )
            text = str(stated).lower() if isinstance(stated, bool) else str(stated)
            assert _amount(values[field]["value"]) == pytest.approx(_amount(text)), (name, field)
            assert values[field]["source"] == source


def _amount(text):
    number, _, unit = text.partition(" ")
    factor = {"TB/s": 1000, "PFLOP/s": 1000, "kW": 1000}.get(unit, 1)
    try:
        return float(number) * factor
    except ValueError:
        return text


def test_own_types_stand_beside_shipped_ones_and_own_prices_in_their_place(ours):
    found = json.loads(run("-f", ours, "b400", "--json").stdout)["accelerators"][0]["values"]
    values = {value["field"]: (value["value"], value["source"]) for value in found}
    assert values["max_power"] == ("1.5 kW", "an offer")
    assert values["hour_price"] == ("3 USD/h", "our contract")
    shown = run("h100-sxm", "-f", ours).stdout
    assert re.search(r"hour_price +1\.7 USD/h +our contract", shown)
    assert "NVIDIA H100 data sheet (2023)" in shown


def test_an_unknown_type_is_refused_with_the_nearest_and_a_bad_file_at_its_place(ours):
    refused = run("h100-smx")
    assert refused.exit_code == NotFoundError.exit_code
    assert "Did you mean h100-sxm?" in refused.output
    ours.write_text(OURS.replace("400 GB", "lots"))
    bad = run("-f", ours)
    assert bad.exit_code == SpecError.exit_code
    assert "ours.yaml:5" in bad.output


def test_the_shell_completes_nouns_and_types():
    asked = {"_TOKENMILL_COMPLETE": "complete_bash", "COMP_WORDS": "tokenmill catalogue h", "COMP_CWORD": "2"}
    code = "from tokenmill.cli.app import app; app(prog_name='tokenmill')"
    found = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True
    )
    assert {"h100-sxm", "hgx-b200-x4"} <= set(found.stdout.split()), found.stderr
