"""Rates of engines tuned by hand for a benchmark: what MLPerf Inference submissions reach.

``size`` foretells engines at their published defaults. Tuned ones batch more and waste less: this is the same
roofline with constants of its own, fitted by ``bench/accuracy.py`` to closed-division results of MLPerf
Inference v5.1. Layout and batch are not stated there: the best of those that fit is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tokenmill.domain.errors import DataError
from tokenmill.spec.catalogue import AcceleratorType, ModelType
from tokenmill.twin.capacity import fit_of, layouts
from tokenmill.twin.iteration import Efficiency, Layout, Work, parts, work_of

MOST_SEQUENCES = 4096
STEPS = 50
EXPERT_IMBALANCE = 1.2


@dataclass(frozen=True, slots=True)
class Load:
    """Mean tokens of a request, and of the longest answer; ``tpot_s`` is the limit, 0 where there is none."""

    inputs: float
    outputs: float
    longest: float
    tpot_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Tuned:
    """Shares of data-sheet figures and seconds; fitted, see the module.

    ``width``: the hidden size at which matrix products reach half of ``compute``. ``barrier``: what copies of
    attention wait for each other, times the log of their number. ``reserve``: of the longest answer, what an
    engine keeps free for each sequence. ``headroom``: mean time per token over the 99th percentile's limit.
    ``arrivals``: of the rate at that batch, what random arrivals leave.
    """

    compute: float = 0.9
    fp4: float = 0.997
    width: float = 151
    expert_compute: float = 0.452
    memory: float = 0.364
    expert_memory: float = 0.944
    attention: float = 0.22
    prefill_attention: float = 0.184
    layer_s: float = 7.45e-6
    link: float = 0.948
    exchange_s: float = 1.11e-4
    barrier: float = 0.31
    reserve: float = 0.156
    headroom: float = 0.601
    arrivals: float = 0.947


FITTED = Tuned()


@dataclass(frozen=True, slots=True)
class Rate:
    """Output tokens/s of one accelerator, and how they come about. ``alone_s`` is the time per token of a
    sequence that has the engine to itself: no limit below it can be kept."""

    tokens_s: float
    alone_s: float
    layout: Layout


def best_rate(
    model: ModelType, kind: AcceleratorType, precision: str, most: int, load: Load, tuned: Tuned = FITTED
) -> Rate:
    """Of the layouts on up to ``most`` accelerators, the best, rather one that can keep the limit of TPOT.
    Raises ``DataError`` when none fits."""
    found = [
        Rate(
            *_rate(work_of(model, kind, one, precision), one, room, model.hidden, precision, load, tuned), one
        )
        for one in layouts(model, most)
        if (room := fit_of(model, kind, one, precision).cache_tokens) >= load.inputs + load.outputs
    ]
    if not found:
        raise DataError(
            f"{model.id} in {precision} does not fit {most} x {kind.name}", expected="more of them"
        )
    return max(found, key=lambda one: (not load.tpot_s or one.alone_s <= load.tpot_s, one.tokens_s))


def _rate(
    work: Work, layout: Layout, room: int, hidden: int, precision: str, load: Load, tuned: Tuned
) -> tuple[float, float]:
    """Output tokens/s of an accelerator, and seconds for a token at the smallest batch."""
    held = load.inputs + load.outputs / 2 + tuned.reserve * max(0.0, load.longest - load.outputs)
    batch = np.geomspace(1, min(MOST_SEQUENCES, max(1.0, room / held)), STEPS) / layout.pipeline
    wide = hidden / (hidden + tuned.width) * (tuned.fp4 if precision == "fp4" else 1.0)
    eff = Efficiency(
        compute=tuned.compute * wide, expert_compute=tuned.expert_compute * wide, memory=tuned.memory,
        expert_memory=tuned.expert_memory, attention=tuned.attention,
        prefill_attention=tuned.prefill_attention, host_s=5e-4, layer_s=tuned.layer_s, link=tuned.link,
        exchange_s=tuned.exchange_s, imbalance=EXPERT_IMBALANCE,
    )  # fmt: skip
    tokens = batch * (1 + load.inputs / load.outputs)
    cached, pairs = batch * (load.inputs + load.outputs / 2), batch / load.outputs * load.inputs**2 / 2
    step = parts(work, eff, tokens, cached, pairs, batch).total * (1 + tuned.barrier * math.log(layout.data))
    rate = batch * layout.data * layout.pipeline / step / layout.accelerators
    tpot, limit = step * layout.pipeline, load.tpot_s * tuned.headroom
    if not load.tpot_s:
        return float(rate.max()), float(tpot[0])
    slow = rate[0] * limit / tpot[0]  # not even one sequence keeps the limit: falls off with it
    return float(np.interp(limit, tpot, rate, left=slow)) * tuned.arrivals, float(tpot[0])
