"""The built-in catalogue: what racks, nodes and accelerators of a known type hold and take.

The figures are in ``catalogue.yaml``, each with where to check it; not all
have been checked yet. They describe hardware, not what software reaches
on it: throughput belongs to the twin's measured profiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True, slots=True)
class AcceleratorType:
    """Dense peak rates in TFLOP/s, 0 where the part has no such mode."""

    id: str
    name: str
    memory_gb: int
    memory_gb_s: int
    source: str
    tflops_bf16: float = 0
    tflops_fp8: float = 0
    tflops_fp4: float = 0
    link_gb_s: int = 0
    idle_w: int = 0
    max_w: int = 0


@dataclass(frozen=True, slots=True)
class NodeType:
    """``nvlink`` says how far an NVLink domain reaches: node, rack, or nowhere when empty."""

    id: str
    accelerators: int
    cpu: int
    memory_gb: int
    source: str
    accelerator: str = ""
    nvlink: str = ""
    overhead_w: int = 0


@dataclass(frozen=True, slots=True)
class RackType:
    id: str
    node: str
    nodes: int
    max_w: int
    source: str


@dataclass(frozen=True, slots=True)
class Catalogue:
    accelerators: dict[str, AcceleratorType]
    nodes: dict[str, NodeType]
    racks: dict[str, RackType]


@cache
def catalogue() -> Catalogue:
    """Read the packaged catalogue, once."""
    text = files("tokenmill.spec").joinpath("catalogue.yaml").read_text(encoding="utf-8")
    plain: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(text)
    return Catalogue(
        {name: AcceleratorType(name, **row) for name, row in plain["accelerators"].items()},
        {name: NodeType(name, **row) for name, row in plain["nodes"].items()},
        {name: RackType(name, **row) for name, row in plain["racks"].items()},
    )
