"""Measured serving points to a form that the model can be held to: one row per deployment and concurrency.

Reads the columns of ``aiconfigurator-core``'s table of measured deployments; a live factory writes the same.
The table names the number of accelerators in more than one way; ``layout_of`` says how each is read.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenmill.domain.catalogue import NO_TYPES, AcceleratorType, Catalogue, ModelType, OwnTypes
from tokenmill.domain.errors import DataError
from tokenmill.domain.units import did_you_mean
from tokenmill.spec.catalogue import catalogue
from tokenmill.spec.files import unreadable
from tokenmill.twin.iteration import WEIGHT_BYTES, Layout

ACCELERATORS = {
    "a100_sxm": "a100-sxm-80gb",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "b200_sxm": "b200-sxm",
    "b300_sxm": "b300-sxm",
    "gb200": "b200-gb200",
    "gb300": "b300-gb300",
    "rtx_pro_6000_server": "rtxpro6000-server",
}
"""Names of that table; a row may also name a type of the catalogue."""

MODES = {
    "fp8": "fp8", "fp8_block": "fp8", "nvfp4": "fp4", "bfloat16": "bf16", "float16": "bf16",
    "int4_wo": "int4",
}  # fmt: skip

PUBLISHED = {
    "fp8": "fp8", "fp4": "fp4", "int4": "int4", "awq": "int4", "gptq": "int4", "gpt-oss": "fp4",
    "deepseek-v3": "fp8", "deepseek-r1": "fp8", "minimax-m2": "fp8", "kimi-k2": "int4",
}  # fmt: skip
"""What a checkpoint's name says of its weights: an engine that is not told otherwise serves them as they were
published, which is in 16 bit where the name says nothing."""
FOLDS = 5
NEEDED = (
    "backend", "model_path", "system", "precision", "mode", "isl", "osl", "batch_size", "silicon_ttft_ms",
    "silicon_tpot_ms",
)  # fmt: skip
MAX_ROWS = 100_000
MOST_MS, MOST_TOKENS, MOST = 1e7, 1e7, 100_000
TIMES = ("silicon_ttft_ms", "silicon_tpot_ms")
BOUNDS = {**dict.fromkeys(TIMES, (0, MOST_MS)), "isl": (1, MOST_TOKENS), "osl": (1, MOST_TOKENS)}
"""What a column may hold; of batch sizes and worker counts 0 to ``MOST``. ``TIMES`` are above their least."""


@dataclass(frozen=True, slots=True)
class ServingRow:
    """``batch`` sequences per attention copy; ``decode_only``: another engine prefills."""

    line: int
    model: ModelType
    accelerator: AcceleratorType
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
    file: str = ""

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def sweep(self) -> str:
        """All but the concurrency: rows of one sweep are never split between fit and check."""
        where = (self.model.id, self.accelerator.id, self.engine, self.version, self.precision)
        return "|".join((*where, str(self.layout), f"{self.inputs}x{self.outputs}", str(self.decode_only)))

    @property
    def fold(self) -> int:
        """Its sweep's part of a cross-validation, 0 to ``FOLDS`` - 1: by a hash of its name."""
        return zlib.crc32(self.sweep.encode()) % FOLDS

    @property
    def dense(self) -> bool:
        return self.model.experts == 0


@dataclass(frozen=True, slots=True)
class Serving:
    """``unstated``: rows that lack a batch size or worker counts, so that no model could answer.

    ``unknown``: rows left out because the catalogue lacks their model or accelerator, by that name.
    """

    rows: tuple[ServingRow, ...]
    unstated: int = 0
    unknown: Mapping[str, int] = field(default_factory=dict)

    @property
    def coverage(self) -> float:
        """Share of the rows that state a configuration which the model answers; 1.0 when there are none."""
        every = len(self.rows) + sum(self.unknown.values())
        return len(self.rows) / every if every else 1.0


class UnknownNameError(DataError):
    """A model or accelerator that the catalogue lacks."""

    def __init__(self, where: str, name: str, known: Mapping[str, object]) -> None:
        fix = did_you_mean(name, known) or "Name one, add it to the catalogue (-f FILE), or --skip-unknown."
        super().__init__(
            f"{where} is {name!r}, which the catalogue lacks", expected=", ".join(sorted(known)), fix=fix
        )
        self.name = name


