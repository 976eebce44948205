"""One row of the catalogue, shipped or written by a person, to its type: fields, units, sources, bounds.

Knows no type by name and no other row: what rows say of one another is checked where they are put together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from tokenmill.domain.units import did_you_mean

# Written field to (attribute, unit); a unit is worth the factor in that of the attribute.
UNITS: dict[str, dict[str, float]] = {
    "GB": {"GB": 1},
    "GB/s": {"GB/s": 1, "TB/s": 1000},
    "TFLOP/s": {"TFLOP/s": 1, "PFLOP/s": 1000},
    "W": {"W": 1, "kW": 1000},
    "Gbit/s": {"Gbit/s": 1},
    "cores": {"cores": 1},
    "tokens": {"tokens": 1},
    "micro-USD/h": {"USD/h": 1_000_000},
}
FIELDS: dict[str, tuple[str, str]] = {
    "memory": ("memory_gb", "GB"),
    "memory_rate": ("memory_gb_s", "GB/s"),
    "bf16": ("tflops_bf16", "TFLOP/s"),
    "fp8": ("tflops_fp8", "TFLOP/s"),
    "fp4": ("tflops_fp4", "TFLOP/s"),
    "int8": ("tops_int8", "TFLOP/s"),
    "sparse_bf16": ("sparse_bf16", "TFLOP/s"),
    "sparse_fp8": ("sparse_fp8", "TFLOP/s"),
    "sparse_fp4": ("sparse_fp4", "TFLOP/s"),
    "sparse_int8": ("sparse_int8", "TFLOP/s"),
    "link": ("link_gb_s", "GB/s"),
    "hour_price": ("hour_micros", "micro-USD/h"),
    "max_power": ("max_w", "W"),
    "idle_power": ("idle_w", "W"),
    "overhead_power": ("overhead_w", "W"),
    "rate": ("gbit_s", "Gbit/s"),
    "cpu": ("cpu", "cores"),
    "token_budget": ("token_budget", "tokens"),
    "block": ("block", "tokens"),
}
WRITTEN = {attribute: written for written, (attribute, _) in FIELDS.items()}
MOST = 10**9
MOST_TEXT = 500

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class RowProblem:
    """What is wrong with one field of a row; with the row where ``field`` is empty."""

    field: str
    message: str
    expected: str
    fix: str = ""


def written(attribute: str, value: Any) -> str:
    """A value as a row writes it: ``memory_gb_s`` 3350 is ``3.35 TB/s``."""
    if attribute not in WRITTEN:
        return str(value).lower() if isinstance(value, bool) else str(value)
    units = UNITS[FIELDS[WRITTEN[attribute]][1]]
    unit = max((name for name in units if value >= units[name]), key=units.__getitem__, default=min(units))
    return f"{round(value / units[unit], 9):,.9g} {unit}".replace(",", "")


def fields_of(kind: type) -> dict[str, str]:
    """The fields that a row may have, as they are written, to what is expected there."""
    found = {}
    for attribute, hint in get_type_hints(kind).items():
        if attribute == "id":
            continue
        written = WRITTEN.get(attribute, attribute)
        unit = FIELDS[written][1] if attribute in WRITTEN else ""
        plain = {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, "text")
        found[written] = f"a number with {' or '.join(UNITS[unit])}" if unit else plain
    return found


def required_of(kind: type) -> list[str]:
    """The fields without which a row is none, as they are written."""
    unset = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
    return [WRITTEN.get(name, name) for name in unset if name != "id"]


def read_row(
    kind: type[Kind],
    name: str,
    row: Mapping[str, Any],
    sources: dict[tuple[str, str], str],
    base: Kind | None = None,
) -> tuple[Kind | None, list[RowProblem]]:
    """The type that a row describes, laid on ``base`` where there is one, or everything wrong with the row.

    Adds to ``sources`` those of single values.
    """
    if not str(row.get("source") or "").strip():
        return None, [RowProblem("", "has no source", "source: where its values are published")]
    known, hints = fields_of(kind), get_type_hints(kind)
    values: dict[str, Any] = {}
    problems = []
    for field, written in row.items():
        if field not in known:
            fix = did_you_mean(field, known) or f"Its fields are {', '.join(known)}."
            problems.append(
                RowProblem(field, "there is no such field", f"the fields of {kind.__name__}", fix)
            )
            continue
        attribute = FIELDS[field][0] if field in FIELDS and FIELDS[field][0] in hints else field
        value, problem = _value(field, written, hints[attribute], known[field])
        if problem is not None:
            problems.append(problem)
        values[attribute] = value
        if isinstance(written, dict):
            sources[name, attribute] = str(written.get("source"))
    if base is None:
        lacking = [field for field in required_of(kind) if field not in row]
        problems += [RowProblem(field, "is missing", known[field]) for field in lacking]
    if problems:
        return None, problems
    return (kind(id=name, **values) if base is None else dataclasses.replace(base, **values)), []  # type: ignore[call-arg, type-var]


def _value(field: str, written: Any, hint: type, expected: str) -> tuple[Any, RowProblem | None]:
    """The value in its attribute's unit. One of its own source is ``{is: ..., source: ...}``."""
    if isinstance(written, dict):
        if set(written) != {"is", "source"} or not str(written["source"] or "").strip():
            return None, RowProblem(field, f"is {written}", "{is: VALUE UNIT, source: WHERE}")
        written = written["is"]
    value: Any = written
    if field in FIELDS:
        number, _, given = str(written).partition(" ")
        factor = UNITS[FIELDS[field][1]].get(given, 0.0)
        try:
            value = float(number) * factor
        except ValueError:
            value = -1.0
        whole = value == value // 1 if 0 < value < MOST else False
        value = int(value) if whole else value
        fits = 0 < value < MOST and (whole or hint is not int)
    elif hint is bool:
        fits = isinstance(written, bool)
    elif hint is str:
        fits = isinstance(written, str) and 0 < len(written) <= MOST_TEXT
    else:
        fits = isinstance(written, int) and not isinstance(written, bool) and 0 <= written < MOST
    if fits:
        return value, None
    known = "a whole number with " + expected.removeprefix("a number with ") if hint is int else expected
    return None, RowProblem(field, f"is {written!r}", known if field in FIELDS else expected)
