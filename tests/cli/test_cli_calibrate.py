"""``calibrate`` on a small table of rows, and what it says when it cannot."""

import json

import pytest
from typer.testing import CliRunner

from tokenmill.cli.app import app
from tokenmill.cli.verbs import calibrate
from tokenmill.domain.errors import DataError, UsageError
from tokenmill.spec.factory_file import load_types
from tokenmill.twin.bench_rows import read_serving
from tokenmill.twin.fit import foretell
from tokenmill.twin.profiles import from_json, profile

HEADER = (
    "backend,backend_version,model_path,system,precision,mode,isl,osl,batch_size,tp_size,"
    "silicon_ttft_ms,silicon_tpot_ms\n"
)


def table(path, rows=(), tpot_ms=9.0):
    lines = [
        f"vllm,0.19.0,Llama-3.1-8B,h100_sxm,fp8,agg,{inputs},256,{batch},{tensor},60,{tpot_ms + batch / 8}"
        for inputs in (512, 1024, 2048)
        for tensor in (1, 2)
        for batch in (1, 8, 32)
    ]
    path.write_text(HEADER + "\n".join([*lines, *rows]) + "\n")
    return path


def run(*words):
    return CliRunner().invoke(app, ["calibrate", *map(str, words)])


def test_own_rows_bring_the_shipped_profile_up_to_date(tmp_path):
    rows, out = table(tmp_path / "mine.csv"), tmp_path / "mine.json"
    found = run(rows, "--out", out, "--json")
    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)
    assert (said["rows"], said["unstated"], said["unknown"]) == (18, 0, {})
    assert {score["name"] for score in said["scores"]} == {"dense tpot", "dense ttft", "dense throughput"}
    made = from_json(out.read_text(), "mine.json")
    assert made.source == "mine.csv"
    assert made.offsets["model:llama-3.1-8b"] != profile().offsets["model:llama-3.1-8b"]
    shown = run(rows)
    assert shown.exit_code == 0
    assert "dense tpot" in shown.stdout


def test_a_wrong_row_is_named_and_an_unknown_model_is_left_out_when_asked(tmp_path):
    rows = table(tmp_path / "mine.csv", ["vllm,0.19.0,someone/new,h100_sxm,fp8,agg,512,256,1,1,60,9"])
    refused = run(rows)
    assert refused.exit_code == DataError.exit_code
    assert "mine.csv:20: model_path is 'someone/new'" in refused.output.replace("\n", "")
    said = json.loads(run(rows, "--skip-unknown", "--json").stdout)
    assert said["unknown"] == {"someone/new": 1}
    assert said["coverage"] == round(18 / 19, 4)
    assert "94.7% of the rows" in run(rows, "--skip-unknown").stdout


def test_rows_that_contradict_each_other_are_named_with_how_far_apart_they_are(tmp_path):
    """The same configuration thrice; another version, batch or length is another configuration."""
    rows = table(
        tmp_path / "mine.csv",
        [
            "vllm,0.19.0,Llama-3.1-8B,h100_sxm,fp8,agg,512,256,8,1,61,50",  # 10 ms in line 3
            "vllm,0.19.0,Llama-3.1-8B,h100_sxm,fp8,agg,512,256,8,1,300,12",
            "vllm,0.18.0,Llama-3.1-8B,h100_sxm,fp8,agg,512,256,8,1,60,90",
            "vllm,0.19.0,Llama-3.1-8B,h100_sxm,fp8,agg,512,256,9,1,60,90",
            "vllm,0.19.0,Llama-3.1-8B,h100_sxm,fp8,agg,512,999,8,1,60,90",
        ],
    )
    tpot, ttft = json.loads(run(rows, "--json").stdout)["contradictions"]
    assert [row.rpartition("/")[2] for row in tpot["rows"]] == ["mine.csv:3", "mine.csv:20"]
    assert (tpot["quantity"], tpot["ms"], tpot["times"]) == ("tpot", [10, 50], 5)
    assert [row.rpartition("/")[2] for row in ttft["rows"]] == ["mine.csv:3", "mine.csv:21"]
    assert (ttft["quantity"], ttft["ms"], ttft["times"]) == ("ttft", [60, 300], 5)
    shown = run(rows).stdout.replace("\n", " ")
    assert "2 contradictions" in shown
    assert "mine.csv:20 measured the same configuration and differ 5.0 times in TPOT: 10 and 50 ms" in shown
    assert "contradict" not in run(table(tmp_path / "calm.csv")).stdout


