"""Reads the catalogue's files and holds every value to its unit. Knows no type by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

import yaml

from tokenmill.domain.errors import DataError
from tokenmill.spec.catalogue.types import (
    AcceleratorType,
    AdapterType,
    Catalogue,
    EngineType,
    ModelType,
    NodeType,
    RackType,
    SwitchType,
)

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

Kind = TypeVar("Kind")


@cache
def catalogue() -> Catalogue:
    """Read the packaged catalogue, once. Raises ``DataError`` for a value without its unit or source."""
    sources: dict[tuple[str, str], str] = {}

    def rows(file: str, kind: Callable[..., Kind], part: str = "") -> dict[str, Kind]:
        plain: dict[str, Any] = _read(file)
        return table(plain[part] if part else plain, kind, file, sources)

    return Catalogue(
        rows("accelerators", AcceleratorType),
        rows("nodes", NodeType),
        rows("racks", RackType),
        rows("network", AdapterType, "nics"),
        rows("network", AdapterType, "dpus"),
        rows("network", SwitchType, "switches"),
        rows("models", ModelType),
        rows("engines", EngineType),
        sources,
    )


def accelerator_named(device: str) -> AcceleratorType | None:
    """The type of what a driver calls ``device``, such as "NVIDIA H100 80GB HBM3", or None.

    The same chip has other clocks in a rack ("NVIDIA GB200") than on a board ("NVIDIA B200"), and its own id.
    A type that states its ``device`` has that name and no other: "NVIDIA L40" is not an L40S.
    """
    known = catalogue().accelerators
    named = [kind for kind in known.values() if kind.device.lower() == device.lower()]
    if named:
        return named[0]
    words = set(device.lower().replace("-", " ").split())
    board = "pcie" if "pcie" in words else "sxm"
    found = []
    for kind in known.values():
        if kind.device:
            continue
        chip, *rest = kind.id.split("-")
        in_rack = any(part.startswith("gb") and part in words for part in rest)
        if in_rack or chip in words:
            found.append((not in_rack, board not in rest, len(kind.id), kind.id))
    return known[min(found)[-1]] if found else None


@cache
def _read(file: str) -> Any:
    text = files("tokenmill.spec.catalogue").joinpath(f"{file}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def table(
    plain: dict[str, dict[str, Any]],
    kind: Callable[..., Kind],
    file: str,
    sources: dict[tuple[str, str], str],
) -> dict[str, Kind]:
    """Rows of one noun. Adds to ``sources`` those of single values."""
    made = {}
    for name, row in plain.items():
        where = f"{file}.yaml: {name}"
        if not str(row.get("source", "")).strip():
            raise DataError(f"{where} has no source", expected="source: where its values are published")
        values: dict[str, Any] = {}
        for field, written in row.items():
            attribute, value = _value(where, field, written)
            values[attribute] = value
            if isinstance(written, dict):
                sources[name, attribute] = str(written["source"])
        try:
            made[name] = kind(id=name, **values)
        except TypeError as error:
            noun = getattr(kind, "__name__", str(kind))
            raise DataError(f"{where}: {error}", expected=f"the fields of {noun}") from None
    return made


def _value(where: str, field: str, written: Any) -> tuple[str, Any]:
    """The attribute and the number in its unit. A value of its own source is ``{is: ..., source: ...}``."""
    if isinstance(written, dict):
        if set(written) != {"is", "source"} or not str(written["source"]).strip():
            raise DataError(f"{where}.{field} is {written}", expected="{is: VALUE UNIT, source: WHERE}")
        written = written["is"]
    if field not in FIELDS:
        return field, written
    attribute, unit = FIELDS[field]
    number, _, given = str(written).partition(" ")
    factor = UNITS[unit].get(given)
    try:
        value = float(number) * (factor or 0)
    except ValueError:
        value = -1.0
    if factor is None or not 0 < value < 1e9:
        raise DataError(
            f"{where}.{field} is {written!r}", expected=f"a number with {' or '.join(UNITS[unit])}"
        )
    return attribute, int(value) if value == int(value) else value
