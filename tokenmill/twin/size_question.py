"""What a person asks of ``plan --size``, to a question that can be answered, or to what it lacks."""

from __future__ import annotations

import math
import re

from tokenmill.domain.catalogue import NO_TYPES, OwnTypes
from tokenmill.domain.errors import DataError
from tokenmill.domain.units import did_you_mean
from tokenmill.spec.catalogue import catalogue
from tokenmill.twin.iteration import WEIGHT_BYTES
from tokenmill.twin.size import Question, SizedRack

FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
NVIDIA_ONLY = ("trtllm",)
LIMITS = ("ttft_p99", "tpot_p99")
TARGET = re.compile(r"^\s*([0-9.]+)\s*([kmg]?)\s*(?:tok(?:ens)?/s)?\s*$", re.IGNORECASE)
LIMIT = re.compile(r"^\s*(\w+)\s*<=?\s*([0-9.]+)\s*(ms|s)\s*$")
HOW_TO_ADD = "a document of kind catalogue, docs/planning.md#what-the-catalogue-lacks."
EXAMPLE = '--slo "ttft_p99<2s,tpot_p99<80ms"'


def question_of(
    model: str | None,
    precision: str | None,
    inputs: int | None,
    outputs: int | None,
    target: str | None,
    slo: str | None,
    engine: str,
    own: OwnTypes = NO_TYPES,
) -> Question:
    """Raises ``DataError`` that names everything missing at once, or the value that cannot be."""
    asked = {
        "the model (--model)": model, "the precision (--precision)": precision,
        "the input length (--inputs)": inputs, "the output length (--outputs)": outputs,
        "the throughput (--target)": target, f"the latency limits ({EXAMPLE})": slo,
    }  # fmt: skip
    missing = [name for name, value in asked.items() if value is None]
    if (
        model is None
        or precision is None
        or inputs is None
        or outputs is None
        or target is None
        or slo is None
    ):
        raise DataError(
            f"a throughput means nothing without {', '.join(missing)}",
            expected="model, precision, input and output tokens, tokens/s, and limits of TTFT and TPOT",
            fix="For example: tokenmill plan --size --model llama-3.1-70b --precision fp8 --inputs 1000 "
            f'--outputs 500 --target "2M tok/s" {EXAMPLE}',
        )
    known = catalogue(own)
    shape = known.models.get(model)
    if shape is None:
        fix = did_you_mean(model, known.models) or f"-f FILE may add it: {HOW_TO_ADD}"
        raise DataError(f"--model is {model!r}", expected=", ".join(sorted(known.models)), fix=fix)
    if precision not in WEIGHT_BYTES:
        raise DataError(f"--precision is {precision!r}", expected=" or ".join(WEIGHT_BYTES))
    engines = sorted({one.rpartition("-")[0] for one in known.engines})
    if engine not in engines:
        raise DataError(f"--engine is {engine!r}", expected=", ".join(engines))
    if inputs < 1 or outputs < 2:
        raise DataError(f"lengths are {inputs} and {outputs}", expected="--inputs from 1, --outputs from 2")
    limits = limits_of(slo)
    rate = target_of(target)
    return Question(shape, precision, inputs, outputs, rate, limits["ttft_p99"], limits["tpot_p99"], engine)


def target_of(text: str) -> float:
    """``2M tok/s`` to output tokens per second."""
    found = TARGET.match(text)
    try:
        rate = float(found[1]) * FACTORS[found[2].lower()] if found else math.nan
    except ValueError:
        rate = math.nan
    if not 0 < rate < 1e15:
        raise DataError(f"--target is {text!r}", expected="a rate above zero, such as 2M tok/s or 50k tok/s")
    return rate


def limits_of(text: str) -> dict[str, float]:
    """``ttft_p99<2s,tpot_p99<80ms`` to seconds of each."""
    limits: dict[str, float] = {}
    for part in text.split(","):
        found = LIMIT.match(part)
        if found is None or found[1] not in LIMITS or not _number(found[2]):
            raise DataError(f"--slo has {part.strip()!r}", expected=EXAMPLE)
        if found[1] in limits:
            raise DataError(f"--slo has {found[1]} twice", expected=EXAMPLE)
        limits[found[1]] = float(found[2]) / (1000 if found[3] == "ms" else 1)
    missing = [name for name in LIMITS if name not in limits]
    if missing:
        raise DataError(f"--slo lacks {' and '.join(missing)}", expected=EXAMPLE)
    return limits


def racks_of(names: list[str], engine: str, own: OwnTypes = NO_TYPES) -> list[SizedRack]:
    """The rack types that are named, all on whose accelerators the engine runs when none is."""
    types = catalogue(own)
    known = {}
    for rack in types.racks.values():
        node = types.nodes[rack.node]
        if node.accelerators:
            known[rack.id] = SizedRack(rack, node, types.accelerators[node.accelerator])
    runs = [name for name in sorted(known) if known[name].gpu.vendor == "NVIDIA" or engine not in NVIDIA_ONLY]
    for name in names:
        if name not in known:
            fix = did_you_mean(name, known) or f"-f FILE may add it: {HOW_TO_ADD}"
            raise DataError(f"--rack is {name!r}", expected=", ".join(sorted(known)), fix=fix)
        if name not in runs:
            raise DataError(
                f"{engine} does not run on the accelerators of {name}, which are of {known[name].gpu.vendor}",
                expected="--engine vllm or sglang",
            )
    return [known[name] for name in (names or runs)]


def _number(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False