def test_a_profile_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    rows, out = table(tmp_path / "mine.csv"), tmp_path / "mine.json"
    out.write_text("the one before")

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fails)
    assert run(rows, "--out", out).exit_code != 0
    assert out.read_text() == "the one before"


def test_without_rows_or_a_folder_to_write_to_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "find_spec", lambda name: None)
    nothing = run()
    assert nothing.exit_code == UsageError.exit_code
    assert "aiconfigurator-core" in nothing.output
    out = run(table(tmp_path / "mine.csv"), "--out", tmp_path / "no" / "mine.json")
    assert out.exit_code == UsageError.exit_code
    assert "mkdir -p" in out.output


@pytest.mark.parametrize("rows", [(), ("vllm,0.19.0,llama-3.1-8b,h100_sxm,fp8,agg,512,256,,1,60,9",)])
def test_a_table_that_states_nothing_is_refused(tmp_path, rows):
    path = tmp_path / "empty.csv"
    path.write_text(HEADER + "\n".join(rows) + "\n")
    assert run(path).exit_code == DataError.exit_code


def test_few_rows_state_no_nine_of_ten_and_rows_far_off_are_doubted(tmp_path):
    few = "vllm,0.19.0,Llama-3.1-8B,h100_sxm,fp8,agg,1024,256,{batch},1,{ttft},{tpot}"
    near, far = tmp_path / "near.csv", tmp_path / "far.csv"
    far.write_text(HEADER + few.format(batch=8, ttft=60000, tpot=6500) + "\n")  # microseconds
    [foretold] = foretell(read_serving(far).rows, profile())
    near.write_text(
        HEADER + few.format(batch=8, ttft=foretold.ttft_s * 1e3, tpot=foretold.tpot_s * 1.1e3) + "\n"
    )
    out = tmp_path / "far.json"
    kept = profile().stated("dense_tpot").at(0.9)
    said = json.loads(run(near, "--json").stdout)
    assert [score["p90"] for score in said["scores"]] == [None, None, None]
    assert said["warnings"][0] == (
        "1 row of dense TPOT: too few for an error of nine in ten; "
        f"the profile keeps the {kept:.0%} that was stated before."
    )
    assert not any("units" in one for one in said["warnings"])
    shown = run(far, "--out", out).stdout
    assert "1 row of dense TPOT: most lie more than twice as far off" in shown
    assert "check their units" in shown
    assert from_json(out.read_text(), "far.json").stated("dense_tpot").at(0.9) == kept
    enough = table(tmp_path / "mine.csv")
    assert not any("too few" in one for one in json.loads(run(enough, "--json").stdout)["warnings"])


def test_a_fresh_fit_of_few_rows_states_no_error(tmp_path):
    rows, out = tmp_path / "few.csv", tmp_path / "few.json"
    lines = [
        f"vllm,0.19.0,Llama-3.1-8B,h100_sxm,fp8,agg,{n},256,8,{tensor},60,9"
        for n in (512, 1024) for tensor in (1, 2)
    ]  # fmt: skip
    rows.write_text(HEADER + "\n".join(lines) + "\n")
    shown = run(rows, "--fresh", "--out", out).stdout
    assert "4 rows of dense TPOT: too few" in shown
    assert "the profile states none" in shown
    asked = {
        "--model": "llama-3.1-8b", "--precision": "fp8", "--inputs": "512", "--outputs": "256",
        "--engine": "vllm", "--target": "10k tok/s", "--slo": "ttft_p99<9s,tpot_p99<90ms",
        "--rack": "dgx-h100-x4", "--profile": str(out),
    }  # fmt: skip
    words = [word for option in asked.items() for word in option]
    found = CliRunner().invoke(app, ["plan", "--size", *words])
    assert "states no error" in found.stdout, found.output


