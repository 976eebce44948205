"""``tokenmill plan --traffic``: the forecast, its report and sweep, and every question that is refused."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("numpy", reason="the twin's core needs the extra [twin]")

from typer.testing import CliRunner

from tokenmill.cli.app import app
from tokenmill.twin.profiles import profile, to_json

FACTORY = """kind: factory
name: small
---
kind: site
name: here
power_cap: 80 kW
pue: 1.2
nodes: [{name: hgx, type: hgx-h200, count: 4}]
---
kind: tenant
name: acme
projects: [main]
---
kind: price
model: "*"
accelerator_hour: 2 USD
kwh: 0.10 USD
---
kind: model
name: m
source: hf://Qwen/Qwen3-32B
---
kind: deployment
name: chat
model: m
engine: vllm
replicas: 2..4
slots: 64
context: 8192
resources: {accelerators: 4, accelerator: h200-sxm}
engine_args: [--tensor-parallel-size, "4", --quantization, fp8]
"""
TRAFFIC = """kind: traffic
name: noon
duration: 6m
streams:
  - deployment: chat
    requests_per_second: 6
    input: {mean: 800, sigma: 0.7}
    output: {mean: 120, sigma: 0.7}
    targets: {ttft: 2s, tpot: 60ms}
training:
  - {tenant: acme, project: main, jobs: 2, workers: [1], accelerators: 4, work: 2m}
faults: llama3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "factory.yaml").write_text(FACTORY)
    (tmp_path / "noon.yaml").write_text(TRAFFIC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str):
    return CliRunner().invoke(app, ["plan", "factory.yaml", *arguments])


def problems(result) -> list[str]:
    return [f"{p['field']}: {p['message']}" for p in json.loads(result.stdout)["error"]["problems"]]


def test_a_forecast_has_numbers_with_errors_losses_and_a_digest(folder):
    result = call("--traffic", "noon.yaml", "--json", "--report", "out.html")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    [chat] = found["services"]
    assert chat["configuration"] == "qwen3-32b in fp8 as TP4 on NVIDIA H200 SXM"
    assert chat["offered"] == pytest.approx(6 * 360, rel=0.1)
    assert chat["offered"] >= chat["ended"] + chat["refused"]
    assert chat["ended"] == chat["good"] + chat["late"] + chat["slow"]
    assert chat["tpot_p50_ms"]["error"] > 0
    assert 0 < found["oee"]["oee"] <= 1
    assert found["peak_w"] < found["cap_w"] == 80_000
    assert found["cost_micros_per_mtok"] > found["energy_micros_per_mtok"] > 0
    assert found["training"]["jobs"] == 2
    assert len(found["series"]) == 6
    assert found["digest"].startswith("sha256:")


def test_an_hour_costs_what_the_type_does_from_the_last_date_on(folder):
    """Nothing but the price differs, and 16 H200 are there all the time."""
    once = json.loads(call("--traffic", "noon.yaml", "--json").stdout)
    typed = "{h200-sxm: 5 USD, a100-sxm-80gb: 1 USD, '*': 3 USD}"
    later = f"---\n{{kind: price, model: '*', from: 2026-01-01, kwh: 0.1 USD, accelerator_hour: {typed}}}\n"
    (folder / "factory.yaml").write_text(FACTORY + later)
    found = json.loads(call("--traffic", "noon.yaml", "--json").stdout)
    assert found["accelerator_micros_per_mtok"] == pytest.approx(
        2.5 * once["accelerator_micros_per_mtok"], abs=3
    )
    assert found["energy_micros_per_mtok"] == once["energy_micros_per_mtok"]


def test_a_service_that_answered_nothing_has_no_latency(folder):
    """Under a cap that no replica fits; answers of a single token have no time between tokens."""
    (folder / "factory.yaml").write_text(FACTORY.replace("power_cap: 80 kW", "power_cap: 9 kW"))
    result = call("--traffic", "noon.yaml", "--json", "--report", "out.html")
    [chat] = json.loads(result.stdout)["services"]
    names = ("ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms")
    assert (chat["ended"], [chat[name] for name in names]) == (0, [None] * 4)
    shown = call("--traffic", "noon.yaml").stdout
    assert "never had a replica" in shown
    assert " ms" not in shown.partition("qwen3-32b in fp8")[0]
    assert "J per output token" not in shown
    assert "chat: TTFT" not in Path("out.html").read_text()
    swept = call("--traffic", "noon.yaml", "--sweep", "deployment.chat.slots=8,16")
    assert swept.exit_code == 0, swept.output
    assert json.loads(result.stdout)["joules_per_token"] is None
    (folder / "factory.yaml").write_text(FACTORY)
    rows = "".join(f"{second},300,1\n" for second in range(30))
    (folder / "ones.csv").write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    slo = ("--slo", "ttft_p99<2s,tpot_p99<80ms", "--duration", "30s")
    [ones] = json.loads(call("--traffic", "ones.csv", "--json", *slo).stdout)["services"]
    assert ones["ttft_p50_ms"]["value"] > 0
    assert ones["tpot_p50_ms"] is None