def read_serving(path: Path, own: OwnTypes = NO_TYPES, *, skip_unknown: bool = False) -> Serving:
    """Rows of a table, plain or gzipped, of shipped and ``own`` types.

    Raises ``DataError`` with file, line and field for a value that cannot be; with ``skip_unknown``
    rows of unknown models and accelerators are counted and left out.
    """
    rows, unstated, unknown = [], 0, Counter[str]()
    known = catalogue(own)
    for line, plain in _lines(path):
        try:
            row = _row(path, line, plain, known)
        except UnknownNameError as error:
            if not skip_unknown:
                raise
            unknown[error.name] += 1
            continue
        if row is None:
            unstated += 1
        else:
            rows.append(row)
    return Serving(tuple(rows), unstated, unknown)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row by its columns' names, with its line."""
    reader = csv.reader(io.StringIO(_text(path)))
    try:
        names = next(reader, [])
        _check_columns(path, names)
        for number, cells in enumerate(filter(None, reader)):
            if number == MAX_ROWS:
                raise DataError(f"{path}:{reader.line_num}: too many rows", expected=f"at most {MAX_ROWS:,}")
            if len(cells) != len(names):
                raise DataError(
                    f"{path}:{reader.line_num}: {len(cells)} values for {len(names)} columns",
                    expected="one value for each column, empty where it is not known",
                )
            yield reader.line_num, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: {error}", expected="CSV text") from None


def _check_columns(path: Path, names: Sequence[str]) -> None:
    if not names:
        raise DataError(f"{path} is empty", expected=f"a first line with {', '.join(NEEDED)}")
    missing = [name for name in NEEDED if name not in names]
    other = next((mark for mark in ";\t|" if len(names) == 1 and mark in names[0]), "")
    if missing:
        raise DataError(
            f"{path}:1: columns are missing: {', '.join(missing)}",
            expected=", ".join(NEEDED),
            fix=f"The first line is divided by {other!r}: write commas." if other else "",
        )


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read: {unreadable(error)}", expected="CSV text, or that gzipped"
        ) from None


def model_id(path: str, known: Collection[str]) -> str | None:
    """The catalogue's name of a published model: its own id, else the longest that the name holds."""
    if path in known:
        return path
    plain = _plain(path.split("/")[-1])
    return next((name for name in sorted(known, key=len, reverse=True) if _plain(name) in plain), None)


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


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


def _row(path: Path, line: int, plain: Mapping[str, str], known: Catalogue) -> ServingRow | None:
    def number(column: str, default: float | None = None) -> float:
        text = (plain.get(column) or "").strip()
        if not text and default is not None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        least, most = BOUNDS.get(column, (0, MOST))
        above = column in TIMES
        if not least <= value <= most or (above and value == least):
            wanted = f"a number above {least}" if above else f"a number of {least} or more"
            raise DataError(f"{path}:{line}: {column} is {text!r}", expected=f"{wanted}, at most {most:,.0f}")
        return value

    decode_only = plain.get("mode") == "disagg"
    part = "decode_" if decode_only else ""
    if not plain.get(part + "batch_size"):
        return None
    model = model_id(plain["model_path"], known.models)
    if model is None:
        raise UnknownNameError(f"{path}:{line}: model_path", plain["model_path"], known.models)
    accelerator = known.accelerators.get(ACCELERATORS.get(plain["system"], plain["system"]))
    if accelerator is None:
        every = {**ACCELERATORS, **known.accelerators}
        raise UnknownNameError(f"{path}:{line}: system", plain["system"], every)
    if not plain["backend"].strip():
        raise DataError(f"{path}:{line}: backend is empty", expected="the engine: vllm, sglang or trtllm")
    names = ("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
    degrees = [int(number(part + name, 1)) for name in names]
    layout = layout_of(*degrees)
    stated_copies = max(1, degrees[2])
    batch = number(part + "batch_size")
    if not decode_only:
        batch = batch * stated_copies / layout.data
    return ServingRow(
        line=line,
        model=known.models[model],
        accelerator=accelerator,
        engine=plain["backend"],
        version=(plain.get("backend_version") or "").strip(),
        precision=_precision(f"{path}:{line}", plain),
        layout=layout,
        inputs=int(number("isl")),
        outputs=max(1, int(number("osl"))),
        batch=max(1.0, batch),
        decode_only=decode_only,
        ttft_s=number("silicon_ttft_ms") / 1000,
        tpot_s=number("silicon_tpot_ms") / 1000,
        file=str(path),
    )


def _precision(where: str, plain: Mapping[str, str]) -> str:
    name = plain["model_path"].lower()
    published = next((bits for mark, bits in PUBLISHED.items() if mark in name), "bf16")
    stated = plain.get("precision") or published
    found = MODES.get(plain.get("gemm_quant_mode") or "", stated)
    if found not in WEIGHT_BYTES:
        raise DataError(f"{where}: precision is {stated!r}", expected=", ".join(WEIGHT_BYTES))
    return found
