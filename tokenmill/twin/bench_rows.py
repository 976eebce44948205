"""Measured serving points to a form that the model can be held to: one row per deployment and concurrency.

Reads the columns of ``aiconfigurator-core``'s table of measured deployments; a live factory writes the same.
The table names the number of accelerators in more than one way; ``layout_of`` says how each is read.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenmill.domain.errors import DataError
from tokenmill.spec.catalogue import catalogue
from tokenmill.twin.iteration import Layout

ACCELERATORS = {
    "a100_sxm": "a100-sxm-80gb",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "b200_sxm": "b200-sxm",
    "b300_sxm": "b300-sxm",
    "gb200": "b200-gb200",
    "gb300": "b300-gb300",
}
MODES = {"fp8": "fp8", "fp8_block": "fp8", "nvfp4": "fp4", "bfloat16": "bf16", "float16": "bf16"}
HELD_SHARE = 0.3
NEEDED = (
    "backend", "model_path", "system", "precision", "mode", "isl", "osl", "batch_size", "silicon_ttft_ms",
    "silicon_tpot_ms",
)  # fmt: skip
MUST_BE_POSITIVE = ("isl", "osl", "silicon_ttft_ms", "silicon_tpot_ms")


@dataclass(frozen=True, slots=True)
class ServingRow:
    """``batch`` sequences per attention copy; ``decode_only``: another engine prefills."""

    line: int
    model: str
    accelerator: str
    engine: str
    version: str
    precision: str
    layout: Layout
    inputs: int
    outputs: int
    batch: float
    decode_only: bool
    ttft_s: float
    tpot_s: float

    @property
    def sweep(self) -> str:
        """All but the concurrency: rows of one sweep are never split between fit and check."""
        where = (self.model, self.accelerator, self.engine, self.version, self.precision)
        return "|".join((*where, str(self.layout), f"{self.inputs}x{self.outputs}", str(self.decode_only)))

    @property
    def held(self) -> bool:
        """Whether its sweep is kept from the fit: by a hash of its name, three of ten."""
        digest = hashlib.blake2b(self.sweep.encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") / 2**32 < HELD_SHARE

    @property
    def dense(self) -> bool:
        return catalogue().models[self.model].experts == 0


@dataclass(frozen=True, slots=True)
class Serving:
    """``unstated``: rows that lack a batch size or worker counts, so that no model could answer."""

    rows: tuple[ServingRow, ...]
    unstated: int


def read_serving(path: Path) -> Serving:
    """Raises ``DataError`` with file, line and field for a value that cannot be."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    rows, unstated = [], 0
    reader = csv.DictReader(io.StringIO(text))
    missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{path}:1: columns are missing: {', '.join(missing)}", expected=", ".join(NEEDED))
    for line, plain in enumerate(reader, start=2):
        row = _row(path, line, plain)
        if row is None:
            unstated += 1
        else:
            rows.append(row)
    return Serving(tuple(rows), unstated)


def model_id(path: str) -> str | None:
    """The catalogue's name of a published model: its longest id that the name holds."""
    plain = path.lower().split("/")[-1].replace("_", "-")
    known = sorted(catalogue().models, key=len, reverse=True)
    return next((name for name in known if name in plain), None)


def layout_of(tensor: int, stages: int, data: int, expert_tensor: int, expert: int) -> Layout:
    """The layout that a row means.

    Where both the experts' degrees or both the attention's are the number of accelerators (8 x 8 on eight),
    that is what they stand for: attention is split (or copied) over all of them and so are the experts.
    """
    if expert_tensor == expert and expert > 1 and tensor * data == expert * expert:
        copied = data > 1
        return Layout(1 if copied else expert, stages, expert if copied else 1, expert, 1)
    if tensor == data and tensor > 1 and expert == tensor * data:
        return Layout(1, stages, data, data, 1)
    if tensor > 8 and expert <= 1 and expert_tensor == tensor:
        return Layout(1, stages, tensor, tensor, 1)
    return Layout(max(1, tensor), stages, max(1, data), max(1, expert), max(1, expert_tensor))


def _row(path: Path, line: int, plain: Mapping[str, str]) -> ServingRow | None:
    def number(field: str, default: float | None = None) -> float:
        text = (plain.get(field) or "").strip()
        if not text and default is not None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        positive = field in MUST_BE_POSITIVE
        if not math.isfinite(value) or value < 0 or (positive and value == 0):
            wanted = "a number above 0" if positive else "a number of 0 or more"
            raise DataError(f"{path}:{line}: {field} is {text!r}", expected=wanted)
        return value

    decode_only = plain.get("mode") == "disagg"
    part = "decode_" if decode_only else ""
    if not plain.get(part + "batch_size"):
        return None
    model = model_id(plain["model_path"])
    accelerator = ACCELERATORS.get(plain["system"])
    if model is None or accelerator is None:
        field = "model_path" if model is None else "system"
        known = catalogue().models if model is None else ACCELERATORS
        raise DataError(f"{path}:{line}: {field} is {plain[field]!r}", expected=", ".join(sorted(known)))
    names = ("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
    degrees = [int(number(part + name, 1)) for name in names]
    layout = layout_of(*degrees)
    stated_copies = max(1, degrees[2])
    batch = number(part + "batch_size")
    if not decode_only:
        batch = batch * stated_copies / layout.data
    return ServingRow(
        line=line,
        model=model,
        accelerator=accelerator,
        engine=plain["backend"],
        version=(plain.get("backend_version") or "").strip(),
        precision=MODES.get(plain.get("gemm_quant_mode") or "", plain.get("precision") or "fp8"),
        layout=layout,
        inputs=int(number("isl")),
        outputs=max(1, int(number("osl"))),
        batch=max(1.0, batch),
        decode_only=decode_only,
        ttft_s=number("silicon_ttft_ms") / 1000,
        tpot_s=number("silicon_tpot_ms") / 1000,
    )
