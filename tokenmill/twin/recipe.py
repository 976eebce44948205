"""What a replica makes at its best within its latency target: the ideal rate that OEE compares with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenmill.twin.floor_arrays import Array
from tokenmill.twin.iteration import combined
from tokenmill.twin.step_table import StepTable


@dataclass(frozen=True, slots=True)
class Lengths:
    """Means over requests, and of the squares, which count for attention and for what is open at a time."""

    inputs: float
    inputs_squared: float
    outputs: float
    outputs_squared: float

    @classmethod
    def of(cls, requests: Array) -> Lengths:
        """Of records of ``REQUEST``; at least one."""
        given, made = requests["input"].astype(np.float64), requests["output"].astype(np.float64)
        return cls(float(given.mean()), float((given**2).mean()), float(made.mean()), float((made**2).mean()))


def step_s(table: StepTable, lengths: Lengths, batch: float) -> float:
    """Seconds of a mean iteration with ``batch`` sequences, whose prompts are prefilled as they end."""
    last = len(table.seconds) - 1
    tokens = batch * (1 + lengths.inputs / lengths.outputs)
    # More prompt tokens than fit are prefilled in iterations of their own.
    full, rest = divmod(tokens, last)
    decoding = table.seconds[min(last, max(1, round(batch)))]
    prefill = full * table.seconds[last] + table.seconds[max(1, round(rest))] - decoding
    cached = batch * (lengths.inputs + lengths.outputs_squared / lengths.outputs / 2)
    begun = batch / lengths.outputs
    prefill += table.pair_s * begun * lengths.inputs_squared / 2
    added = combined(prefill, table.eager_s * min(1.0, begun))
    return float(decoding + table.cached_token_s * cached + table.prefill_share * added)


def best_batch(table: StepTable, lengths: Lengths, tpot_s: float) -> int:
    """The most sequences whose time per token stays within ``tpot_s`` and whose cache fits; at least one."""
    held = lengths.inputs + lengths.outputs_squared / lengths.outputs / 2
    low, high = 1, max(1, min(table.rules.max_sequences, int(table.cache_tokens / held)))
    while low < high:
        middle = (low + high + 1) // 2
        if step_s(table, lengths, middle) <= tpot_s:
            low = middle
        else:
            high = middle - 1
    return low


def rate(table: StepTable, lengths: Lengths, tpot_s: float) -> float:
    """Output tokens per second of a replica at its best batch."""
    batch = best_batch(table, lengths, tpot_s)
    return batch * table.rules.tokens_per_step / step_s(table, lengths, batch)
