"""How many racks a throughput needs: the cheapest layout of a model that holds its latency limits.

Closed forms over ``steady``: no arrivals are simulated. Waiting for prefill is that of M/D/1 under load;
a request's TPOT varies by how many prompts arrive while it decodes. Prices are those of the catalogue.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tokenmill.domain.errors import DataError
from tokenmill.spec.catalogue import AcceleratorType, ModelType, NodeType, RackType
from tokenmill.twin.capacity import fit_of, layouts, need_fit
from tokenmill.twin.iteration import Efficiency, Layout, Work, work_of
from tokenmill.twin.profiles import ROWS_OF, Profile, kind_of, names_with
from tokenmill.twin.steady import Protocol, among_others_s, prompt_s, steady

BUDGET_TOKENS = 8192
MOST_SEQUENCES = 1024
PREFILL_LOAD = 0.7
"""Share of its time that a pool of prefill engines works: above, waiting grows fast."""

NORMAL_99 = 2.33
OTHER_RACKS_SHARE = 0.5
"""Of a node's network that the transfer of a cache between engines gets: assumed."""


@dataclass(frozen=True, slots=True)
class Question:
    """All that a throughput needs to mean anything. ``tokens_s`` are output tokens."""

    model: ModelType
    precision: str
    inputs: int
    outputs: int
    tokens_s: float
    ttft_p99_s: float
    tpot_p99_s: float
    engine: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class SizedRack:
    """A rack type with what stands in it."""

    type: RackType
    node: NodeType
    gpu: AcceleratorType

    @property
    def id(self) -> str:
        return self.type.id

    @property
    def accelerators(self) -> int:
        return self.node.accelerators * self.type.nodes

    @property
    def domain(self) -> int:
        """How many of its accelerators share NVLink."""
        return self.node.accelerators * (self.type.nodes if self.node.nvlink == "rack" else 1)


@dataclass(frozen=True, slots=True)
class Answer:
    """One way to do it. ``error`` is what 90 % of unseen rows stayed within; None when none were measured.

    ``exactly`` is the racks before rounding up. ``error_of`` says which rows those are. ``measured``: the fit
    has seen this model, and this engine on this accelerator; else they are of accelerators or models that
    were left out of the fit as a whole.
    """

    rack: str
    layout: str
    prefill_layout: str
    batch: int
    tokens_s_per_accelerator: float
    ttft_p99_s: float
    tpot_p99_s: float
    racks: int
    exactly: float
    accelerators: int
    most_kw: float
    hour_micros: int
    million_tokens_micros: int
    error: float | None
    error_of: str
    measured: bool

    @property
    def disaggregated(self) -> bool:
        return bool(self.prefill_layout)

    @property
    def most_racks(self) -> int:
        """Racks when the forecast errs as far as nine of ten unseen rows did."""
        return math.ceil(self.exactly * (1 + (self.error or 0)))


@dataclass(frozen=True, slots=True)
class Needs:
    """Whole racks that make a throughput, and what they cost. ``exactly`` is before rounding up."""

    exactly: float
    racks: int
    accelerators: int
    most_kw: float
    hour_micros: int
    million_tokens_micros: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """One layout on one accelerator: what ``steady`` needs."""

    layout: Layout
    work: Work
    eff: Efficiency
    protocol: Protocol
    cache_tokens: int


@dataclass(frozen=True, slots=True)
class Rate:
    """What one engine, or a pair of pools, makes per accelerator."""

    layout: Layout
    batch: int
    per_accelerator: float
    ttft_s: float
    tpot_s: float
    prefill: Layout | None = None


