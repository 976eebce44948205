"""A Llama of which all weights were tuned, as a GGUF file: the base's own file with other matrices in it.

Vocabulary, chat template and rotary settings are taken over from the base, so that the engine reads the tuned
model exactly as it read the base. Quantising is not done: matrices are f16, as many bytes as they were
trained in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenmill.domain.errors import EngineError, MissingExtraError
from tokenmill.engine.convert import TUNE, rotary_order, tensors_of

DROPPED_KEYS = ("GGUF.", "general.file_type", "general.quantization_version")


def llama_to_gguf(tuned: Path, base_gguf: Path, into: Path) -> Path:
    """Write ``into/weights.gguf`` from the Hugging Face directory ``tuned``; returns its path.

    Raises ``EngineError`` for a model that is no Llama or a base that is no GGUF file.
    """
    try:
        import gguf
        import numpy as np
    except ImportError as error:
        raise MissingExtraError("writing GGUF needs its package", fix=TUNE) from error
    config = json.loads((tuned / "config.json").read_text("utf-8"))
    if config.get("model_type") != "llama" or not base_gguf.is_file():
        raise EngineError(
            f"all weights of a {config.get('model_type')} cannot be given to the embedded engine",
            expected="a Llama whose base is a GGUF file",
            fix="Tune with method lora, or serve the result with engine: vllm.",
        )
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, int(config["num_hidden_layers"]))
    path = into / "weights.gguf"
    writer = gguf.GGUFWriter(str(path.with_suffix(".part")), "llama")
    _copy_settings(gguf.GGUFReader(str(base_gguf)), writer)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for file in sorted(tuned.glob("*.safetensors")):
        for name, tensor in tensors_of(file):
            target = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if target is None:
                raise EngineError(f"{name} has no place in a Llama of llama.cpp", where=str(tuned))
            if name.endswith("q_proj.weight"):
                tensor = rotary_order(tensor, heads)
            elif name.endswith("k_proj.weight"):
                tensor = rotary_order(tensor, kv_heads)
            kind = np.float16 if tensor.ndim == 2 else np.float32
            writer.add_tensor(target, np.ascontiguousarray(tensor, dtype=kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".part").replace(path)
    return path


def _copy_settings(reader: Any, writer: Any) -> None:
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith(DROPPED_KEYS):
            continue
        kind = field.types[0]
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
