"""A fine-tuning job in OpenAI's shapes: the job, its events, its checkpoints. Read from the run, not stored.

Event ids are made from what they are about, so that a client that pages or asks again sees the same ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenmill.console.run_view import eta_us
from tokenmill.console.tenant.answers import seconds
from tokenmill.control.state import State
from tokenmill.domain.stations import TuneParams, station_params
from tokenmill.domain.work import JobStatus, Run, RunStatus, StationState, StationStatus, Tuning
from tokenmill.spec.paths import Paths

Progress = Mapping[str, Mapping[str, Any]]

PROGRESS_BYTES = 4 * 1024 * 1024
STEP_EVENTS_MOST = 500
STARTS_US = 120_000_000
PUBLISHED_US = 1_000_000
"""Every gateway looks at the table ten times a second."""
DONE = (StationStatus.DONE, StationStatus.REUSED)
ENDED = {
    RunStatus.SUCCEEDED: "succeeded",
    RunStatus.REJECTED: "failed",
    RunStatus.FAILED: "failed",
    RunStatus.CANCELLED: "cancelled",
}


def job_view(state: State, progress: Progress, tuning: Tuning, now_us: int) -> dict[str, Any]:
    """The FineTuningJob object."""
    run = state.runs.get(tuning.run)
    asked = tuning.asked
    status = status_of(state, run, tuning, now_us)
    tuned = _station(run, "tune")
    hyperparameters = _hyperparameters(tuning)
    estimated = _estimated(progress, tuned, now_us) if status == "running" else None
    return {
        "id": tuning.id,
        "object": "fine_tuning.job",
        "created_at": seconds(tuning.created_us),
        "error": _error(run, status, tuning),
        "fine_tuned_model": tuning.deployment.name if status == "succeeded" and not tuning.dropped else None,
        "finished_at": seconds(run.ended_us) if run is not None else None,
        "hyperparameters": hyperparameters,
        "model": asked.get("model", tuning.line.base),
        "organization_id": tuning.line.tenant,
        "result_files": [],
        "seed": asked.get("seed", 0),
        "status": status,
        "trained_tokens": _trained(tuned),
        "training_file": asked.get("training_file", ""),
        "validation_file": asked.get("validation_file") or None,
        "estimated_finish": estimated,
        "integrations": [],
        "metadata": asked.get("metadata") or None,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "user_provided_suffix": asked.get("suffix") or None,
        "run": tuning.run,
    }


def status_of(state: State, run: Run | None, tuning: Tuning, now_us: int) -> str:
    """validating_files, queued, running, paused, succeeded, failed or cancelled.

    A job has succeeded when its model answers, so that a client may use it at once; where no node has room
    for it, a while after its run.
    """
    if run is None:
        return "failed"
    if run.status.ended:
        waits = now_us - run.ended_us < STARTS_US and not tuning.dropped
        if run.status is RunStatus.SUCCEEDED and waits and not _answers(state, tuning, now_us):
            return "running"
        return ENDED[run.status]
    if run.paused:
        return "paused"
    tuned = _station(run, "tune")
    if tuned is None or tuned.status is StationStatus.WAITING:
        return "validating_files"
    job = state.jobs.get(tuned.job)
    if tuned.status is StationStatus.RUNNING and (job is None or job.status is JobStatus.PENDING):
        return "queued"
    return "running"


def _answers(state: State, tuning: Tuning, now_us: int) -> bool:
    alias = state.aliases.get(tuning.deployment.name)
    return alias is not None and bool(alias.targets) and now_us - alias.since_us > PUBLISHED_US


def job_events(state: State, paths: Paths, tuning: Tuning) -> list[dict[str, Any]]:
    """All that happened to a job, oldest first. Blocks: reads the trainer's own lines."""
    run = state.runs.get(tuning.run)
    made = _Events(tuning.id)
    made.add(tuning.created_us, f"Created fine-tuning job: {tuning.id}")
    if run is None:
        return made.found
    for station in run.stations:
        waits = _waits(state, station)
        if station.started_us and station.name in BEGINS and waits != WAITS:
            made.add(station.started_us, BEGINS[station.name])
        if waits:
            made.add(station.started_us, waits)
        if station.name == "tune" and station.job:
            for line in _steps(paths, station.job):
                made.step(line)
        if station.status in DONE and station.name in ENDS:
            made.add(station.ended_us, ENDS[station.name](station))
    _add_end(made, run, tuning)
    return sorted(made.found, key=lambda event: event["_order"])


def _waits(state: State, station: StationState) -> str:
    """What is said of a station whose job has no room now."""
    job = state.jobs.get(station.job)
    if station.status is not StationStatus.RUNNING or job is None or job.status is not JobStatus.PENDING:
        return ""
    return WAITS if job.attempt == 0 else WAITS_AGAIN


def _add_end(made: _Events, run: Run, tuning: Tuning) -> None:
    if run.status is RunStatus.SUCCEEDED:
        made.add(run.ended_us, f"New fine-tuned model created: {tuning.deployment.name}")
        made.add(run.ended_us, "The job has successfully completed")
    elif run.status is RunStatus.CANCELLED:
        made.add(run.ended_us, f"The job was {run.reason or 'cancelled'}", "warn")
    elif run.status.ended:
        made.add(run.ended_us, f"The job failed: {reason_of(run, tuning)}", "error")
    elif run.paused:
        made.add(max(s.ended_us or s.started_us for s in run.stations), f"The job is {run.reason}", "warn")


