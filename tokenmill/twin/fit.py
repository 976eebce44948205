"""Fits the profile to measured rows: least squares of log errors, offsets held near zero by a prior.

Needs numpy and scipy (``tokenmill[twin]``). Every row is weighed alike; an outlier's weight falls with its
error (soft L1). A row that lies far off stays in: it counts in the residuals that are stored. Those are of
rows that the fit had not seen: each sweep is foretold by a fit of the other folds' sweeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from tokenmill.domain.errors import DataError
from tokenmill.spec.catalogue import catalogue
from tokenmill.twin.bench_rows import FOLDS, ServingRow
from tokenmill.twin.capacity import fit_of
from tokenmill.twin.iteration import Efficiency, Work, work_of
from tokenmill.twin.profiles import EFFICIENCIES, ELSEWHERE, PROTOCOL, Profile, names_of
from tokenmill.twin.steady import Protocol, Steady, steady

BUDGET_TOKENS = 8192
OUTLIER = 0.1
STEPS = 40
STEP = 1e-4
TTFT_WEIGHT = 0.7
FEWEST_ERRORS = 10
"""Fewer errors of a quantity than this say nothing of nine rows in ten."""

BASE_SPREAD, KEPT_SPREAD = 1.0, 0.001
"""How far the base may move: freely in a fit of its own, hardly where a profile is brought up to date."""

# Which knobs a kind of name may move, and how far (one standard deviation of the prior, in log units).
PRIORS: dict[str, tuple[float, tuple[str, ...]]] = {
    "engine": (
        0.5,
        ("compute", "memory", "expert_compute", "expert_memory", "host_s", "layer_s", "reduce_s",
         "exchange_s", "interference", "wave", "arrival_s", "prompt", "imbalance", "half_rate_expert_tokens"),
    ),
    "version": (0.25, ("scale", "prompt", "wave", "arrival_s", "host_s", "layer_s", "interference")),
    "accelerator": (0.3, ("compute", "memory", "expert_memory", "expert_compute", "link", "layer_s",
                          "attention")),
    "precision": (0.3, ("compute", "memory", "expert_compute", "expert_memory", "half_rate_tokens")),
    "model": (0.3, ("scale", "layer_s", "compute", "expert_memory", "expert_compute", "prefill_attention",
                    "attention", "prompt")),
    "group": (0.25, ("scale", "prompt", "wave", "arrival_s", "host_s", "layer_s", "interference",
                     "compute", "memory", "expert_memory")),
}  # fmt: skip


class Rows:
    """Measured rows as arrays, with the work and capacity of each."""

    def __init__(self, rows: Sequence[ServingRow]) -> None:
        self.rows = rows
        works, capacity = [], []
        for row in rows:
            model, kind = catalogue().models[row.model], catalogue().accelerators[row.accelerator]
            works.append(work_of(model, kind, row.layout, row.precision))
            capacity.append(fit_of(model, kind, row.layout, row.precision).cache_tokens)
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
        self.names = [names_of(r.engine, r.version, r.accelerator, r.precision, r.model) for r in rows]

    def steady(self, knobs: dict[str, Any]) -> Steady:
        """Latencies of all rows at once."""
        eff = Efficiency(**{name: knobs[name] for name in EFFICIENCIES})
        shared = {name: knobs[name] for name in PROTOCOL}
        shared["interference"] = shared["interference"] * self.mixed
        return steady(
            self.work, eff, Protocol(**shared), batch=self.batch, waiting=self.waiting,
            inputs=self.inputs, outputs=self.outputs, budget=BUDGET_TOKENS, stages=self.stages,
        )  # fmt: skip


def knobs_of(rows: Rows, profile: Profile) -> dict[str, Any]:
    """Every knob of every row under a profile."""
    each = [profile.values(names) for names in rows.names]
    return {knob: np.array([values[knob] for values in each]) for knob in (*EFFICIENCIES, *PROTOCOL)}


class Design:
    """Where each parameter acts: (knob, rows it moves, prior)."""

    def __init__(self, rows: Rows) -> None:
        self.columns: list[tuple[str, str, Any, float]] = []
        members: dict[str, list[int]] = {}
        for index, names in enumerate(rows.names):
            for name in names:
                members.setdefault(name, []).append(index)
        for name, indices in sorted(members.items()):
            spread, knobs = PRIORS[name.split(":")[0]]
            for knob in knobs:
                self.columns.append((name, knob, np.array(indices), spread))

    def knobs(self, base: dict[str, float], offsets: Any, count: int) -> dict[str, Any]:
        logs = {knob: np.full(count, value) for knob, value in base.items()}
        for (_, knob, indices, _), offset in zip(self.columns, offsets, strict=True):
            logs[knob][indices] += offset
        return {knob: np.exp(np.clip(value, -40, 40)) for knob, value in logs.items()}


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
) -> tuple[Profile, list[Foretold]]:
    """A profile fitted to all rows, and each row foretold by a fit that had not seen its sweep.

    With ``start`` that profile is brought up to date: its base stays, its offsets move where rows say so,
    and what the rows are too few to tell keeps its stated error. A fit of its own also leaves each
    accelerator out as a whole, for the error of those that no row is of. ``done`` hears how many of how many
    fits are over. Raises ``DataError`` when there is nothing to fit.
    """
    if not measured:
        raise DataError("no measured row states a configuration", expected="rows with batch size and layout")
    if start is None and len({row.fold for row in measured}) < 2:
        raise DataError("the rows are of too few sweeps for a fit of their own", expected="several layouts "
                        "or lengths", fix="Bring a fitted profile up to date with them instead.")  # fmt: skip
    kinds = [] if start else sorted({row.accelerator for row in measured})
    whole = 1 + FOLDS + len(kinds)
    made = _fitted(measured, source, start)
    done(1, whole)

    def unseen(
        parts: Sequence[object], part_of: Callable[[ServingRow], object], before: int
    ) -> list[Foretold]:
        found: list[Foretold] = []
        for number, part in enumerate(parts, start=before + 1):
            known = [row for row in measured if part_of(row) != part]
            asked = [row for row in measured if part_of(row) == part]
            if asked and (known or start):
                found += foretell(asked, _fitted(known, source, start) if known else start or made)
            done(number, whole)
        return found

    foretold = unseen(range(FOLDS), lambda row: row.fold, 1)
    elsewhere = unseen(kinds, lambda row: row.accelerator, 1 + FOLDS)
    errors = dict(start.residuals) if start else {}
    for name, found in residuals(foretold).items():
        if start is None or len(found) >= FEWEST_ERRORS:
            errors[name] = found
    errors |= {ELSEWHERE + name: found for name, found in residuals(elsewhere).items()}
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
    rows = Rows(measured)
    design = Design(rows)
    assumed = {**asdict(Efficiency()), **asdict(Protocol())}
    first = dict(start.base) if start else {name: float(np.log(value)) for name, value in assumed.items()}
    known = start.offsets if start else {}
    names = sorted(first)
    x0 = np.array(
        [first[name] for name in names]
        + [known.get(name, {}).get(knob, 0.0) for name, knob, _, _ in design.columns]
    )
    spread = KEPT_SPREAD if start else BASE_SPREAD
    spreads = np.array([spread] * len(names) + [column[3] for column in design.columns])
    x = _solve(rows, design, names, x0, spreads)
    base = {name: round(float(value), 5) for name, value in zip(names, x[: len(names)], strict=True)}
    offsets = {name: dict(knobs) for name, knobs in known.items()}
    for (name, knob, _, _), value in zip(design.columns, x[len(names) :], strict=True):
        if abs(value) >= 0.002:
            offsets.setdefault(name, {})[knob] = round(float(value), 4)
        else:
            offsets.get(name, {}).pop(knob, None)
    return Profile(base, offsets, {}, len(measured), source)


def _solve(rows: Rows, design: Design, names: list[str], x0: Any, spreads: Any) -> Any:
    """Gauss-Newton with the exact structure: an offset moves its rows as the knob itself does."""
    count, width = len(rows.rows), len(names)

    def logs(x: Any) -> dict[str, Any]:
        return design.knobs(dict(zip(names, x[:width], strict=True)), x[width:], count)

    def errors(x: Any) -> Any:
        return np.concatenate([_soft(_raw(rows, logs(x))), OUTLIER * (x - x0) / spreads])

    def jacobian(x: Any) -> Any:
        knobs = logs(x)
        here = _raw(rows, knobs)
        slope = _soft_slope(here)
        whole = np.zeros((len(here) + len(x), len(x)))
        each = {}
        for number, name in enumerate(names):
            moved = {**knobs, name: knobs[name] * np.exp(STEP)}
            each[name] = slope * (_raw(rows, moved) - here) / STEP
            whole[: len(here), number] = each[name]
        for number, (_, knob, indices, _) in enumerate(design.columns, start=width):
            both = np.concatenate([indices, indices + count])
            whole[both, number] = each[knob][both]
        whole[len(here) :] = np.diag(OUTLIER / spreads)
        return whole

    return least_squares(errors, x0, jac=jacobian, method="trf", max_nfev=STEPS, x_scale=spreads).x


def _raw(rows: Rows, knobs: dict[str, Any]) -> Any:
    """Log errors of TPOT, then of TTFT: zero where the row has no prefill."""
    found = rows.steady(knobs)
    ttft = np.log(found.ttft_s / rows.measured_ttft) * (rows.mixed > 0)
    return np.concatenate([np.log(found.tpot_s / rows.measured_tpot), TTFT_WEIGHT * ttft])


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