def test_head_room_is_that_of_all_streams_together_in_whatever_order(folder):
    """Short answers beside long ones of the same deployment: neither stream's lengths stand for both."""
    short = (
        "  - {deployment: chat, requests_per_second: 2, input: {mean: 100}, output: {mean: 20}, "
        "targets: {ttft: 2s, tpot: 60ms}}\n"
    )
    head, streams, rest = TRAFFIC.partition("streams:\n")
    first, second = streams + short + rest, streams + rest.replace("training:", f"{short}training:")
    found = []
    for text in (first, second):
        (folder / "noon.yaml").write_text(head + text)
        [chat] = json.loads(call("--traffic", "noon.yaml", "--json").stdout)["services"]
        found.append((chat["headroom"], chat["ideal_per_replica"]))
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_the_report_loads_nothing_and_names_every_plot(folder):
    assert call("--traffic", "noon.yaml", "--report", "out.html").exit_code == 0
    page = Path("out.html").read_text()
    assert not re.search(r"<script|<link|<img|@import|https?://", page)
    for title in (
        "Throughput", "chat: TTFT", "chat: TPOT", "Queue", "Power against limit", "Energy per token",
        "Cost per million tokens", "Goodput and losses by cause", "Overall equipment effectiveness",
    ):  # fmt: skip
        assert f"<h2>{title}</h2>" in page
    assert page.count('role="img"') == page.count("aria-label=")
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert "prefers-color-scheme:dark" in page


def test_the_table_says_what_it_rests_on(folder):
    result = call("--traffic", "noon.yaml")
    assert result.exit_code == 0, result.output
    assert "rows that the fit had not seen" in result.stdout
    assert "Power follows work by a fit" in result.stdout
    assert "OEE" in result.stdout
    assert "under noon: 6 minutes, seed 1" in result.stdout


def test_the_same_seed_has_the_same_digest_under_any_hash_seed(folder):
    digests = set()
    for hash_seed in ("0", "31337"):
        command = [
            sys.executable,
            "-c",
            "from tokenmill.cli import main; main()",
            "plan",
            "factory.yaml",
            "--traffic",
            "noon.yaml",
            "--json",
        ]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, check=True
        )
        digests.add(json.loads(done.stdout)["digest"])
    other = json.loads(call("--traffic", "noon.yaml", "--json", "--seed", "2").stdout)["digest"]
    assert len(digests) == 1
    assert other not in digests


def test_a_throughput_question_with_parts_missing_is_refused_with_all_of_them(folder):
    (folder / "noon.yaml").write_text("kind: traffic\nstreams:\n  - deployment: chat\n")
    text = FACTORY.replace(", --quantization, fp8", "").replace("Qwen/Qwen3-32B", "acme/secret")
    (folder / "factory.yaml").write_text(text)
    result = call("--traffic", "noon.yaml", "--json")
    assert result.exit_code == 3
    said = problems(result)
    for field in ("requests_per_second", "input", "output", "targets"):
        assert f"streams[0].{field}: is missing: without it a throughput means nothing" in said
    assert any("does not say its precision" in one for one in said)
    assert any("does not say its model" in one for one in said)
    where = {one["where"].rpartition("/")[2] for one in json.loads(result.stdout)["error"]["problems"]}
    assert where == {"noon.yaml:3:5", "factory.yaml:31:14"}


@pytest.mark.parametrize(
    ("old", "new", "said", "place"),
    [
        ("requests_per_second: 6", "requests_per_second: 0", "0 does not fit", "noon.yaml:6:26"),
        ("requests_per_second: 6", "requests_per_second: .nan", "'.nan' does not fit", "noon.yaml:6:26"),
        ("mean: 120", "mean: nan", "'nan' does not fit", "noon.yaml:8:20"),
        ("ttft: 2s", "ttft: 0s", "must be more than zero", "noon.yaml:9:21"),
        ("deployment: chat", "deployment: char", "there is no deployment 'char'", "noon.yaml:5:17"),
        ("faults: llama3", "faults: always", "'always' is not allowed", "noon.yaml:12:9"),
    ],
)
def test_bad_traffic_names_file_line_and_field(folder, old, new, said, place):
    (folder / "noon.yaml").write_text(TRAFFIC.replace(old, new))
    result = call("--traffic", "noon.yaml", "--json")
    assert result.exit_code == 3, result.output
    error = json.loads(result.stdout)["error"]
    [problem] = error["problems"]
    assert "in the traffic file" in error["message"]
    assert said in problem["message"]
    assert problem["where"] == place


