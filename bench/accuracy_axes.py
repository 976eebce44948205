"""What ``accuracy`` scores: measured rows of one axis, and what fits without a row's group say of it.

Each function reads a table of the shared data and returns its axes. No row is dropped for being wrong; rows
that no model here answers are counted. Several runs of one submitted system count once, by their median.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from tokenmill.spec.catalogue import catalogue
from tokenmill.twin import training_step, tuned
from tokenmill.twin.bench_rows import read_serving
from tokenmill.twin.fit import fit_profile
from tokenmill.twin.iteration import WEIGHT_BYTES
from tokenmill.twin.profiles import ELSEWHERE, OTHER_MODEL

SOFT = {"loss": "soft_l1", "f_scale": 0.1}
Array = Any


@dataclass(frozen=True)
class Axis:
    """``bar`` is for the mean, or the median where ``by`` says so; None where none was set. The picture has
    those that are ``drawn``."""

    name: str
    measured: Array
    foretold: Array
    asked: int
    bar: float | None = None
    by: str = "mean"
    drawn: bool = True

    @property
    def errors(self) -> Array:
        return self.foretold / self.measured - 1


def left_out(groups: Array, foretell: Callable[[Array, Array], Array]) -> Array:
    """Each row foretold by ``foretell(rows fitted, rows asked)`` (masks) without its group."""
    found = np.full(len(groups), np.nan)
    for group in sorted(set(groups)):
        asked = groups == group
        found[asked] = foretell(~asked, asked)
    return found


def folds(groups: Sequence[str], count: int = 5) -> Array:
    """A fold for each row; rows of one group share it."""
    number = {name: index % count for index, name in enumerate(sorted(set(groups)))}
    return np.array([number[name] for name in groups])


# --- serving ---

BARS = {"dense tpot": (0.08, "mean"), "dense throughput": (0.08, "mean"), "dense ttft": (0.15, "median"),
        "moe tpot": (0.15, "median")}  # fmt: skip
LEFT_OUT = {"": "", ELSEWHERE: ", accelerator left out", OTHER_MODEL: ", model left out"}


def serving(data: Path) -> list[Axis]:
    """The cross-validation of ``tokenmill calibrate --fresh``: by sweep, then by accelerator and model."""
    table = read_serving(data / "perf_silicon_e2e" / "ttft_tpot.csv.gz", skip_unknown=True)
    _, foretold = fit_profile(table.rows, "bench/accuracy.py")
    unanswered = sum(table.unknown.values())
    found = []
    for of, what in LEFT_OUT.items():
        for kind in ("dense", "moe"):
            rows = [one for one in foretold[of] if one.row.dense == (kind == "dense")]
            for name in ("tpot", "ttft", "throughput"):
                kept = [one for one in rows if name == "tpot" or not one.row.decode_only]
                pairs = np.array([_pair(one, name) for one in kept])
                bar, by = (None, "mean") if of else BARS.get(f"{kind} {name}", (None, "mean"))
                asked = len(kept) + unanswered * (kind == "moe")
                found.append(Axis(f"{kind} {name}{what}", pairs[:, 0], pairs[:, 1], asked, bar, by, not of))
    return found


def _pair(one: Any, name: str) -> tuple[float, float]:
    row = one.row
    if name == "tpot":
        return row.tpot_s, one.tpot_s
    if name == "ttft":
        return row.ttft_s, one.ttft_s
    return 1 / (row.ttft_s + (row.outputs - 1) * row.tpot_s), 1 / (
        one.ttft_s + (row.outputs - 1) * one.tpot_s
    )


# --- power ---

SWEEP = ("model_id", "gpu_model", "num_gpus")
PROMPTS = {"lm-arena-chat": 150, "gpqa": 250, "image-chat": 1200, "video-chat": 4000, "sourcegraph-fim": 300}
"""Mean prompt tokens by task, which the table does not state: assumed."""

PLAIN = {"bfloat16": "bf16", "fp8": "fp8", "mxfp4": "fp4"}
EXPERTS = {"480B": (160, 8), "Scout": (16, 1), "Maverick": (128, 1), "235B": (128, 8), "30B-A3B": (128, 8),
           "DeepSeek": (256, 8), "gpt-oss-120b": (128, 4), "gpt-oss-20b": (32, 4)}  # fmt: skip


def power(data: Path) -> list[Axis]:
    """Power of GPUs at a measured rate of work, and of servers with eight of them; fits leave out whole
    sweeps (model, GPU, number), or the server's run."""
    rows = _gpu_power(data)
    groups = folds([f"{a}|{b}|{c}" for a, b, c in zip(*(rows[c] for c in SWEEP), strict=True)])
    foretold = left_out(groups, lambda fit, ask: _watts(_fit_gpu(rows[fit]), rows[ask]))
    gpu = Axis("GPU power, ML.ENERGY", rows.watts.to_numpy(), foretold, len(rows), 0.07)
    servers, asked = _servers(data)
    shares = _fit_gpu(rows)
    inner = 8 * _watts(shares, servers)
    base = left_out(
        servers.run.to_numpy(), lambda fit, ask: _wall(_fit_wall(servers[fit], inner[fit]), inner[ask])
    )
    return [gpu, Axis("server power, MLPerf 8 x B200", servers.wall.to_numpy(), base, asked, 0.07)]


