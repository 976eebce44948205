"""What a forecast may not pass over: requests too long, jobs that never fit, options that do nothing, and
minutes that are none."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("numpy", reason="the twin's core needs the extra [twin]")

import numpy as np
from typer.testing import CliRunner

from tokenmill.cli.app import app
from tokenmill.spec.catalogue import catalogue
from tokenmill.twin import floor_arrays as fa
from tokenmill.twin.demand import within_context

FACTORY = """kind: factory
name: small
---
kind: site
name: here
nodes: [{name: hgx, type: hgx-h200, count: 2}]
---
kind: tenant
name: acme
projects: [main]
---
kind: model
name: m
source: hf://meta-llama/Llama-3.1-8B-Instruct
---
kind: deployment
name: chat
model: m
engine: vllm
replicas: 2..4
slots: 32
context: 4096
resources: {accelerators: 1, accelerator: h200-sxm}
engine_args: [--quantization, fp8]
slo: {ttft: 2s, tpot: 60ms}
"""
TRAFFIC = """kind: traffic
streams:
  - deployment: chat
    requests_per_second: 20
    input: {mean: 500, sigma: 0.5}
    output: {mean: 100, sigma: 0.5}
"""
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "factory.yaml").write_text(FACTORY)
    (tmp_path / "t.yaml").write_text(TRAFFIC)
    (tmp_path / "t.csv").write_text(TRACE + "".join(f"{n * 0.5},400,50\n" for n in range(120)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(*words: str):
    return CliRunner().invoke(app, ["plan", *words])


def forecast(*words: str):
    result = plan("factory.yaml", "--traffic", *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_what_a_context_does_not_take_is_refused_and_makes_no_tokens(folder):
    """A prompt of the whole context leaves no room for an answer; a shorter one is answered up to its end."""
    made = np.zeros(4, fa.REQUEST)
    made["input"], made["output"] = [100, 4000, 4096, 90_000], [50, 500, 5, 5]
    kept = within_context(made, 4096)
    assert kept[["input", "output"]].tolist() == [(100, 50), (4000, 96)]
    assert made["output"].tolist() == [50, 500, 5, 5]
    rows = [f"{n},{90_000 if n % 4 == 0 else 400},50\n" for n in range(120)]
    (folder / "long.csv").write_text(TRACE + "".join(rows))
    found = forecast("long.csv", "--duration", "2m")
    [chat] = found["services"]
    assert (chat["offered"], chat["too_long"], chat["late"]) == (120, 30, 0)
    assert chat["output_tokens"] == 50 * chat["ended"] <= 50 * 90
    assert (
        "30 longer than the context"
        in plan("factory.yaml", "--traffic", "long.csv", "--duration", "2m").stdout
    )


def test_part_of_a_minute_counts_as_what_it_is(folder):
    whole = forecast("t.yaml", "--duration", "60s")
    for duration in ("40s", "100s"):
        part = forecast("t.yaml", "--duration", duration)
        assert part["peak_w"] == pytest.approx(whole["peak_w"], rel=0.1)
        assert part["oee"]["performance"] == pytest.approx(whole["oee"]["performance"], rel=0.25)
        assert part["services"][0]["headroom"] == pytest.approx(whole["services"][0]["headroom"], rel=0.25)
        assert part["series"][-1]["at_s"] == float(duration[:-1])


def test_training_that_could_never_start_is_refused_with_its_field(folder):
    jobs = """training:
  - {tenant: nobody, project: main, jobs: 1}
  - {tenant: acme, project: none, jobs: 1}
  - {tenant: acme, project: main, jobs: 1, accelerators: 9}
  - {tenant: acme, project: main, jobs: 1, workers: [2, 5], accelerators: 4}
