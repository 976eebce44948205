"""Latency of one engine under a constant number of concurrent requests: the protocol of published benchmarks.

``requests`` clients each send the next request when the last was answered. Closed forms, no simulation: the
simulator answers for arrivals. Takes arrays like ``iteration``.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.twin.iteration import Efficiency, Number, Work, combined, parts


@dataclass(frozen=True, slots=True)
class Protocol:
    """How prefill and decoding share an engine; fitted like the efficiencies.

    ``interference``: how much of a prefill's time delays those that decode. ``wave``: which part of a whole
    wave of prompts an average request waits for. ``arrival_s``: parsing, tokenising, the way back.
    ``prompt`` multiplies the time of a prefill. ``token_s``: of the process in front of the engine, which
    turns one token after the other into text for all its requests. ``ahead``: requests that a benchmark keeps
    in the queue though the engine has room; nobody who plans has any.
    """

    interference: Number = 0.9
    wave: Number = 0.15
    arrival_s: Number = 0.02
    prompt: Number = 1.0
    token_s: Number = 20e-6
    ahead: Number = 0.03


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
    alone = prompt_s(work, eff, protocol, inputs, budget)
    others = (batch - 1) * (batch > 1) * among_others_s(work, eff, protocol, inputs, budget)
    first = protocol.arrival_s + alone + step + protocol.wave * others
    own, added = outputs * (step / drafted), others * protocol.interference
    answer = first + _decoding_s(first, own, added)
    late = combined(answer, batch * work.data * outputs * protocol.token_s) - answer
    decoding = _decoding_s(first + late, own, added)
    queue = waiting / (batch + 1e-9) * (first + late + decoding)
    return Steady(decoding / outputs, first + late + queue, alone, batch)


def _decoding_s(first: Number, own: Number, added: Number) -> Number:
    """Seconds from the first token to the last: the request's ``own`` iterations, and of what the prompts of
    all others have ``added`` from its arrival to its end that which falls into these seconds.

    Solves ``t = own + added * t / (first + t)``.
    """
    half = (first - added - own) / 2
    return (half * half + own * first) ** 0.5 - half


def prompt_s(work: Work, eff: Efficiency, protocol: Protocol, inputs: Number, budget: Number) -> Number:
    """Seconds to prefill one prompt alone, in chunks of ``budget``; the fixed part counts once per chunk."""
    chunk = inputs * (inputs <= budget) + budget * (inputs > budget)
    chunks = inputs / chunk
    busy = chunks * parts(work, eff, chunk, 0.0, 0.0, 1.0).total + _pairs_s(work, eff, inputs)
    return combined(protocol.prompt * busy, chunks * eff.eager_s * work.layers)


def among_others_s(work: Work, eff: Efficiency, protocol: Protocol, inputs: Number, budget: Number) -> Number:
    """Seconds of a prompt's part in iterations that other prompts fill up to ``budget``."""
    chunk = inputs * (inputs <= budget) + budget * (inputs > budget)
    full = parts(work, eff, budget, 0.0, 0.0, 1.0).total
    busy = inputs / budget * full + _pairs_s(work, eff, inputs)
    return combined(protocol.prompt * busy, inputs / chunk * eff.eager_s * work.layers)


def _pairs_s(work: Work, eff: Efficiency, inputs: Number) -> Number:
    """Causal attention of a whole prompt: half of its square."""
    return inputs * inputs / 2 * work.pair_flops / (work.flops16_s * eff.prefill_attention)
