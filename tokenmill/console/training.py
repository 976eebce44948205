"""What the page of a run shows of its training: the loss so far, and speed, MFU, energy and memory.

A finished station is read from its result, one that runs from its progress file. Draws nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tokenmill.console import charts, text
from tokenmill.spec.paths import Paths

PROGRESS_BYTES = 1 << 20
MOST_POINTS = 300


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure with its unit, and what it is of."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Training:
    """``points`` are (step, loss)."""

    points: tuple[charts.Point, ...] = ()
    figures: tuple[Figure, ...] = ()


def training_of(run: Mapping[str, Any], paths: Paths) -> Training:
    """Of the run's first tuning station; empty before it has begun."""
    for station in run["stations"]:
        if station["kind"] != "tune":
            continue
        kept = station["metrics"].get("loss_curve")
        if kept:
            points = tuple((float(step), float(loss)) for step, loss in kept)
            return Training(points, _figures(station["metrics"], station["usage"]))
        if station["status"] == "running" and station["job"]:
            now = station["progress"].get("metrics") or {}
            return Training(_progress_points(paths.job_progress(station["job"])), _figures(now, {}))
    return Training()


def _figures(metrics: Mapping[str, Any], usage: Mapping[str, Any]) -> tuple[Figure, ...]:
    tokens = float(metrics.get("tokens") or 0)
    if not tokens:
        return ()
    found = [Figure("Speed", f"{text.number(metrics['tokens_per_s'])} tokens/s", "no padding counted")]
    device = metrics.get("device") or "this device"
    if metrics.get("mfu"):
        peak = metrics.get("peak_tflops")
        of = f"of {text.number(peak)} TFLOP/s dense" if peak else "of the dense peak"
        found.append(Figure("Model FLOPs used", text.percent(1000 * metrics["mfu"]), of))
    else:
        found.append(Figure("Model FLOPs used", text.MISSING, f"the peak of {device} is not known"))
    energy = metrics.get("energy_mj") or usage.get("energy_mj") or 0
    if energy:
        source = metrics.get("energy_source") or usage.get("energy_source") or ""
        found.append(
            Figure("Energy", text.energy(energy), f"{energy / tokens:.0f} J for 1,000 tokens · {source}")
        )
    memory = max(metrics.get("peak_memory_bytes") or 0, usage.get("peak_memory_bytes") or 0)
    if memory:
        micro = metrics.get("micro_batch")
        found.append(Figure("Peak memory", text.size(memory), f"{micro} rows at a time" if micro else ""))
    found.append(Figure("Trained", f"{text.number(tokens)} tokens", _steps(metrics)))
    if metrics.get("validation_loss") is not None:
        before = metrics.get("validation_loss_before")
        note = f"{before:.3f} before" if before is not None else ""
        found.append(Figure("Validation loss", f"{metrics['validation_loss']:.3f}", note))
    return tuple(found)


def _steps(metrics: Mapping[str, Any]) -> str:
    if not metrics.get("steps"):
        return ""
    said = f"{metrics['steps']:,} of {metrics.get('total_steps', metrics['steps']):,} steps"
    ended = str(metrics.get("stopped_by") or "").replace("_", " ")
    return f"{said}, ended by {ended}" if ended else said


def _progress_points(path: Path) -> tuple[charts.Point, ...]:
    """At most the last 1 MiB of a job's progress file; a line that is half written is left out."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - PROGRESS_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return ()
    found = []
    for line in lines:
        try:
            entry = msgspec.json.decode(line)
            found.append((float(entry["done"]), float(entry["metrics"]["loss"])))
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            continue
    return tuple(found[:: max(1, len(found) // MOST_POINTS)])