def checkpoints(state: State, tuning: Tuning) -> list[dict[str, Any]]:
    """The checkpoints that can be used as a model: the last one. Those before it only serve to resume."""
    run = state.runs.get(tuning.run)
    tuned = _station(run, "tune")
    if tuned is None or tuned.status not in DONE or tuned.result is None:
        return []
    metrics = tuned.result.metrics
    step = int(metrics.get("steps") or 0)
    shown = {
        "step": step,
        "train_loss": metrics.get("loss_last"),
        "full_valid_loss": metrics.get("validation_loss"),
    }
    return [
        {
            "id": f"ftckpt_{_digest(tuning.id, step)}",
            "object": "fine_tuning.job.checkpoint",
            "created_at": seconds(tuned.ended_us),
            "fine_tuned_model_checkpoint": tuning.deployment.name,
            "fine_tuning_job_id": tuning.id,
            "metrics": {name: value for name, value in shown.items() if value is not None},
            "step_number": step,
        }
    ]


WAITS = "The job waits until the factory has room for it"
WAITS_AGAIN = "The job was interrupted, and goes on when the factory has room for it"
BEGINS = {
    "intake": "Validating training file",
    "tune": "Fine-tuning job started",
    "evaluate": "Evaluating the model on held-out rows",
}
ENDS = {
    "curate": lambda s: f"Files validated: {_counts(s)}",
    "evaluate": lambda s: f"Evaluated on {s.result.evidence.get('n', 0)} held-out rows: {_shares(s)}",
    "gate": lambda s: "The gate passed it: " + " ".join(s.result.evidence.get("reasons", ())),
}


def _counts(station: StationState) -> str:
    metrics = station.result.metrics if station.result else {}
    names = ("train_rows", "validation_rows", "test_rows", "dropped")
    return ", ".join(f"{metrics[name]} {name.replace('_rows', '')}" for name in names if name in metrics)


def _shares(station: StationState) -> str:
    subjects = station.result.evidence.get("subjects", {}) if station.result else {}
    return ", ".join(
        f"{name} {subject['correct_milli'] / 10:.1f} %"
        for name, subject in sorted(subjects.items())
        if subject
    )


class _Events:
    """Collects events with steady ids."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.found: list[dict[str, Any]] = []

    def add(self, at_us: int, message: str, level: str = "info") -> None:
        self._keep(at_us, {"level": level, "message": message, "type": "message", "data": None})

    def step(self, line: Mapping[str, Any]) -> None:
        metrics = dict(line.get("metrics") or {})
        data = {"step": line["done"], "total_steps": line["total"], "train_loss": metrics.get("loss")}
        message = f"Step {line['done']:g}/{line['total']:g}"
        if data["train_loss"] is not None:
            message += f": training loss={data['train_loss']:.4f}"
        self._keep(int(line["at_us"]), {"level": "info", "message": message, "type": "metrics", "data": data})

    def _keep(self, at_us: int, event: dict[str, Any]) -> None:
        order = (at_us, len(self.found))
        event |= {
            "id": f"ftevent-{_digest(self.job, at_us, event['message'])}",
            "object": "fine_tuning.job.event",
            "created_at": seconds(at_us),
            "_order": order,
        }
        self.found.append(event)


def _steps(paths: Paths, job: str) -> list[dict[str, Any]]:
    """The trainer's step lines, thinned to a bounded number."""
    path: Path = paths.job(job) / "progress.jsonl"
    try:
        with path.open("rb") as file:
            lines = file.read(PROGRESS_BYTES).splitlines()
    except OSError:
        return []
    found = []
    for raw in lines:
        try:
            line = json.loads(raw)
        except ValueError:
            continue  # the last line may be half written
        if line.get("unit") == "steps" and line.get("done"):
            found.append(line)
    every = -(-len(found) // STEP_EVENTS_MOST) or 1
    return found[::every]


def _station(run: Run | None, name: str) -> StationState | None:
    return next((s for s in run.stations if s.name == name), None) if run is not None else None


def _hyperparameters(tuning: Tuning) -> dict[str, Any]:
    chosen = dict(tuning.asked.get("chosen", {}))
    params = next(dict(s.params) for s in tuning.line.stations if s.kind == "tune")
    usual = station_params("tune", params)
    assert isinstance(usual, TuneParams)
    return {
        "n_epochs": int(usual.epochs),
        "batch_size": usual.batch,
        "learning_rate_multiplier": chosen.get("learning_rate_multiplier", 1),
    }


def _trained(tuned: StationState | None) -> int | None:
    if tuned is None or tuned.status not in DONE or tuned.result is None:
        return None
    return int(tuned.result.metrics.get("tokens") or 0)


def reason_of(run: Run, tuning: Tuning) -> str:
    """Why the run ended, with files named as the client knows them and not by where they lie here."""
    text = run.reason
    params = {name: value for station in tuning.line.stations for name, value in station.params.items()}
    for param, name in (("path", "training_file"), ("test_path", "validation_file")):
        if params.get(param):
            text = text.replace(str(params[param]), str(tuning.asked.get(name) or name))
    return text


def _error(run: Run | None, status: str, tuning: Tuning) -> dict[str, Any] | None:
    if status != "failed":
        return None
    if run is None:
        return {"code": "not_kept", "message": "What became of this job is kept no more.", "param": None}
    code = "gate_rejected" if run.status is RunStatus.REJECTED else "run_failed"
    wrong_file = any(
        s.status is StationStatus.FAILED and s.name in ("intake", "curate") for s in run.stations
    )
    if wrong_file:
        code = "invalid_training_file"
    param = "training_file" if wrong_file else None
    return {"code": code, "message": reason_of(run, tuning), "param": param}


def _estimated(progress: Progress, tuned: StationState | None, now_us: int) -> int | None:
    if tuned is None or tuned.status is not StationStatus.RUNNING:
        return None
    left_us = eta_us(progress.get(tuned.job, {}), tuned.started_us)
    return seconds(now_us + left_us) if left_us else None


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:24]
