"""How long one iteration of an inference engine takes, from its batch.

Two models answer the same question. ``RooflineModel`` computes it from the shape of the model and the data
sheet of the accelerator, with three efficiencies; ``LinearModel`` is fitted to measured rows (``calibrate``).
Neither knows requests or time: ``serving`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tokenmill.spec.catalogue import AcceleratorType

OVERLAP_LEFT = 0.15
"""Part of the smaller of compute and memory time that is not hidden behind the larger one: a value of
an earlier fit of ours on H100 rows. This form of the model has not been validated on held-out rows."""


class EngineModel(Protocol):
    """One replica's iteration time. ``prefill`` tokens of new prompts start at ``context`` tokens."""

    def iteration_s(self, decode: int, prefill: int, cached: int, context: int = 0) -> float:
        """Seconds of one iteration with ``decode`` sequences, ``prefill`` prompt tokens and ``cached`` tokens
        of key-value cache that the decoding sequences read."""
        ...

    @property
    def cached_token_s(self) -> float:
        """Seconds that one more cached token adds to an iteration: the slope along which decoding slows."""
        ...


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A dense decoder-only transformer. ``weight_bytes`` is per parameter as it is served."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    weight_bytes: float = 2.0
    kv_bytes: float = 2.0

    @property
    def gemms(self) -> tuple[tuple[int, int, int], ...]:
        """``(rows in, columns out, how many)`` of every weight matrix: attention, gated MLP, output head."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (
            (self.hidden, queries + 2 * keys, self.layers),
            (queries, self.hidden, self.layers),
            (self.hidden, 2 * self.intermediate, self.layers),
            (self.intermediate, self.hidden, self.layers),
        )

    @property
    def kv_token_bytes(self) -> float:
        """Bytes of key-value cache of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_bytes

    @property
    def parameters(self) -> int:
        """Weights of all matrices and of one embedding table."""
        return sum(k * m * count for k, m, count in self.gemms) + self.vocabulary * self.hidden


# Shapes as the models' publishers state them, written from memory; a test holds the parameter counts only.
SHAPES: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        ModelShape("smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152),
        ModelShape("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256),
        ModelShape("llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 128256),
        ModelShape("llama-3.1-405b", 126, 16384, 128, 8, 128, 53248, 128256),
        ModelShape("qwen3-8b", 36, 4096, 32, 8, 128, 12288, 151936),
        ModelShape("qwen3-32b", 64, 5120, 64, 8, 128, 25600, 151936),
    )
}


def shape_of(source: str) -> ModelShape | None:
    """The known shape that a model's source or name ends in, or None: then nothing is forecast for it."""
    plain = source.lower().replace("_", "-")
    for name in sorted(SHAPES, key=len, reverse=True):
        if name in plain or name.replace(".", "-") in plain:
            return SHAPES[name]
    return None


@dataclass(frozen=True, slots=True)
class RooflineModel:
    """Compute against memory per matrix, attention by bytes, and two all-reduces per layer.

    A product of ``n`` tokens with a k x m matrix takes max(F, M) + 0.15 min(F, M) with
    F = 2nkm / (P e_c n / (n + n0)) and M = (k m w + n k a + 2 n m) / (BW e_m); decoding reads the cache at
    BW e_a. Efficiencies are parameters; the defaults come from
    an earlier fit of ours on H100 rows, but ``attention_efficiency`` is assumed. Not validated here.
    """

    shape: ModelShape
    accelerator: AcceleratorType
    tensor_parallel: int = 1
    compute_efficiency: float = 0.61
    memory_efficiency: float = 0.95
    attention_efficiency: float = 0.7
    half_rate_tokens: float = 22.0
    host_s: float = 0.0046
    layer_s: float = 12e-6
    all_reduce_s: float = 3.8e-6

    @property
    def _flops(self) -> float:
        fp8 = self.accelerator.tflops_fp8 if self.shape.weight_bytes <= 1 else 0
        return (fp8 or self.accelerator.tflops_bf16) * 1e12

    @property
    def _bytes_s(self) -> float:
        return self.accelerator.memory_gb_s * 1e9

    @property
    def cached_token_s(self) -> float:
        return self.shape.kv_token_bytes / (self.tensor_parallel * self._bytes_s * self.attention_efficiency)

    def iteration_s(self, decode: int, prefill: int, cached: int, context: int = 0) -> float:
        tokens = decode + prefill
        if tokens == 0:
            return 0.0
        seconds = self.host_s + self.shape.layers * (self.layer_s + self._all_reduce_s(tokens))
        for k, m, count in self.shape.gemms:
            seconds += count * self._gemm_s(tokens, k, m)
        seconds += self._gemm_s(decode + (1 if prefill else 0), self.shape.hidden, self.shape.vocabulary)
        return seconds + self.cached_token_s * cached + self._prefill_s(prefill, context)

    def _gemm_s(self, tokens: int, k: int, m: int) -> float:
        parallel = self.tensor_parallel
        rate = self._flops * self.compute_efficiency * tokens / (tokens + self.half_rate_tokens)
        compute = 2 * tokens * k * m / parallel / rate
        moved = k * m * self.shape.weight_bytes / parallel + tokens * k * self.shape.weight_bytes
        memory = (moved + 2 * tokens * m / parallel) / (self._bytes_s * self.memory_efficiency)
        return max(compute, memory) + OVERLAP_LEFT * min(compute, memory)

    def _prefill_s(self, prefill: int, context: int) -> float:
        """Causal attention of a chunk: 4 L nq hd c (s + c/2) operations."""
        pairs = prefill * (context + prefill / 2)
        work = 4 * self.shape.layers * self.shape.heads * self.shape.head_dim * pairs
        return work / (self.tensor_parallel * self._flops * self.compute_efficiency)

    def _all_reduce_s(self, tokens: int) -> float:
        """Two ring all-reduces of the activations in each layer."""
        parallel = self.tensor_parallel
        if parallel == 1:
            return 0.0
        moved = 2 * (parallel - 1) / parallel * tokens * self.shape.hidden * 2
        return 2 * (self.all_reduce_s + moved / (self.accelerator.link_gb_s * 1e9))


@dataclass(frozen=True, slots=True)
class LinearModel:
    """Iteration time as a sum of what it does, each part measured: see ``calibrate.fit``.

    seconds = base + decode * per_decode + cached * per_cached + prefill * per_prefill + pairs * per_pair,
    where pairs = prefill * (context + prefill / 2) is the work of causal attention. A busy neighbour on the
    same cores multiplies it by ``slowdown``.
    """

    base_s: float
    per_decode_s: float
    per_cached_s: float
    per_prefill_s: float
    per_pair_s: float
    slowdown: float = 1.0

    @property
    def cached_token_s(self) -> float:
        return self.per_cached_s * self.slowdown

    def iteration_s(self, decode: int, prefill: int, cached: int, context: int = 0) -> float:
        if decode + prefill == 0:
            return 0.0
        pairs = prefill * (context + prefill / 2)
        return self.slowdown * (
            self.base_s
            + decode * self.per_decode_s
            + cached * self.per_cached_s
            + prefill * self.per_prefill_s
            + pairs * self.per_pair_s
        )
