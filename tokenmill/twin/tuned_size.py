"""How many racks a throughput needs of engines tuned by hand, as for MLPerf Inference.

Holds the limit of TPOT only: how soon a first token is out, submissions leave to their batch. Answers for the
accelerators whose submissions the constants of ``tuned`` were fitted to, and for no other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tokenmill.domain.errors import DataError
from tokenmill.twin.size import Question, SizedRack, needs_of
from tokenmill.twin.tuned import Load, best_rate

ERRORS = {"h100-sxm": 0.241, "h200-sxm": 0.241, "b200-sxm": 0.241, "b200-gb200": 0.145, "b300-gb300": 0.145}
"""What nine of ten rows of unseen submitters stayed within: ``bench/accuracy.py --only racks``, v5.1."""


@dataclass(frozen=True, slots=True)
class TunedAnswer:
    """One rack type; ``most_racks`` when the rate is as far below as nine of ten unseen rows were off."""

    rack: str
    layout: str
    tokens_s_per_accelerator: float
    racks: int
    most_racks: int
    accelerators: int
    most_kw: float
    hour_micros: int
    million_tokens_micros: int


def tuned_answers(question: Question, racks: Iterable[SizedRack]) -> list[TunedAnswer]:
    """Cheapest first. Raises ``DataError`` when no rack has accelerators that submissions are known of, or
    none of them holds the limit of TPOT."""
    asked = [rack for rack in racks if rack.gpu.id in ERRORS]
    if not asked:
        raise DataError("of none of these racks tuned rates are known", expected=", ".join(ERRORS))
    found, errors = [], []
    for rack in asked:
        try:
            found.append(_answer(question, rack))
        except DataError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return sorted(found, key=lambda one: (one.million_tokens_micros, one.racks, one.rack))


def _answer(question: Question, rack: SizedRack) -> TunedAnswer:
    gpu = rack.gpu
    load = Load(question.inputs, question.outputs, question.outputs, question.tpot_p99_s)
    best = best_rate(question.model, gpu, question.precision, rack.domain, load)
    if best.alone_s > question.tpot_p99_s:
        raise DataError(
            f"no layout of {question.model.id} in {question.precision} on {gpu.name} holds tpot_p99 "
            f"{question.tpot_p99_s * 1000:g} ms",
            expected=f"at best {best.alone_s * 1000:.1f} ms ({best.layout}, one request at a time)",
            fix="Loosen the limit, use fewer bits, or name other racks.",
        )
    needs = needs_of(question, rack, best.tokens_s, best.layout.accelerators)
    return TunedAnswer(
        rack=rack.id,
        layout=str(best.layout),
        tokens_s_per_accelerator=best.tokens_s,
        racks=needs.racks,
        most_racks=math.ceil(needs.exactly * (1 + ERRORS[gpu.id])),
        accelerators=needs.accelerators,
        most_kw=needs.most_kw,
        hour_micros=needs.hour_micros,
        million_tokens_micros=needs.million_tokens_micros,
    )