def test_a_field_is_found_by_the_word_for_it(folder):
    (folder / "noon.yaml").write_text(TRAFFIC.replace("requests_per_second: 6", "rate: 6"))
    [problem] = json.loads(call("--traffic", "noon.yaml", "--json").stdout)["error"]["problems"]
    assert (problem["field"], problem["fix"]) == (
        "traffic noon: streams[0].rate",
        "Did you mean requests_per_second?",
    )


def test_a_layout_that_does_not_fit_says_what_would(folder):
    text = FACTORY.replace("Qwen/Qwen3-32B", "deepseek-ai/DeepSeek-R1")
    (folder / "factory.yaml").write_text(text)
    result = call("--traffic", "noon.yaml", "--json")
    [problem] = json.loads(result.stdout)["error"]["problems"]
    assert result.exit_code == 3
    assert problem["message"] == "deepseek-r1 in fp8 as TP4 does not fit NVIDIA H200 SXM"
    assert "The smallest layout that fits is" in problem["fix"]


def test_an_unknown_accelerator_is_refused_in_its_place(folder):
    (folder / "factory.yaml").write_text(FACTORY.replace("h200-sxm}", "h2000}"))
    result = call("--traffic", "noon.yaml", "--json")
    *_, problem = json.loads(result.stdout)["error"]["problems"]
    assert problem["where"].endswith("factory.yaml:30:43")
    assert result.exit_code == 3
    assert "h200-sxm" in problem["fix"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"4", --quant', '"2", --quant', "TP2 takes 2 accelerators, a replica has 4"),
        ("context: 8192", "context: 9000000", "does not fit NVIDIA H200 SXM"),
    ],
)
def test_a_layout_that_does_not_fit_is_named_with_its_line(folder, old, new, said):
    assert old in FACTORY
    # A file's hundredth line must not become an emoji.
    text = FACTORY.replace("name: chat", "\n" * 69 + "name: chat").replace(old, new)
    (folder / "factory.yaml").write_text(text)
    result = call("--traffic", "noon.yaml")
    assert result.exit_code == 3
    assert "factory.yaml:100:14: deployment chat: engine_args: " in result.output
    assert said in result.output


