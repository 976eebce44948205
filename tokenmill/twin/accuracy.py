"""How well foretold latencies meet measured ones, by kind of model and quantity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tokenmill.twin.fit import Foretold
from tokenmill.twin.profiles import within

NINE_OF_TEN = 0.9
QUANTITIES = ("tpot", "ttft", "throughput")


@dataclass(frozen=True, slots=True)
class Score:
    """Relative errors of one quantity: shares, 0.05 is 5 %.

    ``mape`` is the mean of absolute errors, ``median`` their median, ``p90`` what nine of ten stayed within,
    ``bias`` the median of signed errors: above 0 where more is foretold than was measured.
    """

    name: str
    rows: int
    mape: float
    median: float
    p90: float
    bias: float


def scores(foretold: Sequence[Foretold]) -> list[Score]:
    """Of dense and mixture-of-experts models, each quantity that has rows. Throughput is output tokens/s of
    a constant number of requests, which only rows with a prefill tell."""
    found = []
    for kind in ("dense", "moe"):
        rows = [one for one in foretold if one.row.dense == (kind == "dense")]
        for quantity in QUANTITIES:
            errors = np.array(list(_errors(rows, quantity)))
            if errors.size:
                found.append(_score(f"{kind} {quantity}", errors))
    return found


def _errors(foretold: Iterable[Foretold], quantity: str) -> Iterable[float]:
    for one in foretold:
        row = one.row
        if quantity in one.errors:
            yield one.errors[quantity]
        elif quantity == "throughput" and not row.decode_only:
            measured = row.ttft_s + (row.outputs - 1) * row.tpot_s
            yield measured / (one.ttft_s + (row.outputs - 1) * one.tpot_s) - 1


def _score(name: str, errors: np.ndarray) -> Score:
    off = np.sort(np.abs(errors))
    nine = within(off.tolist(), NINE_OF_TEN)
    return Score(name, len(off), float(off.mean()), float(np.median(off)), nine, float(np.median(errors)))
