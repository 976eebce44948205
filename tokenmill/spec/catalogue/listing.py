"""The catalogue for people: one line for each type, and each value of a type as a row writes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any, get_type_hints

from tokenmill.domain.catalogue import Catalogue, EngineType
from tokenmill.spec.catalogue.load import NOUNS
from tokenmill.spec.catalogue.rows import WRITTEN, written

KINDS: dict[str, type] = {noun: kind for noun, (kind, _, _) in NOUNS.items()} | {"engines": EngineType}
"""Every noun of the catalogue to its type."""

RATES = ("memory_gb", "memory_gb_s", "tflops_bf16", "tflops_fp8", "tflops_fp4", "link_gb_s")
ADAPTERS: tuple[tuple[str, ...], Callable[[Any], tuple[str, ...]]] = (
    (">rate", "fabric"),
    lambda one: (f"{one.gbit_s:g} Gbit/s", one.fabric),
)
LISTED: dict[str, tuple[tuple[str, ...], Callable[[Any], tuple[str, ...]]]] = {
    "accelerators": (
        (">memory", ">memory rate", ">bf16", ">fp8", ">fp4", ">link", ">power", ">price"),
        lambda one: (
            *(_shown(one, name) for name in RATES),
            f"{one.idle_w} to {one.max_w} W",
            _shown(one, "hour_micros"),
        ),
    ),
    "nodes": (
        (">accelerators", ">cpu", ">memory", "NVLink within", "NICs", "DPUs", ">beside accelerators"),
        lambda one: (
            f"{one.accelerators} x {one.accelerator}" if one.accelerators else "-",
            *(_shown(one, name) for name in ("cpu", "memory_gb", "nvlink", "nics", "dpus", "overhead_w")),
        ),
    ),
    "racks": (
        (">holds", ">power at most", ">NVLink switch trays"),
        lambda one: (f"{one.nodes} x {one.node}", _shown(one, "max_w"), _shown(one, "switch_trays")),
    ),
    "nics": ADAPTERS,
    "dpus": ADAPTERS,
    "switches": (
        ("name", ">ports", "fabric"),
        lambda one: (one.name, f"{one.ports} x {one.gbit_s:g} Gbit/s", one.fabric),
    ),
    "models": (
        (">parameters", ">of them for one token", ">layers", ">hidden", ">experts"),
        lambda one: (
            f"{one.parameters / 1e9:.2f} G",
            f"{one.active_parameters / 1e9:.2f} G",
            f"{one.layers}",
            f"{one.hidden:,}",
            f"{one.experts_per_token} of {one.experts}" if one.experts else "-",
        ),
    ),
    "engines": (
        (">token budget", ">sequences at most", "admission", "preemption"),
        lambda one: (f"{one.token_budget:,}", f"{one.max_sequences:,}", one.admission, one.preemption),
    ),
}  # fmt: skip
"""Of each noun its columns beside name and source, ``>`` before one of numbers, and their cells."""


@dataclass(frozen=True, slots=True)
class Written:
    """One value of a type: its field and text as in a row, and where it is from."""

    field: str
    value: str
    source: str


def values_of(one: Any, known: Catalogue) -> list[Written]:
    """Every value that a type has; a mode that a part lacks has none."""
    return [
        Written(
            WRITTEN.get(field.name, field.name),
            _shown(one, field.name),
            known.sources.get((one.id, field.name), one.source),
        )
        for field in fields(one)
        if field.name not in ("id", "source") and (getattr(one, field.name) or field.default is MISSING)
    ]


def _shown(one: Any, attribute: str) -> str:
    value = getattr(one, attribute)
    absent = value in ("", 0) and get_type_hints(type(one))[attribute] is not bool
    return "-" if absent else written(attribute, value)
