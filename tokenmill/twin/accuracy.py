"""How well foretold latencies meet measured ones, by kind of model and quantity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tokenmill.twin.fit import FEWEST_ERRORS, Foretold
from tokenmill.twin.profiles import Profile, within

NINE_OF_TEN = 0.9
QUANTITIES = ("tpot", "ttft", "throughput")


@dataclass(frozen=True, slots=True)
class Score:
    """Relative errors of one quantity: shares, 0.05 is 5 %.

    ``mape`` is the mean of absolute errors, ``median`` their median, ``p90`` what nine of ten stayed within,
    ``bias`` the median of signed errors: above 0 where more is foretold than was measured. Of fewer than
    ``FEWEST_ERRORS`` rows there are not nine in ten: ``p90`` is None.
    """

    name: str
    rows: int
    mape: float
    median: float
    p90: float | None
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


def doubts(foretold: Sequence[Foretold], before: Profile | None) -> list[str]:
    """What a reader of a profile should know that was fitted to these rows, from ``before`` or anew: where
    they are too few to state an error, and where most of them lie far outside of the one that was stated."""
    found = []
    for kind in ("dense", "moe"):
        rows = [one for one in foretold if one.row.dense == (kind == "dense")]
        for quantity in ("tpot", "ttft"):
            errors = list(_errors(rows, quantity))
            if not errors:
                continue
            stated = before.stated(f"{kind}_{quantity}").at(NINE_OF_TEN) if before else None
            what = f"{len(errors)} row{'s' * (len(errors) > 1)} of {kind} {quantity.upper()}"
            if len(errors) < FEWEST_ERRORS:
                kept = "states none" if stated is None else f"keeps the {stated:.0%} that was stated before"
                found.append(f"{what}: too few for an error of nine in ten; the profile {kept}.")
            times = [max(1 + error, 1 / (1 + error)) for error in errors]
            if stated is not None and sum(off > 1 + 2 * stated for off in times) > len(times) / 2:
                found.append(
                    f"{what}: most lie more than twice as far off as the {stated:.0%} that was stated, "
                    f"{float(np.median(times)):.3g} times in the median: check their units, and what ran."
                )
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
    nine = within(off.tolist(), NINE_OF_TEN) if len(off) >= FEWEST_ERRORS else None
    return Score(name, len(off), float(off.mean()), float(np.median(off)), nine, float(np.median(errors)))
