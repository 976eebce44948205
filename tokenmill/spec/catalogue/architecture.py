"""A model's ``config.json``, as Transformers writes it, to the fields of a row of models.

Of a multimodal model the part that writes text. What a configuration leaves open is not guessed: a row may
state it beside ``config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PLAIN = {
    "layers": ("num_hidden_layers",),
    "hidden": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads", "num_attention_heads"),
    "head_dim": ("head_dim",),
    "intermediate": ("intermediate_size",),
    "vocabulary": ("vocab_size",),
    "experts": ("num_local_experts", "n_routed_experts", "num_experts"),
    "experts_per_token": ("num_experts_per_tok", "num_experts_per_token", "moe_topk"),
    "expert_intermediate": ("moe_intermediate_size", "intermediate_size"),
    "shared_intermediate": ("shared_expert_intermediate_size",),
    "dense_layers": ("first_k_dense_replace",),
    "latent": ("kv_lora_rank",),
    "latent_query": ("q_lora_rank",),
    "rope_dim": ("qk_rope_head_dim",),
}
"""Fields of a row to the names that publishers have for them, the first that is there counts."""

OF_EXPERTS = ("experts_per_token", "expert_intermediate", "shared_intermediate", "dense_layers")
OF_LATENT = ("latent_query", "rope_dim")


def architecture_of(config: Mapping[str, Any], stated: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The row's fields, what is ``stated`` first, and what in ``config`` cannot be told from it."""
    text = config.get("text_config")
    plain = {**config, **text} if isinstance(text, Mapping) else dict(config)
    found = {name: value for name, keys in PLAIN.items() if (value := _first(plain, keys)) is not None}
    found["tied"] = bool(plain.get("tie_word_embeddings", False))
    _heads(plain, found)
    problems = _attention(plain, found, stated)
    if found.get("experts"):
        problems += _experts(plain, found, stated)
    else:
        found = {name: value for name, value in found.items() if name not in ("experts", *OF_EXPERTS)}
    if not found.get("latent"):
        found = {name: value for name, value in found.items() if name not in ("latent", *OF_LATENT)}
    if plain.get("is_encoder_decoder"):
        problems.append("is of an encoder with a decoder; the twin knows decoders")
    return {**found, **stated}, problems


def _first(plain: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((plain[key] for key in keys if plain.get(key) is not None), None)


def _heads(plain: Mapping[str, Any], found: dict[str, Any]) -> None:
    """The width of a head where it is not said: of a compressed cache the mean of keys and values."""
    key, value = plain.get("qk_nope_head_dim"), plain.get("v_head_dim")
    if found.get("latent") and isinstance(key, int) and isinstance(value, int):
        found["head_dim"] = (key + value) // 2
    elif "head_dim" not in found and isinstance(found.get("hidden"), int) and found.get("heads"):
        found["head_dim"] = found["hidden"] // found["heads"]


def _attention(plain: Mapping[str, Any], found: dict[str, Any], stated: Mapping[str, Any]) -> list[str]:
    """How many layers read the whole context."""
    kinds = plain.get("layer_types")
    window = plain.get("sliding_window") if plain.get("use_sliding_window", True) else None
    if isinstance(kinds, list):
        full = sum("full" in str(kind) for kind in kinds)
        if 0 < full < len(kinds):
            found["full_attention_layers"] = full
            found["window"] = window or 0
        elif not full and "full_attention_layers" not in stated:
            return ["has no layer of full attention in layer_types; state full_attention_layers beside it"]
    elif window and "full_attention_layers" not in stated:
        return ["has a sliding_window and no layer_types; state full_attention_layers beside it"]
    return []


def _experts(plain: Mapping[str, Any], found: dict[str, Any], stated: Mapping[str, Any]) -> list[str]:
    """Which layers have experts, and what every token passes beside them."""
    problems = []
    shared = _first(plain, ("n_shared_experts", "num_shared_experts"))
    if "shared_intermediate" not in found and shared:
        found["shared_intermediate"] = shared * found.get("expert_intermediate", 0)
    frequency = plain.get("moe_layer_freq")
    if isinstance(frequency, list):
        found["dense_layers"] = sum(not one for one in frequency)
    spread = plain.get("decoder_sparse_step", 1) != 1 or plain.get("mlp_only_layers")
    if (spread or (isinstance(frequency, int) and frequency != 1)) and "dense_layers" not in stated:
        problems.append("has layers without experts among those with them; state dense_layers beside it")
    if not (found.get("dense_layers") or stated.get("dense_layers")):
        found["intermediate"] = 0
    return problems
