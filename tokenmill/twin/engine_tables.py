"""Step tables of a configuration: the performance model's iterations and their energy, for the core."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tokenmill.domain.catalogue import SERVER_LOSS, beside_w
from tokenmill.domain.errors import DataError
from tokenmill.spec.catalogue import catalogue
from tokenmill.twin.capacity import need_fit
from tokenmill.twin.configuration import Configuration
from tokenmill.twin.iteration import Efficiency, Work, parts, touched_experts, work_of
from tokenmill.twin.power_model import COMPUTE_SHARE, MEMORY_SHARE, RUNNING_SHARE
from tokenmill.twin.profiles import ELSEWHERE, OTHER_MODEL, ROWS_OF, Profile, kind_of, names_with, of_kind
from tokenmill.twin.step_table import EngineRules, StepTable

CLOCKS = (1.0, 0.9, 0.8, 0.7)
"""Steps to which a power cap lowers clocks. Dynamic power goes with the cube of the clock, compute time with
its inverse; memory keeps its rate."""


@dataclass(frozen=True, slots=True)
class Basis:
    """What a table's numbers rest on: the error nine of ten unseen measured rows stayed within."""

    ttft: float | None
    tpot: float | None
    text: str


def tables(asked: Configuration, known: Profile, *, prefix_cache: bool = False) -> list[StepTable]:
    """The engine at falling clocks. Raises ``DataError`` that says what would fit if the layout does not."""
    return [_table(asked, known, clock, prefix_cache) for clock in CLOCKS]


def basis(asked: Configuration, known: Profile) -> Basis:
    """The stated error of a configuration, and whether its accelerator and model were measured at all."""
    engine, chip, model = asked.engine.id.rpartition("-")[0], asked.accelerator, asked.model.id
    kind, beyond = kind_of(asked.model), known.beyond(engine, chip.id, asked.model)
    what = {ELSEWHERE: f"{engine} on {chip.id}", OTHER_MODEL: model}
    ttft, tpot = (known.stated(f"{kind}_{quantity}", beyond) for quantity in ("ttft", "tpot"))
    text = f"{len(tpot.errors)} {kind} rows {ROWS_OF[tpot.of]}"
    if beyond:
        text += f"; none of {' or '.join(what[one] for one in beyond)}"
    kinds = catalogue().accelerators.values()
    if ELSEWHERE in beyond and not any(
        of_kind(f"accelerator:{one.id}", kind) in known.offsets for one in kinds if one.vendor == chip.vendor
    ):
        text += f", nor of any other of {chip.vendor}"
    return Basis(ttft.at(0.9), tpot.at(0.9), text)


def arrival_s(asked: Configuration, known: Profile) -> float:
    """Seconds of a request beside its waiting and prefill up to its first token: parsing, the way there and
    back, and the iteration after the prefill, as ``steady`` has it."""
    names = _names(asked)
    work = work_of(asked.model, asked.accelerator, asked.layout, asked.precision)
    step_s = parts(work, known.efficiency(names), 1.0, 0.0, 0.0, 1.0).total
    return float(known.protocol(names).arrival_s + step_s)


def _names(asked: Configuration) -> tuple[str, ...]:
    """A factory does not state its engine's version, nor does a question of size: both are foretold alike."""
    engine = asked.engine.id.rpartition("-")[0]
    return names_with(engine, "", asked.accelerator, asked.precision, asked.model)


