"""How many floating point operations a tuning needs, and which share of the hardware's peak that is (MFU).

Model FLOPs utilisation after Chowdhery et al., "PaLM" (2022), appendix B: operations that the model needs,
not those that were done, so neither padding nor recomputed activations count. Per token of a row of ``s``
tokens:

    full:  6 N + 12 L D s        forward 2 N, gradients of activations 2 N, gradients of weights 2 N
    LoRA:  4 N + 6 A + 12 L D s  the frozen weights need no gradients; the adapter's A parameters do

``N`` is the parameters of matrices that a token is multiplied with (the head counts, an input embedding that
is only looked up does not), ``L`` the layers, ``D`` heads times head size. Like the paper, attention is
counted over the whole row, not its causal half. Peaks are the dense ones of the catalogue, never the
sparse ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenmill.spec.catalogue import accelerator_named


@dataclass(frozen=True, slots=True)
class Work:
    """What a token costs. ``matrix`` is N, ``adapter`` is A (0 when all weights are tuned)."""

    matrix: int
    adapter: int
    layers: int
    attention_width: int

    def flops(self, lengths: Sequence[int]) -> float:
        """Operations of one pass, forward and backward, over rows of these ``lengths``."""
        return self.flops_of(sum(lengths), sum(s * s for s in lengths))

    def flops_of(self, tokens: int, squares: int) -> float:
        """The same from the sum of the lengths and the sum of their squares."""
        per_token = 4 * self.matrix + 6 * self.adapter if self.adapter else 6 * self.matrix
        return float(per_token * tokens + 12 * self.layers * self.attention_width * squares)


def work_of(model: object) -> Work:
    """Count the parameters of a transformers or PEFT ``model``."""
    config = model.config  # type: ignore[attr-defined]
    named = [(name, p) for name, p in model.named_parameters() if p.ndim >= 2]  # type: ignore[attr-defined]
    adapter = sum(p.numel() for name, p in named if ".lora_" in name)
    matrix = sum(p.numel() for name, p in named if ".lora_" not in name)
    if not config.tie_word_embeddings:
        matrix -= sum(p.numel() for name, p in named if "embed_tokens" in name)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Work(matrix, adapter, config.num_hidden_layers, config.num_attention_heads * head)


def peak_tflops(device_name: str, precision: str) -> float:
    """Dense peak of the accelerator that calls itself ``device_name``, in TFLOP/s; 0.0 when it is not
    known.
    """
    if precision != "bf16":
        return 0.0
    found = accelerator_named(device_name)
    return found.tflops_bf16 if found else 0.0


def mfu(flops: float, seconds: float, peak: float, accelerators: int) -> float:
    """Share of the peak, from 0 to 1; 0.0 when the peak is not known."""
    return flops / seconds / (peak * 1e12 * accelerators) if seconds > 0 and peak > 0 else 0.0
