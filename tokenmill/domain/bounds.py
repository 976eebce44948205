"""A bound of the gate on one figure of an evaluation, as a person writes it. Judges nothing.

``NAME >= NUMBER``, ``NAME <= base + NUMBER``, ``NAME <= NUMBER x champion``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBER = r"-?\d+(?:\.\d+)?"
_BOUND = re.compile(
    rf"\s*(?P<name>[a-z][a-z0-9_]*)\s*(?P<sign><=|>=)\s*"
    rf"(?:(?P<times>{_NUMBER})\s*x\s*(?P<scaled>base|champion)"
    rf"|(?P<shifted>base|champion)(?:\s*(?P<direction>[+-])\s*(?P<by>{_NUMBER}))?"
    rf"|(?P<fixed>{_NUMBER}))\s*"
)


@dataclass(frozen=True, slots=True)
class Bound:
    """``name`` of the candidate must be at most (or at least) ``times`` the reference's, plus ``plus``.

    ``reference`` is base, champion, or empty for a fixed number (which is ``plus``).
    """

    name: str
    at_most: bool
    reference: str
    times: float
    plus: float
    text: str

    def limit(self, reference_value: float) -> float:
        return self.times * reference_value + self.plus


def parse_bound(text: str) -> Bound:
    """Read a bound. Raises ``ValueError`` that says what is wrong."""
    found = _BOUND.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no bound")
    at_most = found["sign"] == "<="
    shown = " ".join(text.split())
    if found["fixed"]:
        return Bound(found["name"], at_most, "", 0.0, float(found["fixed"]), shown)
    if found["scaled"]:
        return Bound(found["name"], at_most, found["scaled"], float(found["times"]), 0.0, shown)
    by = float(found["by"] or 0) * (-1 if found["direction"] == "-" else 1)
    return Bound(found["name"], at_most, found["shifted"], 1.0, by, shown)
