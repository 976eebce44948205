"""The catalogue: the shipped files, and what a factory file adds to them."""

from __future__ import annotations

from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, TypeVar

import yaml

from tokenmill.domain.catalogue import (
    NO_TYPES,
    AcceleratorType,
    AdapterType,
    Catalogue,
    EngineType,
    ModelType,
    NodeType,
    OwnTypes,
    RackType,
    SwitchType,
)
from tokenmill.domain.errors import DataError
from tokenmill.domain.factory import Node
from tokenmill.domain.value import replace
from tokenmill.spec.catalogue.rows import read_row

Kind = TypeVar("Kind")

NOUNS: dict[str, tuple[type, str, str]] = {
    "accelerators": (AcceleratorType, "accelerators", ""),
    "nodes": (NodeType, "nodes", ""),
    "racks": (RackType, "racks", ""),
    "nics": (AdapterType, "network", "nics"),
    "dpus": (AdapterType, "network", "dpus"),
    "switches": (SwitchType, "network", "switches"),
    "models": (ModelType, "models", ""),
}
"""Each noun that a factory file may add to: its type, and where the shipped rows are."""


@lru_cache(maxsize=8)
def catalogue(own: OwnTypes = NO_TYPES) -> Catalogue:
    """The shipped types and ``own`` ones. Raises ``DataError`` for a value without its unit or source."""
    if own != NO_TYPES:
        shipped = catalogue()
        tables = {
            noun: getattr(shipped, noun) | {one.id: one for one in getattr(own, noun)} for noun in NOUNS
        }
        sources = shipped.sources | {(kind, field): text for kind, field, text in own.sources}
        return Catalogue(**tables, engines=shipped.engines, sources=sources)
    found: dict[tuple[str, str], str] = {}
    rows: dict[str, Any] = {
        noun: table(_read(file)[part] if part else _read(file), kind, file, found)
        for noun, (kind, file, part) in NOUNS.items()
    }
    return Catalogue(**rows, engines=table(_read("engines"), EngineType, "engines", found), sources=found)


def accelerator_named(device: str, own: OwnTypes = NO_TYPES) -> AcceleratorType | None:
    """The type of what a driver calls ``device``, such as "NVIDIA H100 80GB HBM3", or None.

    The same chip has other clocks in a rack ("NVIDIA GB200") than on a board ("NVIDIA B200"), and its own id.
    A type that states its ``device`` has that name and no other: "NVIDIA L40" is not an L40S.
    """
    known = catalogue(own).accelerators
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


def with_power(node: Node, own: OwnTypes = NO_TYPES) -> Node:
    """A node whose draw nobody states, with that of its accelerators' type in that server of the
    catalogue that draws most beside them; as it is where it has
    no accelerator, several types or an unknown one.
    """
    known = catalogue(own)
    kinds = {one.kind for one in node.accelerators}
    chip = known.accelerators.get(next(iter(kinds))) if len(kinds) == 1 else None
    if node.power_mw or chip is None:
        return node
    beside_w = max((n.overhead_w for n in known.nodes.values() if n.accelerator == chip.id), default=0)
    count = len(node.accelerators)
    server = NodeType("", count, 0, 0, "", chip.id, overhead_w=beside_w)
    most_w = beside_w + count * chip.max_w
    return replace(node, idle_mw=round(server.idle_w(chip) * 1000), power_mw=most_w * 1000)


@cache
def _read(file: str) -> Any:
    text = files("tokenmill.spec.catalogue").joinpath(f"{file}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def table(
    plain: dict[str, dict[str, Any]], kind: type[Kind], file: str, sources: dict[tuple[str, str], str]
) -> dict[str, Kind]:
    """Rows of one noun. Adds to ``sources`` those of single values."""
    made = {}
    for name, row in plain.items():
        one, problems = read_row(kind, name, row, sources)
        if one is None:
            where = ".".join(part for part in (f"{file}.yaml: {name}", problems[0].field) if part)
            raise DataError(f"{where} {problems[0].message}", expected=problems[0].expected)
        made[name] = one
    return made