"""
    (folder / "t.yaml").write_text(TRAFFIC + jobs)
    result = plan("factory.yaml", "--traffic", "t.yaml", "--json")
    found = [(one["where"], one["field"]) for one in json.loads(result.stdout)["error"]["problems"]]
    assert found == [
        ("t.yaml:8:14", "training[0].tenant"),
        ("t.yaml:9:29", "training[1].project"),
        ("t.yaml:10:58", "training[2].accelerators"),
        ("t.yaml:11:53", "training[3].workers"),
    ]
    (folder / "t.yaml").write_text(
        TRAFFIC
        + jobs[:10]
        + jobs[jobs.index("  - {tenant: acme, project: main, jobs: 1, w") :].replace("5]", "4]")
    )
    assert forecast("t.yaml", "--duration", "1m")["training"]["jobs"] == 1


def test_a_point_that_another_sweep_came_to_has_its_own_fields(folder):
    sweep = ("factory.yaml", "--traffic", "t.yaml", "--duration", "1m", "--out", "s.jsonl", "--sweep")
    first = plan(*sweep, "deployment.chat.slots=32")
    again = plan(*sweep, "site.here.nodes.0.count=2,3")
    assert (first.exit_code, again.exit_code) == (0, 0), again.output
    points = json.loads(plan(*sweep, "site.here.nodes.0.count=2", "--json").stdout)["points"]
    assert [one["point"] for one in points] == [{"site.here.nodes.0.count": "2"}]
    assert len((folder / "s.jsonl").read_text().splitlines()) == 2


def test_rows_out_of_order_are_named(folder):
    (folder / "t.csv").write_text(TRACE + "5,10,10\n6,10,10\n4,10,10\n")
    result = plan("factory.yaml", "--traffic", "t.csv", "--json")
    assert json.loads(result.stdout)["error"]["where"] == "t.csv:4"


SIZE = (
    "--size", "--model", "llama-3.1-8b", "--precision", "fp8", "--inputs", "100", "--outputs", "100",
    "--target", "1k", "--slo", "ttft_p99<2s,tpot_p99<80ms",
)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*SIZE, "--report", "x.html"), "without --report"),
        ((*SIZE, "--traffic", "t.yaml"), "without --traffic"),
        (("factory.yaml", "--model", "m"), "--model needs --size"),
        (("factory.yaml", "--duration", "1h"), "--duration needs --traffic"),
        (("factory.yaml", "--slo", "ttft<1s"), "--slo needs --traffic"),
        (("factory.yaml", "--traffic", "t.yaml", "--out", "x"), "a forecast has no --out"),
        (
            ("factory.yaml", "--traffic", "t.yaml", "--sweep", "traffic.feeds=1", "--report", "x"),
            "no --report",
        ),
        (("factory.yaml", "--traffic", "t.yaml", "--report", "no/x.html"), "there is no folder no"),
        (("factory.yaml", "--traffic", "t.yaml", "--report", "."), "that is a folder"),
        (("factory.yaml", "--traffic", "t.csv", "--duration", "0s"), "--duration is 0s"),
        (("factory.yaml", "--traffic", "t.csv", "--slo", "ttft<0s,tpot<1ms"), "no time"),
        (("factory.yaml", "--traffic", "t.csv", "--slo", "ttft<x,tpot<1ms"), "no time"),
    ],
)
def test_what_would_not_be_done_is_refused(folder, words, said):
    before = sorted(folder.iterdir())
    result = plan(*words)
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert sorted(folder.iterdir()) == before


def test_accelerators_that_nothing_holds_draw_their_power(folder):
    """One busy accelerator on each of eight-way nodes leaves seven idle: more replicas never draw less."""
    (folder / "factory.yaml").write_text(FACTORY.replace("count: 2", "count: 4"))
    drawn = []
    for replicas in (1, 2, 4, 8):
        text = FACTORY.replace("count: 2", "count: 4").replace("2..4", str(replicas))
        (folder / "factory.yaml").write_text(text)
        drawn.append(forecast("t.yaml", "--duration", "1m")["energy_j"] / 60)
    node = catalogue().nodes["hgx-h200"]
    idle_w = node.idle_w(catalogue().accelerators[node.accelerator])
    assert all(watts > 0.95 * 4 * idle_w for watts in drawn)
    assert drawn == sorted(drawn)
    other = catalogue().nodes["dgx-h100"]
    more = FACTORY.replace("count: 2}]", "count: 2}, {name: dgx, type: dgx-h100, count: 2}]")
    (folder / "factory.yaml").write_text(more)
    mixed = forecast("t.yaml", "--duration", "1m")["energy_j"] / 60
    (folder / "factory.yaml").write_text(FACTORY)
    alone = forecast("t.yaml", "--duration", "1m")["energy_j"] / 60
    idle_w = other.idle_w(catalogue().accelerators[other.accelerator])
    assert mixed - alone == pytest.approx(2 * idle_w, rel=1e-6)  # each kind of node draws its own


def test_nodes_stated_by_size_draw_what_their_accelerators_do(folder):
    sized = "{name: own, cpu: 112, memory: 2TB, accelerator: h200-sxm, accelerators: 8, count: 2}"
    (folder / "factory.yaml").write_text(FACTORY.replace("{name: hgx, type: hgx-h200, count: 2}", sized))
    found = forecast("t.yaml", "--duration", "1m")
    assert found["energy_j"] / 60 > 16 * catalogue().accelerators["h200-sxm"].idle_w
    assert any("state a size and no power" in line for line in found["assumptions"])
    assert not any(
        "state a size and no power" in line for line in forecast_of(folder, FACTORY)["assumptions"]
    )


def forecast_of(folder, text):
    (folder / "factory.yaml").write_text(text)
    return forecast("t.yaml", "--duration", "1m")


def test_a_service_without_a_replica_says_why(folder):
    capped = FACTORY.replace("name: here\n", "name: here\npower_cap: 4800 W\n")
    (folder / "factory.yaml").write_text(capped)
    found = forecast("t.yaml", "--duration", "1m")
    assert found["services"][0]["refused"] == found["services"][0]["offered"]
    [said] = [line for line in found["assumptions"] if "never had a replica" in line]
    assert "kW" in said


def test_a_throughput_errs_only_where_a_slower_engine_would_make_less(folder):
    """Twice as slow, an engine with room for thrice its traffic still answers all of it."""
    seen = []
    for rate in (1, 500):
        (folder / "u.yaml").write_text(TRAFFIC.replace("second: 20", f"second: {rate}"))
        one = forecast("u.yaml", "--duration", "1m")["services"][0]
        slower = 1 + one["tpot_p99_ms"]["error"]
        wanted = max(0.0, 1 - one["headroom"] / slower)
        assert one["tokens_per_s"]["error"] == pytest.approx(wanted, abs=1e-5)
        seen.append(one["headroom"] / slower)
    assert seen[0] > 1 > seen[1]