def _table(asked: Configuration, known: Profile, clock: float, prefix_cache: bool) -> StepTable:
    layout, engine = asked.layout, asked.engine
    fit = need_fit(asked.model, asked.accelerator, layout, asked.precision, asked.context)
    work = _clocked(work_of(asked.model, asked.accelerator, layout, asked.precision), clock)
    efficiency, protocol = known.efficiency(_names(asked)), known.protocol(_names(asked))
    rules = EngineRules(
        mixed=engine.mixed,
        token_budget=max(engine.token_budget, asked.slots + 1),
        max_sequences=asked.slots,
        preempt=engine.admission == "prompt" and fit.cache_tokens * layout.data < asked.slots * asked.context,
        block_tokens=engine.block,
        prefix_cache=prefix_cache,
    )
    copies = layout.data * layout.pipeline
    tokens = np.arange(rules.most_tokens + 1, dtype=np.float64) / copies
    sampled = np.minimum(np.arange(rules.most_tokens + 1), asked.slots) / copies
    seconds, joules = _iteration(asked, work, efficiency, clock, tokens, sampled)
    slope = _slopes(asked, work, efficiency, clock)
    seconds[0], joules[0] = 0.0, 0.0
    found = StepTable(
        name=f"{asked} at {clock:.0%} clock",
        seconds=tuple(seconds.tolist()),
        cached_token_s=slope[0] / copies,
        pair_s=slope[1] / copies,
        cache_tokens=fit.cache_tokens * layout.data,
        rules=rules,
        joules=tuple(joules.tolist()),
        cached_token_j=slope[2] / copies,
        pair_j=slope[3] / copies,
        idle_w=_idle_w(asked),
        prefill_share=protocol.prompt * protocol.interference,
        eager_s=efficiency.eager_s * work.layers / protocol.prompt,
        late_share=protocol.prompt * max(0.0, 1 - protocol.interference),
    )
    if fit.cache_tokens * layout.data < engine.block:
        raise DataError(f"{asked}: no room for a block of cache", expected=f"{engine.block} tokens")
    return found


def _clocked(work: Work, clock: float) -> Work:
    return replace(work, flops_s=work.flops_s * clock, flops16_s=work.flops16_s * clock)


def _iteration(
    asked: Configuration, work: Work, eff: Efficiency, clock: float, tokens: Any, sampled: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and joules above idle of all accelerators, by tokens of one copy."""
    seconds = np.asarray(parts(work, eff, tokens, 0.0, 0.0, sampled).total, np.float64)
    share = work.data / work.expert_parallel
    flops = tokens * (work.dense_flops + work.expert_flops * work.chosen * share) / work.flops_s
    flops = flops + sampled * work.head_flops / work.flops16_s
    moved = work.dense_bytes + tokens * work.activation_bytes + work.head_bytes
    moved = moved + work.expert_bytes * touched_experts(work, tokens) * (work.chosen > 0)
    return seconds, _dynamic_w(asked, clock) * _busy_s(seconds, moved / work.bytes_s, flops)


def _busy_s(seconds: Any, memory_s: Any, compute_s: Any) -> Any:
    """Seconds at full power that draw as much: ``memory_s`` and ``compute_s`` are at data-sheet rates."""
    busy = RUNNING_SHARE * seconds + MEMORY_SHARE * memory_s + COMPUTE_SHARE * compute_s
    return np.minimum(seconds, busy)


def _slopes(
    asked: Configuration, work: Work, eff: Efficiency, clock: float
) -> tuple[float, float, float, float]:
    """Seconds and joules of one more cached token, and of one more pair of prefill attention."""
    none = parts(work, eff, 1.0, 0.0, 0.0, 0.0).total
    cached = float(parts(work, eff, 1.0, 1e6, 0.0, 0.0).total - none) / 1e6
    pair = float(parts(work, eff, 1.0, 0.0, 1e9, 0.0).total - none) / 1e9
    watts = _dynamic_w(asked, clock)
    read = _busy_s(cached, work.cache_bytes / work.bytes_s, work.cache_flops / work.flops16_s)
    looked = _busy_s(pair, 0.0, work.pair_flops / work.flops16_s)
    return cached, pair, watts * float(read), watts * float(looked)


def _idle_w(asked: Configuration) -> float:
    """Of accelerators and their share of the node. The catalogue's overhead is that at full load."""
    count, kind = asked.layout.accelerators, asked.accelerator
    return beside_w(asked.overhead_w, kind.max_w - kind.idle_w, count) + count * kind.idle_w


def _dynamic_w(asked: Configuration, clock: float) -> float:
    """Between idle and maximum, with what power supplies and fans add (``power_model``)."""
    one = asked.accelerator.max_w - asked.accelerator.idle_w
    return asked.layout.accelerators * (1 + SERVER_LOSS) * one * clock**3
