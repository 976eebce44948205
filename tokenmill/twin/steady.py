"""Latency of one engine under a constant number of concurrent requests: the protocol of published benchmarks.

``requests`` clients each send the next request when the last was answered. Closed forms, no simulation: the
simulator answers for arrivals. Takes arrays like ``iteration``.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.twin.iteration import Efficiency, Number, Work, parts


@dataclass(frozen=True, slots=True)
class Protocol:
    """How prefill and decoding share an engine; fitted like the efficiencies.

    ``interference``: how much of a prefill's time delays those that decode. ``wave``: which part of a whole
    wave of prompts an average request waits for. ``arrival_s``: parsing, tokenising, the way back.
    ``prompt`` multiplies the time of a prefill.
    """

    interference: Number = 0.9
    wave: Number = 0.15
    arrival_s: Number = 0.02
    prompt: Number = 1.0


@dataclass(frozen=True, slots=True)
class Steady:
    """Seconds, and requests that decode at once on one attention copy."""

    tpot_s: Number
    ttft_s: Number
    prefill_s: Number
    batch: Number


def steady(
    work: Work,
    eff: Efficiency,
    protocol: Protocol,
    *,
    batch: Number,
    waiting: Number,
    inputs: Number,
    outputs: Number,
    budget: Number,
    stages: Number = 1,
    drafted: Number = 1.0,
) -> Steady:
    """``batch`` sequences decode per attention copy while ``waiting`` more stand in its queue.

    ``budget`` is the most prompt tokens of an iteration; ``drafted`` the tokens gained per iteration.
    """
    small = batch / stages
    step = parts(work, eff, small, small * (inputs + outputs / 2), 0.0, small).total
    alone = protocol.prompt * prefill_s(work, eff, inputs, budget)
    among = protocol.prompt * among_others_s(work, eff, inputs, budget)
    tpot = step / drafted + batch / outputs * among * protocol.interference
    queue = waiting / (batch + 1e-9) * (alone * batch + outputs * (step / drafted))
    wave = protocol.wave * (batch - 1) * (batch > 1) * among
    return Steady(tpot, protocol.arrival_s + alone + step + wave + queue, alone, batch)


def prefill_s(work: Work, eff: Efficiency, inputs: Number, budget: Number) -> Number:
    """Seconds to prefill one prompt alone, in chunks of ``budget``; the fixed part counts once per chunk."""
    chunk = inputs * (inputs <= budget) + budget * (inputs > budget)
    chunks = inputs / chunk
    return chunks * parts(work, eff, chunk, 0.0, 0.0, 1.0).total + parts_pairs(work, eff, inputs)


def among_others_s(work: Work, eff: Efficiency, inputs: Number, budget: Number) -> Number:
    """Seconds of a prompt's part in iterations that other prompts fill up to ``budget``."""
    full = parts(work, eff, budget, 0.0, 0.0, 1.0).total
    return inputs / budget * full + parts_pairs(work, eff, inputs)


def parts_pairs(work: Work, eff: Efficiency, inputs: Number) -> Number:
    """Causal attention of a whole prompt: half of its square."""
    return inputs * inputs / 2 * work.pair_flops / (work.flops16_s * eff.prefill_attention)