def power_constants(data: Path) -> dict[str, float]:
    rows, (servers, _) = _gpu_power(data), _servers(data)
    shares = _fit_gpu(rows)
    wall = _fit_wall(servers, 8 * _watts(shares, servers))
    return dict(zip(("RUNNING_SHARE", "MEMORY_SHARE", "COMPUTE_SHARE", "SERVER_BASE_W", "SERVER_LOSS"),
                    [*map(float, shares), *map(float, wall)], strict=True))  # fmt: skip


def _gpu_power(data: Path) -> pd.DataFrame:
    rows = pd.read_csv(data / "perf_mlenergy" / "llm_energy.csv.gz")
    kinds = catalogue().accelerators
    found = []
    for one in rows.itertuples():
        kind, precision = kinds[f"{one.gpu_model.lower()}-sxm"], PLAIN[one.weight_precision]
        active, whole = one.activated_params_billions * 1e9, one.total_params_billions * 1e9
        rate, batch = one.output_throughput_tokens_per_sec, one.avg_batch_size
        prompt = PROMPTS[one.task]
        experts, chosen = next((v for name, v in EXPERTS.items() if name in one.model_id), (1, 1))
        read = min(whole, active + (1 - (1 - chosen / experts) ** batch) * (whole - active))
        model = _catalogued(one.model_id)
        cache = batch * (prompt + one.avg_output_len / 2) * (2 * model.kv_token_values if model else 0)
        peak = {"bf16": kind.tflops_bf16, "fp8": kind.tflops_fp8, "fp4": kind.tflops_fp4 or kind.tflops_bf16}
        moved = (read * WEIGHT_BYTES[precision] + cache) * rate / batch
        flops = 2 * active * rate * (1 + prompt / one.avg_output_len)
        found.append((one.avg_power_watts / one.num_gpus, moved / one.num_gpus / (kind.memory_gb_s * 1e9),
                      flops / one.num_gpus / (peak[precision] * 1e12), kind.idle_w, kind.max_w))  # fmt: skip
    rows[["watts", "memory", "compute", "idle", "most"]] = found
    return rows


def _catalogued(name: str) -> Any:
    plain = name.lower().split("/")[-1].replace("-vl", "").replace("v3.1", "v3")
    known = catalogue().models
    return next((known[one] for one in sorted(known, key=len, reverse=True) if one in plain), None)


def _watts(shares: Array, rows: pd.DataFrame) -> Array:
    share = np.minimum(1.0, shares[0] + shares[1] * rows.memory + shares[2] * rows.compute)
    return (rows.idle + (rows.most - rows.idle) * share).to_numpy()


def _fit_gpu(rows: pd.DataFrame) -> Array:
    return least_squares(
        lambda x: np.log(_watts(x, rows) / rows.watts.to_numpy()), [0.4, 0.4, 1.0], bounds=(0, 3), **SOFT
    ).x


