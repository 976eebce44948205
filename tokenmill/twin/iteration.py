"""What one iteration of an engine has to move and compute, and how long that takes at given efficiencies.

``work_of`` counts bytes and operations of a (model, accelerator, layout, precision) once; ``seconds`` is a
roofline over them. Its formulas use only ``+ - * / **``, so that they take numbers here and arrays of rows
when ``fit`` fits the efficiencies: both compute the very same thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenmill.domain.errors import DataError
from tokenmill.spec.catalogue import AcceleratorType, ModelType

Number = Any
"""A float, or an array of them with one entry per row."""

WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp4": 0.5625, "int4": 0.53125}
"""Of one weight; FP4 carries an FP8 scale for each 16 values, INT4 a 16-bit one for each 64."""

SHARPNESS = 4.0
"""Compute and memory time combine as (F**p + M**p)**(1/p): 19 % above the larger one where they are equal."""

BLOCK_QUERY_HEADS = 2.0
"""MLA decoding multiplies each query head with the compressed cache twice: scores and values."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How one replica lies over its accelerators.

    ``tensor`` splits attention and dense layers, ``data`` counts copies of attention with own sequences,
    ``pipeline`` cuts the layers into stages, ``expert`` spreads experts, ``expert_tensor`` splits each.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: int = 1
    expert_tensor: int = 1

    @property
    def accelerators(self) -> int:
        return self.tensor * self.pipeline * self.data

    def __str__(self) -> str:
        names = (("TP", self.tensor), ("PP", self.pipeline), ("DP", self.data), ("EP", self.expert))
        return " ".join(f"{name}{count}" for name, count in names if count > 1) or "TP1"


