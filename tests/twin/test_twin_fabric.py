"""The fabric planner against published sizes, and what it says of rows and files that do not add up."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokenmill.cli.app import app
from tokenmill.domain.errors import DataError
from tokenmill.spec.catalogue import catalogue
from tokenmill.spec.factory_file import load
from tokenmill.twin.fabric_plan import Endpoints, check, plan
from tokenmill.twin.fabric_site import read_published, site_plans

EXAMPLE = Path(__file__).parents[2] / "examples" / "taiwan"
SWITCHES = catalogue().switches


def test_96_racks_need_96_leaves_and_72_spines_to_balance():
    [site] = site_plans(load([EXAMPLE / "factory.yaml"], {}))
    compute = next(one for one in site.fabrics if one.name == "compute")
    assert (site.nodes, site.accelerators) == (1_728, 6_912)
    assert (compute.switch.id, compute.leaves, compute.spines_by_ports, compute.spines) == (
        "q3400-ra",
        96,
        48,
        72,
    )
    assert (compute.balanced, compute.links, compute.usable) == (True, (1, 1), 1.0)
    assert (compute.node_cables, compute.spine_cables) == (6_912, 6_912)


def test_48_spines_have_ports_enough_and_do_not_balance():
    given = plan("compute", Endpoints(1_728, 4, 800), SWITCHES["q3400-ra"], 48)
    assert (given.balanced, given.links) == (False, (1, 2))
    assert given.usable == pytest.approx(48 / 72)
    with pytest.raises(DataError, match="47 spines have too few ports") as caught:
        plan("compute", Endpoints(1_728, 4, 800), SWITCHES["q3400-ra"], 47)
    assert caught.value.problem.expected == "at least 48, and 72 to balance"


def test_what_each_single_failure_leaves():
    made = plan("compute", Endpoints(1_728, 4, 800), SWITCHES["q3400-ra"])
    left = {loss.what: loss for loss in made.losses}
    assert (left["leaf switch"].adapters, left["leaf switch"].node_left) == (72, 0.75)
    assert left["leaf switch"].fabric_left == pytest.approx(95 / 96)
    assert left["spine switch"].adapter_left == pytest.approx(71 / 72)
    assert left["adapter"].adapter_left == 0
    twin = plan("compute", Endpoints(1_024, 8, 800, planes=2), SWITCHES["sn5600"])
    halved = {loss.what: loss.adapter_left for loss in twin.losses}
    assert (halved["leaf switch"], halved["cable or port of an adapter"]) == (0.5, 0.5)


def test_a_leaf_that_is_not_full_has_an_uplink_for_each_adapter_and_no_more():
    """16 nodes of eight on 64-port switches: 8 leaves of 16 adapters, whose 128 uplinks fill two spines."""
    made = plan("f", Endpoints(16, 8, 400), SWITCHES["qm9700"])
    assert (made.leaves, made.spines, made.links, made.uplinks) == (8, 2, (8, 8), 16)
    assert made.spine_cables == made.node_cables == 128
    left = {loss.what: loss.adapter_left for loss in made.losses}
    assert left["spine switch"] == 0.5
    spare = plan("f", Endpoints(16, 8, 400), SWITCHES["qm9700"], 3)  # 6 links to each: 18 uplinks for 16
    assert (spare.balanced, spare.uplinks, spare.spine_cables) == (True, 18, 144)
    left = {loss.what: loss.adapter_left for loss in spare.losses}
    assert left["cable of a spine"] == 1.0
    assert left["spine switch"] == pytest.approx(12 / 16)
    full = plan("f", Endpoints(32, 8, 400), SWITCHES["qm9700"])  # a published scalable unit
    assert (full.leaves, full.spines, full.spine_cables) == (8, 4, 256)


@pytest.mark.parametrize("nodes", range(1, 400, 37))
@pytest.mark.parametrize("switch", ["q3400-ra", "qm9700", "sn5600"])
def test_no_port_is_used_twice(nodes, switch):
    known = SWITCHES[switch]
    made = plan("f", Endpoints(nodes, 4, known.gbit_s), known)
    assert made.node_cables <= made.leaves * known.ports // 2
    assert made.spine_cables == (made.leaves * made.uplinks if made.spines else 0)
    assert made.spine_cables <= made.spines * known.ports
    assert made.balanced
    assert made.spines >= made.spines_by_ports


def test_one_row_of_the_published_table_does_not_add_up():
    lines = (EXAMPLE / "published-fabrics.csv").read_text().splitlines()
    found = {row.name: check(row, SWITCHES) for row in read_published(lines, "p.csv")}
    wrong = {name: said for name, said in found.items() if said}
    assert wrong == {
        "Quantum-X800 18 SU": ("says 9,216 accelerators; 1296 nodes of 8 are 10,368",),
    }
    result = CliRunner().invoke(app, ["fabric", "--check", str(EXAMPLE / "published-fabrics.csv"), "--json"])
    assert result.exit_code == 10
    rows = json.loads(result.stdout)["rows"]
    assert [row["name"] for row in rows if row["problems"]] == ["Quantum-X800 18 SU"]


HEAD = "name,switch,nodes,rails,planes,gbit_s,accelerators,leaves,spines"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a,q3400-ra,x,4,1,800,72,4,2", "nodes is 'x'"),
        ("a,q3400-ra,18,4,1,nan,72,4,2", "gbit_s is 'nan'"),
        ("a,q3400-ra,0,4,1,800,72,4,2", "nodes is '0'"),
        ("a,q3400-ra,18,4,1,800", "the row has 6 fields"),
    ],
)
def test_a_bad_row_is_refused_with_file_line_and_field(row, said):
    with pytest.raises(DataError, match=said) as caught:
        read_published([HEAD, row], "t.csv")
    assert caught.value.problem.where == "t.csv:2"


def test_rows_whose_counts_are_wrong_are_named():
    [row] = read_published([HEAD, "ours,q3400-ra,1728,4,1,800,6912,95,48"], "t.csv")
    assert check(row, SWITCHES) == (
        "says 95 leaves; 6,912 ports in 4 rails need 96",
        "48 spines have ports enough, but 72 uplinks of a leaf are 1 or 2 to each: 67% usable; 72 balance",
    )
    [row] = read_published([HEAD, "x,nonesuch,18,4,1,800,72,4,2"], "t.csv")
    with pytest.raises(DataError, match="no switch 'nonesuch'"):
        check(row, SWITCHES)


def test_what_does_not_fit_says_what_would():
    with pytest.raises(DataError, match="do not fit two tiers") as caught:
        plan("f", Endpoints(5_000, 4, 800), SWITCHES["q3400-ra"])
    assert caught.value.problem.expected == "at most 2592 nodes"
    with pytest.raises(DataError, match="adapters 300 Gbit/s"):
        plan("f", Endpoints(10, 4, 300), SWITCHES["q3400-ra"])
    for wrong in (0, -1, math.nan):
        with pytest.raises(DataError, match="gbit_s is"):
            Endpoints(10, 4, wrong)


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "name,switch,nodes,rails,planes,gbit_s,accelerators,leaves,spines\n"]
)
def test_a_table_without_rows_does_not_add_up(text):
    with pytest.raises(DataError, match="holds no rows"):
        read_published(text.splitlines(), "empty.csv")
