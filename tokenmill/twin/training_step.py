"""How long a training step takes: work, activations, pipeline bubble, network. Failures are ``training``'s.

Seconds are those of a whole run divided by its steps, so that evaluation and logging are in them. The
constants are fitted by ``bench/accuracy.py`` to MLPerf Training v5.1 (8 to 5,120 accelerators, 62 systems and
benchmarks); ``docs/accuracy.md`` states what they miss on systems that a fit had not seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tokenmill.domain.errors import DataError
from tokenmill.spec.catalogue import AcceleratorType
from tokenmill.twin.iteration import Number

NIC_BYTES_S = 50e9
"""Of one accelerator to other NVLink domains: 400 Gb/s."""

PIPELINED_FROM = 8
"""Micro-batches from which a step counts as pipelined, with a bubble, and its communication as hidden."""

WIDEST = 1e11
"""Parameters from which gradients are reduced behind the pipeline's backward passes."""


@dataclass(frozen=True, slots=True)
class TrainingWork:
    """One job. ``batch`` sequences per step, taken in ``micro_batches`` one after the other.

    ``adapters``: weights stay as they are (LoRA), which spares a third of the work and the gradients.
    ``precision`` is that of the matrix products. ``domain``: accelerators of one NVLink domain.
    """

    parameters: float
    layers: int
    hidden: int
    sequence: int
    batch: int
    accelerators: int
    precision: str = "fp8"
    micro_batches: int = 1
    adapters: bool = False
    domain: int = 8


@dataclass(frozen=True, slots=True)
class TrainingRates:
    """Shares of data-sheet figures that training sustains; fitted, see the module.

    ``compute``: of the matrix rate, times ``fp4`` in that precision and ``kinds`` of that accelerator;
    ``attention``: of the 16-bit rate. ``activation_bytes``: traffic per token, layer and unit of width.
    ``bubble``: pipeline stages that wait, after interleaving. ``link`` and ``nic``: share of those rates,
    above 1 where work hides the rest. ``host_s``: seconds of a step that no accelerator shortens.
    """

    compute: float = 0.339
    fp4: float = 0.717
    attention: float = 0.776
    activation_bytes: float = 41.7
    bubble: float = 3.04
    link: float = 2.13
    nic: float = 2.2
    host_s: float = 0.0424
    kinds: Mapping[str, float] = field(default_factory=dict)


FITTED_KINDS: Mapping[str, float] = {
    "h100-sxm": 0.92, "h200-sxm": 1.05, "b200-sxm": 1.17, "b200-gb200": 1.12, "b300-sxm": 1.21,
    "b300-gb300": 1.14, "mi300x": 0.63, "mi325x": 0.85, "mi350x": 0.87, "mi355x": 0.97,
}  # fmt: skip
"""``kinds`` of the catalogue's accelerators: fitted offsets."""

FITTED = TrainingRates(kinds=FITTED_KINDS)


def step_s(work: TrainingWork, kind: AcceleratorType, rates: TrainingRates = FITTED) -> float:
    """Seconds of one optimiser step. Raises ``DataError`` for a precision that the accelerator lacks."""
    peak = {"bf16": kind.tflops_bf16, "fp8": kind.tflops_fp8, "fp4": kind.tflops_fp4}.get(work.precision)
    if not peak:
        raise DataError(
            f"{kind.name} does not train in {work.precision!r}", expected="bf16, fp8 or fp4 of its data sheet"
        )
    if work.batch < 1 or work.accelerators < 1 or work.micro_batches < 1:
        raise DataError(
            "a training step needs a batch, accelerators and micro-batches", expected="at least 1"
        )
    tokens, wide = work.sequence, work.layers * work.hidden
    passes, looks = (4, 2) if work.adapters else (6, 3)  # operations per weight; passes of attention
    share = rates.compute * rates.kinds.get(kind.id, 1.0) * (rates.fp4 if work.precision == "fp4" else 1.0)
    one = passes * work.parameters * tokens / (peak * 1e12 * share)
    one += looks * 2 * wide * tokens**2 / (kind.tflops_bf16 * 1e12 * rates.attention)
    one += rates.activation_bytes * tokens * wide / (kind.memory_gb_s * 1e9)
    busy = work.batch / work.accelerators * one
    pipelined = work.micro_batches >= PIPELINED_FROM
    if pipelined:
        busy *= 1 + rates.bubble / work.micro_batches
    return busy + _network_s(work, kind, rates, pipelined) + rates.host_s


def _network_s(work: TrainingWork, kind: AcceleratorType, rates: TrainingRates, pipelined: bool) -> float:
    """Tensor parallel sums where several accelerators share a sequence, and gradients between domains."""
    seconds = 0.0
    sharing = work.accelerators * work.micro_batches / work.batch
    if not pipelined and sharing > 1:
        moved = 4 * work.layers * work.sequence * work.hidden * 2 * 2 * (1 - 1 / sharing)
        seconds += moved / (kind.link_gb_s * 1e9 * rates.link)
    if work.accelerators > work.domain and not work.adapters and work.parameters < WIDEST:
        seconds += 4 * work.parameters / (work.domain * NIC_BYTES_S * rates.nic)
    return seconds


@dataclass(frozen=True, slots=True)
class DataParallel:
    """A model of which only measured steps are known; every value is seconds but ``overlap``.

    The form is that of Pollux (OSDI 2021, section 3.2): computing grows with the local batch, synchronising
    with the replicas, and ``overlap`` from 1 (one after the other) up says how much of the two coincides.
    """

    start: float
    sample: float
    inside: float
    inside_more: float
    between: float
    between_more: float
    overlap: float

    def step_s(self, batch: Number, replicas: Number, nodes: Number) -> Number:
        """``batch`` is that of one replica; numbers or arrays of rows."""
        compute = self.start + self.sample * batch
        more = (replicas - 2) * (replicas > 2)
        far, near = self.between + self.between_more * more, self.inside + self.inside_more * more
        network = (replicas > 1) * ((nodes > 1) * far + (nodes <= 1) * near)
        power = self.overlap
        return compute * (1 + (network / compute) ** power) ** (1 / power)