@dataclass(frozen=True, slots=True)
class Work:
    """Per accelerator, all layers: bytes and operations of an iteration. See ``work_of``."""

    dense_flops: Number  # per token
    dense_bytes: Number
    head_flops: Number  # per sequence that samples
    head_bytes: Number
    activation_bytes: Number  # per token
    expert_flops: Number  # per token and expert that it chose
    expert_bytes: Number  # of one expert
    experts: Number
    chosen: Number
    expert_parallel: Number
    data: Number
    cache_bytes: Number  # per cached token
    cache_flops: Number
    pair_flops: Number
    layers: Number
    reduces: Number
    reduce_bytes: Number  # per token
    exchange_bytes: Number  # per token
    exchanges: Number
    flops_s: Number
    flops16_s: Number
    bytes_s: Number
    link_s: Number


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What software reaches of the data sheet; every one is fitted, see ``profiles``. Times in seconds.

    ``eager_s``: of the host, for each layer of an iteration with prompts, which replays no captured graph:
    its kernels are launched one by one.
    """

    compute: Number = 0.55
    memory: Number = 0.8
    expert_compute: Number = 0.4
    expert_memory: Number = 0.6
    attention: Number = 0.6
    prefill_attention: Number = 0.4
    half_rate_tokens: Number = 60.0
    half_rate_expert_tokens: Number = 20.0
    host_s: Number = 0.001
    layer_s: Number = 10e-6
    eager_s: Number = 100e-6
    reduce_s: Number = 8e-6
    exchange_s: Number = 20e-6
    link: Number = 0.5
    imbalance: Number = 1.2


def work_of(model: ModelType, accelerator: AcceleratorType, layout: Layout, precision: str) -> Work:
    """Count once for a configuration. Raises ``DataError`` for a precision that the accelerator lacks."""
    weight = WEIGHT_BYTES.get(precision)
    # INT4 quantises weights only: they are widened and computed in 16 bit.
    rates = {"bf16": accelerator.tflops_bf16, "fp8": accelerator.tflops_fp8, "fp4": accelerator.tflops_fp4,
             "int4": accelerator.tflops_bf16}  # fmt: skip
    if weight is None:
        raise DataError(f"precision is {precision!r}", expected=" or ".join(WEIGHT_BYTES))
    # Weights of fewer bits than the tensor cores know are widened first: FP4 on Hopper computes in 16 bit.
    rate = rates[precision] or rates["bf16"]
    tensor, data = layout.tensor, layout.data
    expert_rate = weight if model.experts else 1.0
    cache_value_bytes = 2.0 if precision in ("bf16", "int4") else 1.0
    heads = max(1, min(tensor, model.kv_heads)) if not model.latent else 1
    wide = model.heads * model.head_dim
    tensor_shared = tensor if data == 1 else layout.tensor
    head = model.vocabulary * model.hidden
    moved = (data if data > 1 else 0) and min(model.experts_per_token or 1, data)
    pair = 4 * wide * model.attention_layers / tensor
    cache_flops = pair
    if model.latent:
        pair = 2 * model.heads * (2 * model.head_dim + model.rope_dim) * model.layers / tensor
        cache_flops = 2 * model.heads * (2 * model.latent + model.rope_dim) * model.layers / tensor
    return Work(
        dense_flops=2 * model.dense_parameters / tensor_shared,
        dense_bytes=_dense_bytes(model, weight) / tensor_shared,
        head_flops=2 * head / tensor,
        head_bytes=2 * head / tensor,
        activation_bytes=16 * model.hidden * model.layers,
        expert_flops=2 * model.moe_layers * model.expert_parameters / layout.expert_tensor,
        expert_bytes=expert_rate * model.moe_layers * model.expert_parameters / layout.expert_tensor,
        experts=max(1, model.experts),
        chosen=model.experts_per_token,
        expert_parallel=layout.expert,
        data=data,
        cache_bytes=model.kv_token_values * cache_value_bytes / heads,
        cache_flops=cache_flops,
        pair_flops=pair,
        layers=model.layers,
        reduces=2 * model.layers if tensor > 1 else 0,
        reduce_bytes=2 * model.layers * 2 * (tensor - 1) / tensor * model.hidden * 2,
        exchange_bytes=3 * moved * model.hidden * model.moe_layers,
        exchanges=2 * model.moe_layers if data > 1 else 0,
        flops_s=rate * 1e12,
        flops16_s=accelerator.tflops_bf16 * 1e12,
        bytes_s=accelerator.memory_gb_s * 1e9,
        link_s=max(1.0, accelerator.link_gb_s * 1e9),
    )


def _dense_bytes(model: ModelType, weight: float) -> float:
    """Attention projections of models that quantise only experts stay in more bits: at least one byte."""
    kept = max(weight, 1.0) if model.experts else weight
    return model.dense_parameters * kept


def combined(first: Number, second: Number) -> Number:
    """Of two times that overlap: see ``SHARPNESS``."""
    return (first**SHARPNESS + second**SHARPNESS + 1e-60) ** (1 / SHARPNESS)


@dataclass(frozen=True, slots=True)
class Parts:
    """Seconds of an iteration by what bounds them; ``host`` is what the engine itself takes."""

    host: Number
    dense: Number
    experts: Number
    head: Number
    cache: Number
    pairs: Number
    network: Number

    @property
    def total(self) -> Number:
        busy = self.dense + self.experts + self.head + self.cache + self.pairs
        return self.host + busy + self.network


def parts(
    work: Work, eff: Efficiency, tokens: Number, cached: Number, pairs: Number, sampled: Number
) -> Parts:
    """One iteration of each attention copy: ``tokens`` through its weights, ``sampled`` of them predict.

    ``cached`` and ``pairs`` as in ``step_table``, of one copy.
    """
    compute = tokens * work.dense_flops * (1 + eff.half_rate_tokens / (tokens + 1e-9))
    memory = work.dense_bytes + tokens * work.activation_bytes
    dense = combined(compute / (work.flops_s * eff.compute), memory / (work.bytes_s * eff.memory))
    head = (work.head_bytes + sampled * work.head_flops * work.bytes_s / work.flops16_s) / (
        work.bytes_s * eff.memory
    )
    cache = cached * (work.cache_bytes / (work.bytes_s * eff.attention) + work.cache_flops / work.flops16_s)
    network = work.reduces * eff.reduce_s + work.exchanges * eff.exchange_s
    network = network + tokens * (work.reduce_bytes + work.exchange_bytes) / (work.link_s * eff.link)
    return Parts(
        host=eff.host_s + work.layers * eff.layer_s,
        dense=dense,
        experts=_experts_s(work, eff, tokens),
        head=head,
        cache=cache,
        pairs=pairs * work.pair_flops / (work.flops16_s * eff.prefill_attention),
        network=network,
    )


def touched_experts(work: Work, tokens: Number) -> Number:
    """Experts of one accelerator that at least one of the ``tokens`` of each copy chose."""
    missed = (1 - work.chosen / work.experts) ** (tokens * work.data)
    return work.experts / work.expert_parallel * (1 - missed)


def _experts_s(work: Work, eff: Efficiency, tokens: Number) -> Number:
    """Experts of the busiest accelerator: those chosen are read, ``imbalance`` more rows computed."""
    everyone = tokens * work.data
    touched = touched_experts(work, tokens)
    rows = everyone * work.chosen / work.expert_parallel * eff.imbalance
    compute = work.expert_flops * (rows + eff.half_rate_expert_tokens * touched)
    return combined(
        compute / (work.flops_s * eff.expert_compute),
        work.expert_bytes * touched / (work.bytes_s * eff.expert_memory),
    )