def _wall(wall: Array, inner: Array) -> Array:
    return wall[0] + (1 + wall[1]) * inner


def _fit_wall(servers: pd.DataFrame, inner: Array) -> Array:
    """Base and loss from runs under load and, before them, idle with all GPUs on."""
    idle = servers.idle_wall.to_numpy()
    return least_squares(
        lambda x: np.concatenate([np.log(_wall(x, inner) / servers.wall.to_numpy()),
                                  np.log(_wall(x, 8 * servers.idle.to_numpy()) / idle)]),
        [1000, 0.1], bounds=([0, 0], [5000, 1]), x_scale=[1000, 0.1],
    ).x  # fmt: skip


WHISPER_FLOPS, WHISPER_SAMPLES_S = 2.4e12, 650.0
"""Of a 30 s sample: encoder over 1,500 frames and 67 decoded tokens (Whisper large v3); samples/s of the
server, as offered, since ``result`` of this row counts tokens."""


def _servers(data: Path) -> tuple[pd.DataFrame, int]:
    """Mean wall watts in the scored window; work done at the median rate of 8 x B200 rows of that model."""
    samples = pd.read_parquet(data / "power_mlperf_server" / "wall_power_1hz.parquet")
    samples = samples[samples.phase == "test"]
    results = mlperf(data)
    kind = catalogue().accelerators["b200-sxm"]
    found, asked = [], 0
    for run, one in samples.groupby("run"):
        asked += 1
        window = one[one.in_window == 1]
        _, model, scenario = run.split("__")
        if model == "whisper":
            rate, memory = WHISPER_SAMPLES_S / 8, 0.0
            compute = rate * WHISPER_FLOPS / (kind.tflops_bf16 * 1e12)
        elif window.empty or model not in LOADS:
            continue
        else:
            alike = results[(results.model == model) & (results.kind == "b200-sxm")]
            rate = alike[alike.scenario == scenario].each.median()
            tpot = alike[alike.scenario == "Server"].tpot_mean_ms.median() / 1000
            known, load = catalogue().models[MODELS[model]], LOADS[model]
            moved = known.parameters * WEIGHT_BYTES["fp4"] / tpot
            moved += rate * (load.inputs + load.outputs / 2) * known.kv_token_values
            memory = moved / (kind.memory_gb_s * 1e9)
            compute = (
                rate * (1 + load.inputs / load.outputs) * 2 * known.parameters / (kind.tflops_fp4 * 1e12)
            )
        before = one[one.t_s < window.t_s.min()].watts
        found.append(
            (run, window.watts.mean(), before.quantile(0.1), memory, compute, kind.idle_w, kind.max_w)
        )
    names = ["run", "wall", "idle_wall", "memory", "compute", "idle", "most"]
    return pd.DataFrame(found, columns=names), asked


# --- MLPerf Inference ---

MODELS = {"llama2-70b-99": "llama-2-70b", "llama3.1-405b": "llama-3.1-405b", "llama3.1-8b": "llama-3.1-8b",
          "deepseek-r1": "deepseek-r1", "mixtral-8x7b": "mixtral-8x7b"}  # fmt: skip
LOADS = {
    "llama2-70b-99": tuned.Load(294, 283.5, 1024), "llama3.1-405b": tuned.Load(9428, 652, 2000),
    "llama3.1-8b": tuned.Load(778, 129, 128), "deepseek-r1": tuned.Load(800, 3716, 20000),
    "mixtral-8x7b": tuned.Load(300, 146, 1024),
}  # fmt: skip
"""Outputs are those of the logs; mean inputs and longest answers of the benchmark's data sets, rounded."""

LIMITS = {
    ("llama2-70b-99", "Server"): 0.2, ("llama2-70b-99", "Interactive"): 0.04,
    ("llama3.1-405b", "Server"): 0.175, ("llama3.1-405b", "Interactive"): 0.08,
    ("llama3.1-8b", "Server"): 0.1, ("llama3.1-8b", "Interactive"): 0.03,
    ("deepseek-r1", "Server"): 0.08, ("mixtral-8x7b", "Server"): 0.2,
}  # fmt: skip
KINDS = {"GB200": "b200-gb200", "GB300": "b300-gb300", "H200-SXM": "h200-sxm", "H100-SXM": "h100-sxm",
         "B200-SXM": "b200-sxm", "B300-SXM": "b300-sxm"}  # fmt: skip
