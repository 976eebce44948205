"""The examples' data: the generator repeats itself everywhere, and the converters read what they should."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenmill.line.job import StationJob
from tokenmill.line.process import run_station

REPOSITORY = Path(__file__).parents[2]
SHARED = Path(os.environ.get("TOKENMILL_SHARED_DATA") or REPOSITORY.parent / "shared" / "data")


def run(*argv: str, seed: str = "0") -> None:
    env = {**os.environ, "PYTHONHASHSEED": seed}
    subprocess.run([sys.executable, *argv], env=env, check=True, capture_output=True, timeout=120)


@pytest.mark.live
def test_the_first_example_is_the_same_under_every_hash_seed(tmp_path: Path) -> None:
    """Hash seeds are of a process, so this needs several."""
    script = str(REPOSITORY / "examples" / "first" / "generate.py")
    made = set()
    for seed in ("0", "1", "4242"):
        path = tmp_path / f"{seed}.jsonl"
        run(script, "--rows", "200", "--seed", "7", "--out", str(path), seed=seed)
        made.add(path.read_bytes())
    assert len(made) == 1


@pytest.mark.live
def test_curate_finds_the_defects_of_the_first_example(
    tmp_path: Path, job_of: Callable[..., StationJob]
) -> None:
    """Runs the script as a user does."""
    script = str(REPOSITORY / "examples" / "first" / "generate.py")
    run(script, "--rows", "1200", "--seed", "7", "--out", str(tmp_path / "tickets.jsonl"))
    intake = run_station(job_of("intake", {"path": "tickets.jsonl"}))
    params = {
        "answer": "json",
        "fields": ["category", "product", "priority", "site"],
        "group_by": "family",
        "split": {"train": 0.8, "validation": 0.05, "test": 0.15},
    }
    curate = run_station(job_of("curate", params, {"intake": intake}))
    assert intake.metrics["quarantined"] > 0
    found = curate.metrics["dropped_by_reason"]
    for reason in (
        "exact duplicate",
        "near duplicate",
        "empty completion",
        "conflicting answers",
        "completion has other fields",
    ):
        assert found[reason] > 0
    assert intake.metrics["rows_in"] == (
        intake.metrics["quarantined"] + curate.metrics["kept"] + curate.metrics["dropped"]
    )
    assert curate.metrics["test_rows"] >= 100
    assert curate.metrics["train_rows"] >= 500


@pytest.mark.live
def test_the_converters_keep_the_intents_that_they_name(tmp_path: Path) -> None:
    """Small files in the form of the public ones."""
    clinc = tmp_path / "train_val.jsonl.gz"
    with gzip.open(clinc, "wt") as file:
        for intent in ("balance", "transfer", "weather", "oos"):
            for split in ("train", "val"):
                said = {"text": f"{intent} {split}", "intent": intent, "domain": "d", "split": split}
                file.write(json.dumps(said) + "\n")
    out = tmp_path / "clinc.jsonl"
    run(str(REPOSITORY / "examples" / "clinc150" / "prepare.py"), str(clinc), "--out", str(out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {(r["label"], r["split"]) for r in rows} == {
        (label, split) for label in ("balance", "transfer") for split in ("train", "test")
    }
    banking = tmp_path / "train.csv.gz"
    with gzip.open(banking, "wt", newline="") as file:
        csv.writer(file).writerows([("text", "category"), ("Where is it?", "card_arrival"), ("x", "unknown")])
    out = tmp_path / "banking.jsonl"
    run(str(REPOSITORY / "examples" / "banking77" / "prepare.py"), str(banking), "--out", str(out))
    assert [json.loads(line)["label"] for line in out.read_text().splitlines()] == ["card arrival"]
    own = tmp_path / "test.csv"
    own.write_text("text,category\nIs it on its way?,card_arrival\n")
    prepare = str(REPOSITORY / "examples" / "banking77" / "prepare.py")
    run(prepare, str(banking), "--test", str(own), "--out", str(out))
    assert [json.loads(line)["split"] for line in out.read_text().splitlines()] == ["train", "test"]


@pytest.mark.live
def test_the_converter_of_calls_keeps_what_was_said_since_the_last_call(tmp_path: Path) -> None:
    service = {
        "service_name": "Weather_1",
        "intents": [
            {
                "name": "GetWeather",
                "description": "w",
                "required_slots": ["city"],
                "optional_slots": {"date": "x"},
            }
        ],
    }
    call = {"service": "Weather_1", "method": "GetWeather", "parameters": {"city": "Oslo"}}
    said = [
        {"role": "user", "content": "Rain in Oslo?"},
        {"role": "assistant", "tool_call": call},
        {"role": "tool", "results": [], "n_results": 0},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "And tomorrow?"},
        {"role": "assistant", "tool_call": call},
    ]
    dialogue = {"id": "1", "services": ["Weather_1"], "messages": said}
    for name, value in (("train_services", service), ("train", dialogue)):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.write(json.dumps(value) + "\n")
    out = tmp_path / "calls.jsonl"
    run(str(REPOSITORY / "examples" / "tool_calls" / "prepare.py"), str(tmp_path), "--out", str(out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["messages"][0]["content"] for row in rows] == ["Rain in Oslo?", "And tomorrow?"]
    made = rows[0]["messages"][-1]["tool_calls"][0]["function"]
    assert made == {"name": "GetWeather", "arguments": '{"city": "Oslo"}'}
    assert rows[0]["tools"][0]["function"]["parameters"]["properties"].keys() == {"city", "date"}


@pytest.mark.live
@pytest.mark.parametrize(
    ("name", "data", "least"),
    [
        ("clinc150", "clinc150", 1200),
        ("banking77", "banking77", 1200),
        ("tool_calls", "sgd_dialogues", 400),
    ],
)
def test_the_converters_read_the_public_files(tmp_path: Path, name: str, data: str, least: int) -> None:
    if not (SHARED / f"ds_{data}").is_dir():
        pytest.skip(f"no public data in {SHARED}; set TOKENMILL_SHARED_DATA")
    out = tmp_path / "rows.jsonl"
    run(str(REPOSITORY / "examples" / name / "prepare.py"), str(SHARED), "--out", str(out))
    assert len(out.read_text().splitlines()) >= least
