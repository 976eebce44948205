"""Fits the profile to measured rows, offsets held near zero by a prior.

Needs numpy (``tokenmill[twin]``). What is made small is the mean of an error's two readings, foretold over
measured and measured over foretold, so that neither latency nor throughput is favoured; small errors count
by their square, larger ones by their size. A row that lies far off stays in: it counts in the residuals that
are stored. Those are of rows that the fit had not seen: each sweep is foretold by a fit of the other folds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from tokenmill.domain.errors import DataError
from tokenmill.twin.bench_rows import ServingRow
from tokenmill.twin.capacity import fit_of
from tokenmill.twin.iteration import Efficiency, Work, work_of
from tokenmill.twin.profiles import (
    ALL,
    EFFICIENCIES,
    ELSEWHERE,
    OTHER_MODEL,
    PROTOCOL,
    SHARES,
    Profile,
    names_with,
    of_kind,
    total_of,
)
from tokenmill.twin.steady import Protocol, Steady, steady

BUDGET_TOKENS = 8192
OUTLIER = 0.05
MOST_ERROR = 3.0
STEPS, STEP = 60, 1e-4
ENOUGH, MOST_DAMPING = 1e-5, 1e6
TTFT_WEIGHT = 0.4
FEWEST_ERRORS = 10
"""Fewer errors of a quantity than this say nothing of nine rows in ten."""

KEPT_SPREAD = 0.001
"""How far what all models of a kind share may move where a profile is brought up to date: hardly."""

SMALLEST = 0.002
"""An offset below this is none."""

KINDS = (of_kind("", "dense"), of_kind("", "moe"))
SHARED = frozenset(("engine", "version", "architecture", "accelerator"))
OWN = 0.5
"""Of the spread of what both kinds of model share: that of what one kind differs by."""

APART = frozenset(("compute", "half_rate_tokens"))
"""Knobs of which the kinds share nothing: a mixture has few and small dense products, which tell little."""

OF_SILICON = ("compute", "memory", "expert_memory", "expert_compute", "link", "layer_s", "attention")

# Which knobs a kind of name may move, and how far (one standard deviation of the prior, in log units).
PRIORS: dict[str, tuple[float, tuple[str, ...]]] = {
    ALL: (0.5, (*EFFICIENCIES, *PROTOCOL)),
    "kind": (0.3, (*EFFICIENCIES, *PROTOCOL)),
    "engine": (
        0.7,
        ("compute", "memory", "expert_compute", "expert_memory", "host_s", "layer_s", "reduce_s",
         "exchange_s", "eager_s", "interference", "wave", "arrival_s", "prompt", "token_s",
         "ahead", "imbalance", "half_rate_expert_tokens"),
    ),
    "version": (0.25, ("prompt", "wave", "arrival_s", "ahead", "host_s", "layer_s")),
    "architecture": (0.4, OF_SILICON),
    "accelerator": (0.2, OF_SILICON),
    "precision": (0.4, ("compute", "memory", "expert_compute", "expert_memory", "half_rate_tokens")),
    "model": (0.4, ("layer_s", "eager_s", "compute", "expert_memory", "expert_compute", "prefill_attention",
                    "attention", "prompt", "ahead")),
    "group": (0.35, ("prompt", "wave", "arrival_s", "host_s", "layer_s", "compute", "memory",
                     "expert_memory")),
}  # fmt: skip


class Rows:
    """Measured rows as arrays, with the work and capacity of each."""

    def __init__(self, rows: Sequence[ServingRow]) -> None:
        self.rows = rows
        works, capacity = [], []
        for row in rows:
            deployed = (row.model, row.accelerator, row.layout, row.precision)
            works.append(work_of(*deployed))
            capacity.append(fit_of(*deployed).cache_tokens)
        self.work = Work(*(np.array([float(getattr(w, f.name)) for w in works]) for f in fields(Work)))
        self.inputs = np.array([float(r.inputs) for r in rows])
        self.outputs = np.array([float(r.outputs) for r in rows])
        self.stages = np.array([float(r.layout.pipeline) for r in rows])
        asked = np.array([r.batch for r in rows])
        room = np.maximum(1.0, np.array(capacity, float) / (self.inputs + self.outputs))
        self.batch = np.minimum(asked, room)
        self.waiting = asked - self.batch
        self.mixed = np.array([0.0 if r.decode_only else 1.0 for r in rows])
        self.measured_ttft = np.array([r.ttft_s for r in rows])
        self.measured_tpot = np.array([r.tpot_s for r in rows])
        self.names = [names_with(r.engine, r.version, r.accelerator, r.precision, r.model) for r in rows]

    def steady(self, knobs: dict[str, Any]) -> Steady:
        """Latencies of all rows at once."""
        eff = Efficiency(**{name: knobs[name] for name in EFFICIENCIES})
        shared = {name: knobs[name] for name in PROTOCOL}
        shared["interference"] = shared["interference"] * self.mixed
        return steady(
            self.work, eff, Protocol(**shared), batch=self.batch, waiting=self.waiting + shared["ahead"],
            inputs=self.inputs, outputs=self.outputs, budget=BUDGET_TOKENS, stages=self.stages,
        )  # fmt: skip


def knobs_of(rows: Rows, profile: Profile) -> dict[str, Any]:
    """Every knob of every row under a profile."""
    each = [profile.values(names) for names in rows.names]
    return {knob: np.array([values[knob] for values in each]) for knob in (*EFFICIENCIES, *PROTOCOL)}


def _sort(name: str) -> str:
    return name.split(":")[0]


def _spread(name: str, knob: str, *, kept: bool) -> float | None:
    """How far an offset may move; None where there is no such offset."""
    sort, own = _sort(name), name.endswith(KINDS)
    spread = PRIORS[sort][0]
    if kept and sort in (ALL, "kind"):
        return KEPT_SPREAD
    if sort in SHARED and knob in APART:
        return spread if own else None
    return spread * OWN if sort in SHARED and own else spread


class Design:
    """Where each parameter acts: (name, knob, rows it moves), where it starts and how far it may move.

    The base stays as it is. What all models share, and those of a kind, moves little where a profile is
    brought up to date (``kept``).
    """

    def __init__(
        self, rows: Rows, base: Mapping[str, float], known: Mapping[str, Mapping[str, float]], *, kept: bool
    ) -> None:
        self.base = base
        members: dict[str, list[int]] = {}
        for index, names in enumerate(rows.names):
            for name in names:
                members.setdefault(name, []).append(index)
        self.columns: list[tuple[str, str, Any]] = []
        first, spreads = [], []
        for name, indices in sorted(members.items()):
            for knob in PRIORS[_sort(name)][1]:
                if (spread := _spread(name, knob, kept=kept)) is not None:
                    self.columns.append((name, knob, np.array(indices)))
                    first.append(known.get(name, {}).get(knob, 0.0))
                    spreads.append(spread)
        self.first, self.spreads = np.array(first), np.array(spreads)

    def knobs(self, offsets: Any, count: int) -> dict[str, Any]:
        totals = {knob: np.full(count, value) for knob, value in self.base.items()}
        for (_, knob, indices), offset in zip(self.columns, offsets, strict=True):
            totals[knob][indices] += offset
        found = {knob: np.exp(np.clip(value, -40, 40)) for knob, value in totals.items()}
        return {knob: e / (1 + e) if knob in SHARES else e for knob, e in found.items()}


@dataclass(frozen=True, slots=True)
class Foretold:
    """A measured row and the latencies that a fit without its sweep gave it, in seconds.

    Errors are relative and signed, above 0 where more is foretold; an engine that only decodes has no TTFT.
    """

    row: ServingRow
    ttft_s: float
    tpot_s: float

    @property
    def errors(self) -> dict[str, float]:
        found = {"tpot": self.tpot_s / self.row.tpot_s - 1}
        if not self.row.decode_only:
            found["ttft"] = self.ttft_s / self.row.ttft_s - 1
        return found


def _silent(_done: int, _whole: int) -> None:
    pass


def fit_profile(
    measured: Sequence[ServingRow],
    source: str,
    start: Profile | None = None,
    done: Callable[[int, int], None] = _silent,
) -> tuple[Profile, dict[str, list[Foretold]]]:
    """A profile fitted to all rows, and each row foretold by fits that had not seen it, by ``ROWS_OF``.

    With ``start`` that profile is brought up to date: its base stays, its offsets move where rows say so,
    and what the rows are too few to tell keeps its stated error. Left out is each fold of sweeps; by a fit of
    its own also each accelerator and each model as a whole, for the error of those that no row is of.
    ``done`` hears how many of how many fits are over. Raises ``DataError`` when there is nothing to fit.
    """
    if not measured:
        raise DataError("no measured row states a configuration", expected="rows with batch size and layout")
    if start is None and len({row.fold for row in measured}) < 2:
        raise DataError("the rows are of too few sweeps for a fit of their own", expected="several layouts "
                        "or lengths", fix="Bring a fitted profile up to date with them instead.")  # fmt: skip
    splits: dict[str, Callable[[ServingRow], int | str]] = {"": lambda row: row.fold}
    if start is None:
        splits |= {ELSEWHERE: lambda row: row.accelerator.id, OTHER_MODEL: lambda row: row.model.id}
    groups = {of: sorted({group_of(row) for row in measured}) for of, group_of in splits.items()}
    whole = 1 + sum(map(len, groups.values()))
    made = _fitted(measured, source, start)
    fits = itertools.count(1)
    done(next(fits), whole)
    foretold: dict[str, list[Foretold]] = {of: [] for of in splits}
    for of, group_of in splits.items():
        for group in groups[of]:
            known = [row for row in measured if group_of(row) != group]
            asked = [row for row in measured if group_of(row) == group]
            if known or start:
                foretold[of] += foretell(asked, _fitted(known, source, start) if known else start or made)
            done(next(fits), whole)
    errors = dict(start.residuals) if start else {}
    for of, found in foretold.items():
        for name, each in residuals(found).items():
            if len(each) >= FEWEST_ERRORS:
                errors[of + name] = each
    return replace(made, residuals=errors), foretold


def foretell(measured: Sequence[ServingRow], profile: Profile) -> list[Foretold]:
    """What a profile says of measured rows."""
    rows = Rows(measured)
    found = rows.steady(knobs_of(rows, profile))
    return [
        Foretold(row, float(ttft), float(tpot))
        for row, ttft, tpot in zip(measured, found.ttft_s, found.tpot_s, strict=True)
    ]


def _fitted(measured: Sequence[ServingRow], source: str, start: Profile | None) -> Profile:
    """Every name of a row is in the profile, be it without an offset: that tells what was measured."""
    base = start.base if start else _assumed()
    offsets = {name: dict(knobs) for name, knobs in (start.offsets if start else {}).items()}
    rows = Rows(measured)
    design = Design(rows, base, offsets, kept=start is not None)
    for (name, knob, _), value in zip(design.columns, _solve(rows, design), strict=True):
        moved = offsets.setdefault(name, {})
        if abs(value) >= SMALLEST:
            moved[knob] = round(float(value), 4)
        else:
            moved.pop(knob, None)
    return Profile(base, offsets, {}, len(measured), source)


def _assumed() -> dict[str, float]:
    values = {**asdict(Efficiency()), **asdict(Protocol())}
    return {name: round(total_of(name, value), 5) for name, value in values.items()}


def _solve(rows: Rows, design: Design) -> Any:
    """Levenberg-Marquardt with the exact structure: an offset moves its rows as the knob itself does."""
    count = len(rows.rows)
    pull = OUTLIER / design.spreads

    def cost_of(errors: Any, x: Any) -> float:
        return float((_soft(errors) ** 2).sum() + ((pull * (x - design.first)) ** 2).sum())

    def slopes(knobs: dict[str, Any], errors: Any) -> Any:
        slope = _soft_slope(errors)
        each = {}
        for knob, values in knobs.items():
            moved = _raw(rows, {**knobs, knob: values * np.exp(STEP)})
            steep = np.concatenate([1 - values] * 2) if knob in SHARES else 1.0
            each[knob] = slope * steep * (moved - errors) / STEP
        whole = np.zeros((2 * count, len(design.columns)))
        for number, (_, knob, indices) in enumerate(design.columns):
            both = np.concatenate([indices, indices + count])
            whole[both, number] = each[knob][both]
        return whole

    x, damping = design.first, 1e-3
    knobs = design.knobs(x, count)
    errors = _raw(rows, knobs)
    cost = cost_of(errors, x)
    for _ in range(STEPS):
        whole = slopes(knobs, errors)
        square = whole.T @ whole + np.diag(pull**2)
        down = whole.T @ _soft(errors) + pull**2 * (x - design.first)
        before = cost
        while damping < MOST_DAMPING:
            trial = x - np.linalg.solve(square + damping * np.diag(np.diag(square)), down)
            found = design.knobs(trial, count)
            missed = _raw(rows, found)
            if (tried := cost_of(missed, trial)) < cost:
                x, knobs, errors, cost, damping = trial, found, missed, tried, damping / 5
                break
            damping *= 4
        if before - cost <= ENOUGH * before:
            break
    return x


def _raw(rows: Rows, knobs: dict[str, Any]) -> Any:
    """Errors of TPOT, then of TTFT: (f/m - m/f) / 2 of foretold and measured, zero where there is no prefill.
    Beyond twenty times off they stay as they are, lest a first guess that far off outweighs all else."""
    found = rows.steady(knobs)
    ttft = TTFT_WEIGHT * np.log(found.ttft_s / rows.measured_ttft) * (rows.mixed > 0)
    both = np.concatenate([np.log(found.tpot_s / rows.measured_tpot), ttft])
    return np.sinh(np.clip(both, -MOST_ERROR, MOST_ERROR))


def _soft(errors: Any) -> Any:
    """Residuals whose square is the soft L1 loss: straight beyond ``OUTLIER``."""
    scaled = errors / OUTLIER
    return OUTLIER * np.sign(errors) * np.sqrt(2 * (np.sqrt(1 + scaled * scaled) - 1))


def _soft_slope(errors: Any) -> Any:
    """Derivative of ``_soft``."""
    scaled = errors / OUTLIER
    root = np.sqrt(1 + scaled * scaled)
    soft = np.abs(_soft(errors)) / OUTLIER
    return np.where(np.abs(scaled) < 1e-6, 1.0, np.abs(scaled) / (root * np.maximum(soft, 1e-12)))


def residuals(foretold: Sequence[Foretold]) -> dict[str, tuple[float, ...]]:
    """Sorted absolute relative errors by kind of model and quantity: ``dense_tpot`` and so on."""
    found: dict[str, list[float]] = {}
    for one in foretold:
        kind = "dense" if one.row.dense else "moe"
        for quantity, error in one.errors.items():
            found.setdefault(f"{kind}_{quantity}", []).append(abs(error))
    return {name: tuple(round(error, 4) for error in sorted(errors)) for name, errors in found.items()}
