"""Which weights may be opened at all: safetensors, and adapters that fit the base they are put on.

Looks at names and headers only. A pickle (``.bin``, ``.pt``, ``.pth``, ``.pkl``, ``.ckpt``) runs code when
it is loaded, so no file of that kind is ever opened, whatever it claims to hold.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from tokenmill.domain.errors import CorruptWeightsError, EngineError

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format


def check_safe(directory: Path) -> None:
    """Raise ``CorruptWeightsError`` unless ``directory`` holds whole safetensors and no pickled weights."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    pickled = [path for path in files if path.suffix.lower() in PICKLES]
    if pickled:
        raise CorruptWeightsError(
            f"{pickled[0].name} is a pickle, which runs code when it is opened",
            expected="weights as .safetensors only",
            fix="Save the model with safetensors (model.save_pretrained does) and import it again.",
            where=str(pickled[0]),
        )
    weights = [path for path in files if path.suffix == ".safetensors"]
    if not weights:
        raise CorruptWeightsError("there are no weights", expected="*.safetensors", where=str(directory))
    for path in weights:
        shapes_of(path)


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, from the header of a safetensors file. Raises ``CorruptWeightsError``.

    The layout (8 bytes of little-endian length, JSON, data) is at https://huggingface.co/docs/safetensors.
    """
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > min(MAX_HEADER_BYTES, path.stat().st_size):
                raise ValueError(f"a header of {size:,} bytes")
            header: dict[str, Any] = json.loads(file.read(size))
            ends = [int(t["data_offsets"][1]) for n, t in header.items() if n != "__metadata__"]
            if max(ends, default=0) != path.stat().st_size - 8 - size:
                raise ValueError("its tensors do not end where the file ends")
            return {n: tuple(t["shape"]) for n, t in header.items() if n != "__metadata__"}
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise CorruptWeightsError(
            f"{path.name} is no safetensors file: {error}",
            expected="a file as safetensors writes it",
            where=str(path),
        ) from error


def check_adapter_fits(adapter: Path, base_dir: Path) -> None:
    """Raise ``EngineError`` when the LoRA in ``adapter`` was made for a base of another shape."""
    base: dict[str, tuple[int, ...]] = {}
    for path in sorted(base_dir.glob("*.safetensors")):
        base.update(shapes_of(path))
    for name, shape in sorted(shapes_of(adapter / "adapter_model.safetensors").items()):
        module, _, side = name.removeprefix("base_model.model.").rpartition(".lora_")
        matrix = base.get(f"{module}.weight")
        width = None if matrix is None else (matrix[1] if side.startswith("A") else matrix[0])
        have = shape[1] if side.startswith("A") else shape[0]
        if width != have:
            found = "which the base does not have" if width is None else f"where the base has {width}"
            raise EngineError(
                f"the adapter is for another base model: it adapts {have} values of {module}, {found}",
                expected=f"an adapter that was tuned on {base_dir.name}",
                fix="Name the base that it was tuned on, or tune it again on this one.",
                where=str(adapter),
            )
