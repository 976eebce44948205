"""Tune: an adapter on the line's base model, or all its weights, in the trainer's form and in the engine's.

How training works is the engine room's; here it gets its data, its settings, and a place for checkpoints that
outlives the attempt, so that a job that was killed goes on where it was.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tokenmill.domain.errors import DataError
from tokenmill.domain.stations import TuneParams
from tokenmill.domain.work import JobResult
from tokenmill.engine.convert import lora_to_gguf
from tokenmill.engine.full import llama_to_gguf
from tokenmill.engine.gang import gang_of
from tokenmill.engine.safe import check_adapter_fits
from tokenmill.engine.trainer import train
from tokenmill.engine.tuning import Progress, TrainOutcome, TrainRequest
from tokenmill.engine.unpacked import place_of, unpack
from tokenmill.line.job import StationJob

CURVE_POINTS = 500  # of the loss curve, in the result
FIRST_CHECKPOINT_S = 20.0  # after which the first one is made, whose time says when to make the next

# Threads of OpenMP spin while they wait for each other, which takes the cores from those who are waited for:
# beside one busy process training then runs at a quarter of the speed. It must be set before torch is loaded.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}


def run(job: StationJob) -> JobResult:
    """Tune on the curated rows. Raises what ``engine.trainer.train`` raises, ``DataError`` without a base.

    In a gang every worker calls it; all but the first give an empty result.
    """
    params = job.params
    assert isinstance(params, TuneParams)
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)
    base_dir = base_directory(job)
    job.report(0, 1, "models", "loading the base model")
    outcome = train(request_of(job, params, base_dir), lambda progress: _report(job, progress))
    if not gang_of().first:
        return JobResult()
    outputs = _outputs(job, params, outcome, base_dir)
    metrics = _metrics(outcome)
    trained = ("method", "rows", "tokens", "steps", "precision", "stopped_by", "energy_mj")
    evidence = {"base": dict(job.base), "trained": {k: metrics[k] for k in trained}}
    return JobResult(outputs, metrics, evidence)


def request_of(job: StationJob, params: TuneParams, base_dir: Path) -> TrainRequest:
    """What is asked of the trainer."""
    validation = job.input_path("validation")
    return TrainRequest(
        base_dir=base_dir,
        train_jsonl=job.input_path("train"),
        validation_jsonl=validation if validation.stat().st_size else None,
        out_dir=job.work / "tuned",
        work_dir=job.work / "checkpoints",
        method=params.method,
        learn=params.learn,
        beta=params.beta,
        rank=params.rank,
        alpha=params.alpha,
        epochs=params.epochs,
        max_seconds=float(params.max_seconds),
        batch=params.batch,
        micro_batch=params.micro_batch,
        recompute=params.recompute,
        patience=params.patience,
        validate_every=params.validate_every,
        lr=params.lr,
        seed=params.seed,
        max_tokens=params.max_tokens,
        save_every_s=float(params.checkpoint_seconds or FIRST_CHECKPOINT_S),
        pace=None if params.checkpoint_seconds else job.directory / "pace.json",
        threads=job.threads(params.threads),
    )


def _report(job: StationJob, p: Progress) -> None:
    metrics: dict[str, Any] = {
        "loss": p.loss,
        "tokens": p.tokens,
        "tokens_per_s": p.tokens_per_s,
        "eta_s": p.eta_s,
    }
    if p.saved_us:
        metrics |= {"saved_us": p.saved_us, "save_us": p.save_us}
    if p.ranks is not None:
        slow = [list(one) for one in p.ranks.slow]
        metrics["ranks"] = {"at_us": p.ranks.at_us, "median_us": p.ranks.median_us, "slow": slow}
    job.report(p.done, p.total, p.unit, p.message, metrics | ({"mfu": p.mfu} if p.mfu else {}))


def _outputs(job: StationJob, params: TuneParams, outcome: TrainOutcome, base_dir: Path) -> dict[str, str]:
    """What was tuned, in the trainer's form and in the engine's."""
    if params.method == "full":
        weights = llama_to_gguf(outcome.adapter_dir, job.artifacts.path(job.base["weights"]), job.work)
        return {
            "weights_hf": job.artifacts.put_tree(outcome.adapter_dir),
            "weights": job.artifacts.put_file(weights, move=True),
        }
    check_adapter_fits(outcome.adapter_dir, base_dir)
    gguf = lora_to_gguf(outcome.adapter_dir, base_dir, job.work / "adapter.gguf")
    return {
        "adapter_hf": job.artifacts.put_tree(outcome.adapter_dir),
        "adapter_gguf": job.artifacts.put_file(gguf, move=True),
    }


def base_directory(job: StationJob) -> Path:
    """The base model as a Hugging Face directory. A GGUF one is converted once and kept in the cache."""
    weights = job.base.get("weights", "")
    if not weights:
        raise DataError(
            f"line {job.line!r} has no base weights to tune",
            expected="a base model that was imported",
            fix="Name a chat model as the line's base, and look at its import with tokenmill why.",
        )
    path = job.artifacts.path(weights)
    if job.base.get("format") == "safetensors":
        return path
    return unpack(
        path,
        place_of(job.cache.parent, weights),
        lambda: job.report(0, 1, "models", "converting the base weights so that they can be tuned"),
    )


def _metrics(outcome: TrainOutcome) -> dict[str, object]:
    curve = outcome.loss_curve
    every = max(1, -(-len(curve) // CURVE_POINTS))
    return {
        "rows": outcome.rows,
        "skipped": dict(outcome.skipped),
        "steps": outcome.steps,
        "total_steps": outcome.total_steps,
        "seconds": round(outcome.seconds, 3),
        "tokens": outcome.tokens,
        "tokens_per_s": round(outcome.tokens_per_s, 1),
        "loss_first": curve[0][1] if curve else None,
        "loss_last": curve[-1][1] if curve else None,
        "validation_loss_before": outcome.validation_loss_before,
        "validation_loss": outcome.validation_loss,
        "loss_curve": [[step, round(loss, 5)] for step, loss in curve[::every]],
        "resumed_from": outcome.resumed_from,
        "precision": outcome.precision,
        "micro_batch": outcome.micro_batch,
        "stopped_by": outcome.stopped_by,
        "method": outcome.method,
        "workers": outcome.workers,
        "best_step": outcome.best_step,
        "device": outcome.device,
        "mfu": round(outcome.mfu, 4),
        "peak_tflops": outcome.peak_tflops,
        "energy_mj": outcome.energy_mj,
        "energy_source": outcome.energy_source,
        "peak_memory_bytes": outcome.peak_memory_bytes,
    }