OURS = """
kind: catalogue
name: ours
accelerators:
  our-x1: {name: X1, architecture: ours, vendor: Ours, source: a test, memory: 96 GB, memory_rate: 3 TB/s,
           bf16: 800 TFLOP/s, fp8: 1600 TFLOP/s, link: 400 GB/s, idle_power: 90 W, max_power: 700 W,
           hour_price: 1 USD/h}
nodes:
  x1-server: {source: a test, accelerator: our-x1, accelerators: 8, cpu: 128 cores, memory: 2048 GB,
              nvlink: node, overhead_power: 2500 W}
racks:
  x1-x4: {source: a test, node: x1-server, nodes: 4, max_power: 50 kW}
models:
  our-9b: {source: a test, layers: 36, hidden: 4096, heads: 32, kv_heads: 8, head_dim: 128,
           intermediate: 14336, vocabulary: 128256}
"""


def test_rows_of_own_types_are_fitted_and_what_they_say_is_what_a_size_rests_on(tmp_path):
    """A twice slower chip than foretold: the fit of its rows says so, and sizing by that profile does."""
    ours, rows, out = (tmp_path / name for name in ("ours.yaml", "mine.csv", "mine.json"))
    ours.write_text(OURS)
    text = table(rows).read_text().replace("h100_sxm", "our-x1").replace("Llama-3.1-8B", "we/Our-9B-Instruct")
    rows.write_text(text)
    unknown = run(rows)
    assert unknown.exit_code == DataError.exit_code
    assert "mine.csv:2: model_path is 'we/Our-9B-Instruct'" in unknown.output.replace("\n", "")
    assert "-f FILE" in unknown.output
    own = load_types([ours], {})
    foretold = foretell(read_serving(rows, own).rows, profile())
    slower = [
        HEADER.strip(),
        *(
            f"vllm,0.19.0,we/Our-9B-Instruct,our-x1,fp8,agg,{one.row.inputs},{one.row.outputs},"
            f"{one.row.batch},{one.row.layout.tensor},{one.ttft_s * 2000},{one.tpot_s * 2000}"
            for one in foretold
        ),
    ]
    rows.write_text("\n".join(slower) + "\n")
    found = run(rows, "-f", ours, "--out", out, "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["unknown"] == {}

    def sized(*more):
        words = "--model our-9b --precision fp8 --inputs 1024 --outputs 256 --engine vllm --rack x1-x4 --json"
        asked = [*words.split(), "--target", "1M tok/s", "--slo", "ttft_p99<5s,tpot_p99<100ms"]
        size = CliRunner().invoke(app, ["plan", "--size", "-f", str(ours), *asked, *map(str, more)])
        assert size.exit_code == 0, size.output
        return min(json.loads(size.stdout)["answers"], key=lambda one: one["racks"])

    guessed, known = sized(), sized("--profile", out)
    assert (guessed["measured"], known["measured"]) == (False, True)
    assert known["racks"] > 1.3 * guessed["racks"]
    assert known["error"] < guessed["error"]


def test_a_misspelt_own_type_is_named_with_what_was_meant(tmp_path):
    ours, rows = tmp_path / "ours.yaml", tmp_path / "mine.csv"
    ours.write_text(OURS)
    rows.write_text(table(rows).read_text().replace("h100_sxm", "our-x2"))
    refused = run(rows, "-f", ours).output.replace("\n", "")
    assert "mine.csv:2: system is 'our-x2'" in refused
    assert "our-x1" in refused.partition("Did you mean")[2]
    ours.write_text(OURS.replace("96 GB", "96 bushels"))
    assert "ours.yaml:5:80: catalogue ours: accelerators.our-x1.memory" in run(
        rows, "-f", ours
    ).output.replace("\n", "")