TUNED = {  # start, how far a fit may move it (log), upper bound
    "compute": (0.6, 0.3, 0.9), "fp4": (0.8, 0.3, 1.0), "width": (1500, 0.7, 2e4),
    "expert_compute": (0.3, 0.5, 0.9), "memory": (0.85, 0.15, 0.95), "expert_memory": (0.7, 0.3, 0.95),
    "attention": (0.7, 0.3, 0.95), "prefill_attention": (0.5, 0.3, 0.9), "layer_s": (1e-5, 0.7, 1e-3),
    "link": (0.5, 0.5, 0.95), "exchange_s": (1e-4, 0.7, 1e-2), "barrier": (0.3, 0.2, 2.0),
    "reserve": (0.4, 0.5, 1.0), "headroom": (0.8, 0.2, 0.95), "arrivals": (0.95, 0.1, 1.0),
}  # fmt: skip
PULL = 0.1


def mlperf(data: Path) -> pd.DataFrame:
    """LLM rows of NVIDIA accelerators; one run that is listed under two accuracy targets counts once."""
    rows = pd.read_csv(data / "perf_mlperf_inference" / "results.csv.gz")
    rows["model"] = rows.model.str.replace("99.9", "99")
    rows = rows[rows.model.isin(MODELS) & rows.accelerator.astype(str).str.contains("NVIDIA")]
    rows = rows.drop_duplicates(["submitter", "system", "model", "scenario", "result"]).copy()
    rows["kind"] = [next((v for k, v in KINDS.items() if k in name), "") for name in rows.accelerator]
    rows["gpus"] = rows.accelerators_per_node * rows.nodes
    rows["each"] = rows.result / rows.gpus
    return rows


def racks(data: Path) -> list[Axis]:
    """Closed division results per accelerator; fits leave out all rows of a row's submitter."""
    rows = mlperf(data)
    known = rows[rows.kind != ""]
    each = known.each.to_numpy()
    rack = known.kind.str.contains("gb").to_numpy()
    foretold = left_out(
        known.submitter.to_numpy(), lambda fit, ask: _rates(fit_tuned(known[fit]), known[ask])
    )
    unseen = _rates(fit_tuned(known[~rack]), known[rack])
    of_rack = int(rows.accelerator.str.contains("GB200|GB300").sum())
    return [
        Axis("GB200/GB300 rows, MLPerf Inference", each[rack], foretold[rack], of_rack, 0.15),
        Axis("the same, no such row fitted", each[rack], unseen, of_rack, 0.15),
        Axis("other NVIDIA rows, MLPerf Inference", each[~rack], foretold[~rack], len(rows) - of_rack),
    ]


def fit_tuned(rows: pd.DataFrame) -> tuned.Tuned:
    """Least squares of log errors, each constant held near its start by a prior."""
    names = list(TUNED)
    start, spread, most = (np.array([TUNED[name][i] for name in names]) for i in range(3))
    first, each = np.log(start), rows.each.to_numpy()

    def errors(x: Array) -> Array:
        return np.concatenate([np.log(_rates(_tuned(names, x), rows) / each), PULL * (x - first) / spread])

    top = np.log(most)
    found = least_squares(errors, first, bounds=(top - 12, top), diff_step=0.01, max_nfev=25, **SOFT)
    return _tuned(names, found.x)


def _tuned(names: Sequence[str], x: Array) -> tuned.Tuned:
    return tuned.Tuned(**dict(zip(names, map(float, np.exp(x)), strict=True)))