def answers(question: Question, racks: Iterable[SizedRack], profile: Profile) -> list[Answer]:
    """Cheapest first, one for each rack and way. Raises ``DataError`` when none fits or holds the limits."""
    found: list[Answer] = []
    best: list[Rate] = []
    for rack in racks:
        gpu = rack.gpu
        known = candidates(question, gpu, rack.domain, profile)
        for way in (mixed, disaggregated):
            rates = [rate for rate in way(question, known, gpu) if _holds(question, rate)]
            if rates:
                chosen = max(rates, key=lambda r: (r.per_accelerator, -r.layout.accelerators))
                found.append(_answer(question, rack, chosen, profile))
            else:
                best += way(question, known, gpu)
    if not found:
        raise _none(question, racks, best)
    return sorted(found, key=lambda a: (a.million_tokens_micros, a.racks, a.rack))


def needs_of(question: Question, rack: SizedRack, per_accelerator: float, whole: int) -> Needs:
    """Racks for the throughput at tokens/s ``per_accelerator``; only multiples of ``whole`` of those work."""
    exactly = question.tokens_s / (per_accelerator * (rack.accelerators // whole * whole))
    racks = math.ceil(exactly)
    hour = racks * rack.accelerators * rack.gpu.hour_micros
    million = round(hour / 3600 / question.tokens_s * 1e6)
    return Needs(exactly, racks, racks * rack.accelerators, racks * rack.type.max_w / 1000, hour, million)


def candidates(question: Question, gpu: AcceleratorType, domain: int, profile: Profile) -> list[Candidate]:
    """Layouts of the model in one NVLink domain that hold at least one request."""
    names = names_with(question.engine, question.version, gpu, question.precision, question.model)
    eff, protocol = profile.efficiency(names), profile.protocol(names)
    found = []
    for layout in layouts(question.model, domain):
        room = fit_of(question.model, gpu, layout, question.precision).cache_tokens
        if room >= question.inputs + question.outputs:
            work = work_of(question.model, gpu, layout, question.precision)
            found.append(Candidate(layout, work, eff, protocol, room))
    return found


def mixed(question: Question, known: list[Candidate], gpu: AcceleratorType) -> list[Rate]:
    """One engine prefills and decodes: for each layout and batch."""
    return [_mixed(question, one, batch) for one in known for batch in _batches(question, one)]


def disaggregated(question: Question, known: list[Candidate], gpu: AcceleratorType) -> list[Rate]:
    """One pool prefills, another decodes; they join so that neither waits for the other."""
    prefills = [(one, _prompts_s(question, one)) for one in known]
    prefills = [
        (one, rate) for one, rate in prefills if _pool_ttft_s(question, one, gpu) <= question.ttft_p99_s
    ]
    if not prefills:
        return []
    first, prompts_s = max(prefills, key=lambda p: p[1] / p[0].layout.accelerators)
    ttft_s = _pool_ttft_s(question, first, gpu)
    rates = []
    for one in known:
        alone = replace(one, protocol=replace(one.protocol, interference=0.0))
        for batch in _batches(question, one):
            rate = _mixed(question, alone, batch)
            tokens_s = batch * one.layout.data / rate.tpot_s
            feeding = tokens_s / question.outputs / prompts_s * first.layout.accelerators
            shared = tokens_s / (one.layout.accelerators + feeding)
            rates.append(Rate(one.layout, batch, shared, ttft_s, rate.tpot_s, first.layout))
    return rates


def _batches(question: Question, one: Candidate) -> list[int]:
    most = min(MOST_SEQUENCES, one.cache_tokens // (question.inputs + question.outputs))
    steps = {max(1, round(2 ** (power / 4))) for power in range(4 * 11)}
    return sorted({batch for batch in steps if batch <= most} | {most})


def _mixed(question: Question, one: Candidate, batch: int) -> Rate:
    """99th percentiles of an engine that always has ``batch`` requests per attention copy."""
    found = steady(
        one.work, one.eff, one.protocol, batch=float(batch), waiting=0.0, inputs=float(question.inputs),
        outputs=float(question.outputs), budget=float(BUDGET_TOKENS), stages=one.layout.pipeline,
    )  # fmt: skip
    among = among_others_s(one.work, one.eff, one.protocol, question.inputs, BUDGET_TOKENS)
    spread = NORMAL_99 * math.sqrt(batch) * among * one.protocol.interference / question.outputs
    rate = batch / (found.ttft_s + question.outputs * found.tpot_s)
    wait_s = _wait_p99_s(among, rate * among)
    first = one.protocol.arrival_s + found.prefill_s + found.tpot_s + wait_s
    return Rate(
        one.layout,
        batch,
        rate * question.outputs * one.layout.data / one.layout.accelerators,
        first,
        found.tpot_s + spread,
    )


def _wait_p99_s(service_s: float, load: float) -> float:
    """99th percentile of waiting in M/D/1: exponential, of mean S / (2 (1 - rho)) for those that wait."""
    if load >= 1:
        return math.inf
    return math.log(100 * load) * service_s / (2 * (1 - load)) if load > 0.01 else 0.0


def _prompts_s(question: Question, one: Candidate) -> float:
    among = among_others_s(one.work, one.eff, one.protocol, question.inputs, BUDGET_TOKENS)
    return float(PREFILL_LOAD * one.layout.data / among)


def _pool_ttft_s(question: Question, one: Candidate, gpu: AcceleratorType) -> float:
    """Waiting, prefill, and the way of the cache to the engine that decodes."""
    alone = prompt_s(one.work, one.eff, one.protocol, question.inputs, BUDGET_TOKENS)
    moved = question.inputs * one.work.cache_bytes / (gpu.link_gb_s * 1e9 * OTHER_RACKS_SHARE)
    return float(one.protocol.arrival_s + alone + _wait_p99_s(alone, PREFILL_LOAD) + moved)


def _holds(question: Question, rate: Rate) -> bool:
    return rate.ttft_s <= question.ttft_p99_s and rate.tpot_s <= question.tpot_p99_s


def _answer(question: Question, rack: SizedRack, rate: Rate, profile: Profile) -> Answer:
    whole = 1 if rate.prefill else rate.layout.accelerators
    needs = needs_of(question, rack, rate.per_accelerator, whole)
    beyond = profile.beyond(question.engine, rack.gpu.id, question.model)
    stated = profile.stated(f"{kind_of(question.model)}_tpot", beyond)
    return Answer(
        rack=rack.id,
        layout=str(rate.layout),
        prefill_layout=str(rate.prefill) if rate.prefill else "",
        batch=rate.batch * rate.layout.data,
        tokens_s_per_accelerator=rate.per_accelerator,
        ttft_p99_s=rate.ttft_s,
        tpot_p99_s=rate.tpot_s,
        racks=needs.racks,
        exactly=needs.exactly,
        accelerators=needs.accelerators,
        most_kw=needs.most_kw,
        hour_micros=needs.hour_micros,
        million_tokens_micros=needs.million_tokens_micros,
        error=stated.at(0.9),
        error_of=ROWS_OF[stated.of],
        measured=not beyond,
    )


def _none(question: Question, racks: Iterable[SizedRack], rates: list[Rate]) -> DataError:
    what = f"{question.model.id} in {question.precision}"
    if not rates:
        largest = max(racks, key=lambda rack: rack.gpu.memory_gb * rack.domain)
        try:
            need_fit(
                question.model, largest.gpu, Layout(), question.precision, question.inputs + question.outputs
            )
        except DataError as error:
            where = f"{largest.domain} of {largest.id}"
            bound = f"One that is sized stays where accelerators share a fast link: {where}."
            return DataError(error.problem.message, expected=error.problem.expected,
                             fix=f"{error.problem.fix} {bound}")  # fmt: skip
    fastest = min(rates, key=lambda r: max(r.ttft_s / question.ttft_p99_s, r.tpot_s / question.tpot_p99_s))
    return DataError(
        f"no layout of {what} holds these limits",
        expected=f"at best ttft_p99 {fastest.ttft_s:.2f} s and tpot_p99 {fastest.tpot_s * 1000:.0f} ms "
        f"({fastest.layout}, batch {fastest.batch})",
        fix="Loosen the limits, shorten the requests, use fewer bits, or name other racks.",
    )
