"""Step tables and random workloads for the tests of the twin's core."""

from __future__ import annotations

import random

import numpy as np

from tokenmill.twin.naive import Asked, NaiveReplica
from tokenmill.twin.step_table import EngineRules, StepTable


def table(rules: EngineRules, cache_tokens: int = 1_000_000, host_s: float = 0.004) -> StepTable:
    """An engine that slows with tokens, cache and attention."""
    tokens = range(rules.most_tokens + 1)
    return StepTable(
        "engine",
        tuple(host_s + 1.1e-5 * n for n in tokens),
        2.3e-8,
        1.7e-9,
        cache_tokens,
        rules,
        tuple(3.0 + 0.01 * n for n in tokens),
        1e-5,
        2e-6,
        500.0,
        prefill_share=0.8,
        eager_s=0.004,
    )


def workload(
    seed: int, count: int, rate: float, inputs: int = 900, outputs: int = 120, unit: int = 32
) -> list[Asked]:
    """Poisson arrivals; half of the prompts begin like one of nine others."""
    draw = random.Random(seed)
    at_s, made = 0.0, []
    for n in range(count):
        at_s += draw.expovariate(rate)
        tokens = draw.randint(1, inputs)
        group = draw.randrange(18)
        family = group if group < 9 else 1000 + n
        prefix = tuple(family * 10_000 + i for i in range(tokens // unit))
        made.append(Asked(at_s, tokens, draw.randint(1, outputs), prefix))
    return made


def columns(work: list[Asked]):
    """The same workload as records for the compiled core, and the units that they name."""
    from tokenmill.twin.fleet import requests_of

    at, inputs, outputs = zip(*((w.at_s, w.input_tokens, w.output_tokens) for w in work), strict=True)
    draws = np.random.default_rng(5).integers(0, 2**31, (len(work), 2))
    made = requests_of(np.array(at), np.array(inputs), np.array(outputs), draws, first_id=0)
    units = [key for w in work for key in w.prefix]
    made["units"] = [len(w.prefix) for w in work]
    made["key"] = np.cumsum([0] + [len(w.prefix) for w in work])[:-1]
    return made, np.array(units or [0])


def reference(step_table: StepTable, work: list[Asked], unit: int = 32, units: int = 4096) -> NaiveReplica:
    """Serve the workload one iteration at a time."""
    replica = NaiveReplica(step_table, unit, units)
    replica.serve(work)
    return replica