def _rates(constants: tuned.Tuned, rows: pd.DataFrame) -> Array:
    known: dict[tuple[Any, ...], float] = {}
    asked = list(zip(rows.model, rows.kind, rows.weight_type, rows.scenario, rows.gpus, strict=True))
    keys = [(m, k, w, s, int(min(g, 72 if "gb" in k else 8))) for m, k, w, s, g in asked]
    for key in set(keys):
        model, kind, precision, scenario, most = key
        load = replace(LOADS[model], tpot_s=LIMITS.get((model, scenario), 0.0))
        accelerator = catalogue().accelerators[kind]
        architecture = catalogue().models[MODELS[model]]
        known[key] = tuned.best_rate(architecture, accelerator, precision, most, load, constants).tokens_s
    return np.array([known[key] for key in keys])


# --- training ---

JOBS = {"llama2_70b_lora": ("llama-2-70b", True), "llama31_8b": ("llama-3.1-8b", False),
        "llama31_405b": ("llama-3.1-405b", False)}  # fmt: skip
SEQUENCE = 8192
TRAINERS = {"(GB200)": "b200-gb200", "(GB300)": "b300-gb300", "B200-SXM": "b200-sxm", "B300-SXM": "b300-sxm",
            "H100": "h100-sxm", "H200": "h200-sxm", "MI300X": "mi300x", "MI325X": "mi325x",
            "MI350X": "mi350x", "MI355X": "mi355x"}  # fmt: skip
RATES = {"compute": (0.45, 1), "fp4": (0.8, 0.3), "attention": (0.5, 0.3), "activation_bytes": (60, 1),
         "bubble": (3, 0.5), "link": (0.7, 1), "nic": (0.5, 1), "host_s": (0.01, 1)}  # fmt: skip
KIND_SPREAD = 0.2


def training(data: Path) -> list[Axis]:
    """Seconds of a step of MLPerf systems (fits leave out the system, all its benchmarks), and of
    data-parallel jobs (each known by its own steps; fits leave out whole numbers of replicas and nodes)."""
    rows = mlperf_training(data)
    seconds = rows.seconds.to_numpy()
    by_system = left_out(rows.system.to_numpy(), lambda fit, ask: _steps(fit_rates(rows[fit]), rows[ask]))
    by_submitter = left_out(
        rows.submitter.to_numpy(), lambda fit, ask: _steps(fit_rates(rows[fit]), rows[ask])
    )
    return [
        Axis("training step, MLPerf", seconds, by_system, len(rows), 0.10),
        Axis("the same, submitter left out", seconds, by_submitter, len(rows), 0.10),
        _data_parallel(data),
    ]


def mlperf_training(data: Path) -> pd.DataFrame:
    """One row per system and benchmark: median seconds of a run over its steps, evaluation included.

    The precision is not stated: FP4 is assumed for the 405B runs on racks (NVIDIA says so of its v5.1
    entries), FP8 for the others.
    """
    runs = pd.read_csv(data / "train_mlperf" / "runs.csv.gz")
    runs["seconds"] = runs.run_s / runs.last_samples * runs.global_batch_size
    names = ["benchmark", "submitter", "system", "accelerator", "nodes", "accelerators_per_node",
             "global_batch_size", "grad_accum"]  # fmt: skip
    rows = runs.groupby(names, dropna=False).seconds.median().reset_index()
    known = catalogue().accelerators
    kinds = {name: known[kind] for name, kind in TRAINERS.items()}
    rows["kind"] = [next(kind for name, kind in kinds.items() if name in one) for one in rows.accelerator]
    rows["work"] = [_work(one) for one in rows.itertuples()]
    return rows


def _work(row: Any) -> training_step.TrainingWork:
    name, adapters = JOBS[row.benchmark]
    model, rack = catalogue().models[name], "GB" in row.kind.name
    return training_step.TrainingWork(
        parameters=model.parameters, layers=model.layers, hidden=model.hidden, sequence=SEQUENCE,
        batch=int(row.global_batch_size), accelerators=int(row.nodes * row.accelerators_per_node),
        precision="fp4" if rack and "405b" in row.benchmark else "fp8",
        micro_batches=int(np.nan_to_num(row.grad_accum, nan=1.0)), adapters=adapters,
        domain=72 if rack else 8,
    )  # fmt: skip