def test_a_trace_by_itself_needs_targets(folder):
    rows = "".join(f"{n * 0.4},500,{40 + n}\n" for n in range(60))
    (folder / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    refused = call("--traffic", "t.csv", "--json")
    assert problems(refused) == ["streams[0].targets: is missing: without it a throughput means nothing"]
    done = call("--traffic", "t.csv", "--slo", "ttft_p99<2s,tpot_p99<60ms", "--duration", "2m", "--json")
    assert done.exit_code == 0, done.output
    [chat] = json.loads(done.stdout)["services"]
    assert chat["offered"] == pytest.approx(120 * 2.5, abs=3)
    (folder / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0,5,6\n1,x,6\n")
    broken = call("--traffic", "t.csv", "--slo", "ttft_p99<2s,tpot_p99<60ms", "--json")
    error = json.loads(broken.stdout)["error"]
    assert (error["where"], broken.exit_code) == ("t.csv:3", 10)
    assert "ContextTokens" in error["message"]
    wrong = call("--traffic", "t.csv", "--slo", "fast", "--json")
    assert wrong.exit_code == 2


SWEEP = ("--traffic", "noon.yaml", "--duration", "1m", "--out", "s.jsonl", "--json")


def test_a_sweep_goes_over_any_field_and_does_no_finished_point_again(folder, monkeypatch):
    grid = (
        "--sweep",
        "deployment.chat.slots=8,32",
        "--sweep",
        "traffic.streams.chat.requests_per_second=2,6",
    )
    done = call(*SWEEP, *grid)
    assert done.exit_code == 0, done.output
    points = json.loads(done.stdout)["points"]
    assert [tuple(one["point"].values()) for one in points] == [
        ("8", "2"),
        ("8", "6"),
        ("32", "2"),
        ("32", "6"),
    ]
    assert points[1]["services"][0]["offered"] > points[0]["services"][0]["offered"]
    assert len(Path("s.jsonl").read_text().splitlines()) == 4

    def never(*_):
        raise AssertionError("a finished point was done again")

    monkeypatch.setattr("tokenmill.cli.sweeping.outlook_of", never)
    again = call(*SWEEP, *grid)
    assert json.loads(again.stdout)["points"] == points


def test_an_interrupted_sweep_keeps_what_was_done(folder, monkeypatch):
    from tokenmill.cli import sweeping

    real, calls = sweeping.outlook_of, []

    def stops(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr("tokenmill.cli.sweeping.outlook_of", stops)
    grid = ("--sweep", "deployment.chat.slots=8,16,32")
    stopped = call(*SWEEP, *grid)
    assert stopped.exit_code == 130
    assert "1 of 3 points are in s.jsonl" in stopped.stderr
    with Path("s.jsonl").open("a") as file:
        file.write('{"key": "cut off')
    calls.append(())
    finished = call(*SWEEP, *grid)
    assert len(json.loads(finished.stdout)["points"]) == 3
    assert len(calls) == 5
    assert len(Path("s.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("sweep", "code", "said"),
    [
        ("slots", 2, "is no sweep"),
        ("deployment.chta.slots=1", 2, "there is no document"),
        ("traffic.streams.7.swing=0.1", 2, "has no item 7"),
        ("deployment.chat.slots=0", 3, "does not fit the factory file"),
        ("deployment.chat.slot=4", 3, ""),
    ],
)
def test_a_sweep_of_what_is_not_there_is_refused(folder, sweep, code, said):
    result = call(*SWEEP, "--sweep", sweep)
    assert result.exit_code == code, result.output
    if code == 2:
        assert said in json.loads(result.stdout)["error"]["message"]


def slower(folder, factor):
    """A profile file by which every engine takes some ``factor`` times as long, or longer."""
    known = profile()
    by, slow = math.log(factor), ("host_s", "layer_s", "reduce_s", "exchange_s")
    rates = ("compute", "memory", "expert_compute", "expert_memory", "attention", "prefill_attention", "link")
    base = {**known.base, **{knob: known.base[knob] + by for knob in slow}}
    base |= {knob: known.base[knob] - 4 * by for knob in rates}
    path = folder / f"slower-{factor}.json"
    path.write_text(to_json(replace(known, base=base, source="my rows")))
    return str(path)


def test_a_profile_of_ones_own_rows_answers_for_the_engines(folder):
    shipped, mine = (
        json.loads(call("--traffic", "noon.yaml", "--duration", "2m", "--json", *more).stdout)
        for more in ((), ("--profile", slower(folder, 3)))
    )
    before, after = (one["services"][0]["tpot_p50_ms"]["value"] for one in (shipped, mine))
    assert after > 2.5 * before
    assert any("fitted to my rows" in said for said in mine["assumptions"])
    assert not any("fitted to" in said for said in shipped["assumptions"])
    changed, same = (
        json.loads(call("--json", *more).stdout)["forecast"]["deployments"][0]["tpot_p50_ms"]["value"]
        for more in (("--profile", slower(folder, 3)), ())
    )
    assert changed > 2.5 * same
    for text in ("{}", None):
        path = folder / "broken.json"
        path.unlink(missing_ok=True) if text is None else path.write_text(text)
        refused = call("--traffic", "noon.yaml", "--profile", "broken.json", "--json")
        assert refused.exit_code == 10, refused.output
        assert "broken.json" in json.loads(refused.stdout)["error"]["message"]


def test_a_sweep_under_another_profile_is_done_anew(folder):
    sweep = (*SWEEP, "--sweep", "deployment.chat.slots=8")
    [one] = json.loads(call(*sweep).stdout)["points"]
    [other] = json.loads(call(*sweep, "--profile", slower(folder, 3)).stdout)["points"]
    assert other["services"][0]["tpot_p50_ms"]["value"] > one["services"][0]["tpot_p50_ms"]["value"]


def test_what_needs_traffic_says_so(folder):
    result = call("--sweep", "deployment.chat.slots=1,2", "--json")
    assert result.exit_code == 2
    assert "--sweep needs --traffic" in json.loads(result.stdout)["error"]["message"]


def test_what_a_deployment_promises_is_the_target_where_none_is_written(folder):
    rows = "".join(f"{n * 0.4},500,{40 + n}\n" for n in range(60))
    (folder / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    promised = FACTORY.replace("context: 8192\n", "context: 8192\nslo: {ttft: 1500ms, tpot: 45ms}\n")
    (folder / "factory.yaml").write_text(promised)
    done = call("--traffic", "t.csv", "--duration", "2m", "--json")
    assert done.exit_code == 0, done.output
    [chat] = json.loads(done.stdout)["services"]
    assert (chat["target_ttft_ms"], chat["target_tpot_ms"]) == (1500, 45)
    half = FACTORY.replace("context: 8192\n", "context: 8192\nslo: {ttft: 1500ms}\n")
    (folder / "factory.yaml").write_text(half)
    refused = call("--traffic", "t.csv", "--json")
    assert problems(refused) == ["streams[0].targets: is missing: without it a throughput means nothing"]