def _steps(rates: training_step.TrainingRates, rows: pd.DataFrame) -> Array:
    return np.array([training_step.step_s(w, k, rates) for w, k in zip(rows.work, rows.kind, strict=True)])


def fit_rates(rows: pd.DataFrame) -> training_step.TrainingRates:
    names, kinds = list(RATES), sorted({one.id for one in rows.kind})
    first = np.concatenate([np.log([RATES[name][0] for name in names]), np.zeros(len(kinds))])
    spread = np.concatenate([[RATES[name][1] for name in names], np.full(len(kinds), KIND_SPREAD)])
    seconds = rows.seconds.to_numpy()

    def errors(x: Array) -> Array:
        return np.concatenate(
            [np.log(_steps(_training_rates(names, kinds, x), rows) / seconds), PULL * (x - first) / spread]
        )

    return _training_rates(names, kinds, least_squares(errors, first, **SOFT).x)


def _training_rates(names: Sequence[str], kinds: Sequence[str], x: Array) -> training_step.TrainingRates:
    values = np.exp(x)
    plain = dict(zip(names, map(float, values), strict=False))
    by_kind = dict(zip(kinds, map(float, values[len(names) :]), strict=True))
    return training_step.TrainingRates(**plain, kinds=by_kind)


def _data_parallel(data: Path) -> Axis:
    path = data / "train_throughput_sia" / "step_times.csv.gz"
    rows = pd.read_csv(path, dtype={"placement": str})
    placed = rows.kind == "placements"
    text = rows.placement.fillna("")
    rows["nodes"] = np.where(placed, text.str.len(), rows.num_nodes).astype(float)
    counted = text.map(lambda digits: sum(map(int, digits)))
    rows["replicas"] = np.where(placed, counted, rows.num_replicas).astype(float)
    rows["foretold"] = np.nan
    for _, one in rows.groupby(["application", "gpu_type"]):
        groups = folds([f"{n:04.0f}|{k:04.0f}" for n, k in zip(one.nodes, one.replicas, strict=True)])
        found = left_out(groups, lambda fit, ask, of=one: _dp_steps(_fit_dp(of[fit]), of[ask]))
        rows.loc[one.index, "foretold"] = found
    measured, foretold = rows.step_time.to_numpy(), rows.foretold.to_numpy()
    return Axis("training step, data-parallel (SIA)", measured, foretold, len(rows), 0.10)


def _dp_steps(job: training_step.DataParallel, rows: pd.DataFrame) -> Array:
    return job.step_s(rows.local_bsz.to_numpy(), rows.replicas.to_numpy(), rows.nodes.to_numpy())


def _fit_dp(rows: pd.DataFrame) -> training_step.DataParallel:
    least, slope = rows.step_time.min(), (rows.step_time / rows.local_bsz).median()
    first = np.log([least / 2, slope / 2, least / 5, least / 50, least / 2, least / 50, 1.0])
    seconds = rows.step_time.to_numpy()

    def job(x: Array) -> training_step.DataParallel:
        values = np.exp(np.clip(x, -40, 4))
        return training_step.DataParallel(*map(float, values[:6]), overlap=1 + float(values[6]))

    def errors(x: Array) -> Array:
        return np.concatenate([np.log(_dp_steps(job(x), rows) / seconds), 0.02 * (x - first)])

    return job(least_squares(errors, first, **SOFT).x)


def constants(data: Path) -> list[str]:
    """What the whole tables say, to be put where the twin uses it."""
    rates, known = fit_rates(mlperf_training(data)), mlperf(data)
    best = fit_tuned(known[known.kind != ""])
    lines = [f"power_model: {name} = {value:.3g}" for name, value in power_constants(data).items()]
    for what, one in (("training_step.TrainingRates", rates), ("tuned.Tuned", best)):
        plain = {f.name: getattr(one, f.name) for f in fields(one) if f.name != "kinds"}
        lines += [f"{what}: {name} = {value:.3g}" for name, value in plain.items()]
    return lines + [
        f"training_step kinds: {name} = {value:.3g}" for name, value in sorted(rates.kinds.items())
    ]
