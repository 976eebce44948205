"""What the twin's core knows of a replica: how long an iteration takes, what it draws, and its rules.

A performance model makes one ``StepTable`` per (model, accelerator, layout, clock); the core reads nothing
else. An iteration in which ``n`` tokens pass through the weights (decoding and prefill together), whose
decoding sequences hold ``K`` cached tokens and whose prefill chunks have ``A`` attention pairs takes

    seconds = seconds[d] + cached_token_s * K + prefill_share * P
    joules  = joules[d] + cached_token_j * K + prefill_share * (joules[n] - joules[d] + pair_j * A)
              + idle_w * seconds

where ``P`` is ``seconds[n] - seconds[d] + pair_s * A``, or the ``eager_s`` of the host where that is more
(``iteration.combined``), and ``d`` of the ``n`` tokens decode (0 seconds and joules for none). A chunk of
``c`` tokens that starts after ``s`` tokens of its prompt has ``c * (s + c / 2)`` pairs. Both are linear in
``K``, which grows by one token per sequence and iteration, so any number of iterations has a closed form.
All figures are of the whole replica (all its accelerators), not of one accelerator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenmill.domain.errors import DataError

MAX_SEQUENCES = 65_536
MAX_BUDGET = 1_048_576


def _between(field: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise DataError(f"{field} is {value}", expected=f"{least} to {most}")


@dataclass(frozen=True, slots=True)
class EngineRules:
    """How an engine fills its iterations. One record per engine and version.

    ``mixed``: prompts are prefilled in the iterations that decode; otherwise in ones of their own, first.
    ``token_budget``: most tokens of one iteration; longer prompts are prefilled in chunks.
    ``preempt``: a request is admitted when its prompt fits, and when the cache is full the youngest
    sequence is thrown out and computed again later (vLLM). Otherwise input and output are reserved on
    admission and nothing is ever thrown out (TensorRT-LLM's guaranteed no-evict).
    ``block_tokens``: the cache is given out in blocks of this many tokens.
    ``prefix_cache``: blocks of prompts that ended stay and are not computed again; least recently used go.
    ``draft_tokens``, ``tokens_per_step``: speculative decoding. Each sequence puts ``1 + draft_tokens``
    through the weights and gains ``tokens_per_step`` on average: ``(1 - a**(k + 1)) / (1 - a)`` for k
    drafts of acceptance a.
    """

    mixed: bool = True
    token_budget: int = 8192
    max_sequences: int = 256
    preempt: bool = False
    block_tokens: int = 16
    prefix_cache: bool = False
    draft_tokens: int = 0
    tokens_per_step: float = 1.0

    def __post_init__(self) -> None:
        """Raise ``DataError`` for rules that no engine can follow."""
        _between("max_sequences", self.max_sequences, 1, MAX_SEQUENCES)
        _between("token_budget", self.token_budget, 1, MAX_BUDGET)
        _between("block_tokens", self.block_tokens, 1, 65_536)
        _between("draft_tokens", self.draft_tokens, 0, 64)
        _between("tokens_per_step", self.tokens_per_step, 1.0, 1.0 + self.draft_tokens)

    @property
    def most_tokens(self) -> int:
        """The largest ``n`` that an iteration can have; ``StepTable.seconds`` reaches to it."""
        decoding = self.max_sequences * (1 + self.draft_tokens)
        return max(self.token_budget, decoding + 1)


@dataclass(frozen=True, slots=True)
class StepTable:
    """``seconds[n]`` and ``joules[n]`` for n of 0 to ``rules.most_tokens``; entry 0 is not used.

    ``idle_w`` is drawn all the time; ``joules`` come on top, so that power is never below it.
    ``cache_tokens`` is the key-value capacity of the replica in tokens.
    ``prefill_share``: of what prompts add to an iteration, how much the engine spends and those that decode
    wait for. ``eager_s``: what prompts add at least, however few tokens they have. ``late_share``: how much
    of the time of a prompt alone passes for its own request only, when the engine has gone on.
    """

    name: str
    seconds: tuple[float, ...]
    cached_token_s: float
    pair_s: float
    cache_tokens: int
    rules: EngineRules = EngineRules()
    joules: tuple[float, ...] = ()
    cached_token_j: float = 0.0
    pair_j: float = 0.0
    idle_w: float = 0.0
    prefill_share: float = 1.0
    eager_s: float = 0.0
    late_share: float = 0.0

    def __post_init__(self) -> None:
        """Raise ``DataError`` that names the field when a figure is missing, negative or not a number."""
        entries = self.rules.most_tokens + 1
        for field, values in (("seconds", self.seconds), ("joules", self.joules)):
            if len(values) != entries and (field == "seconds" or values):
                raise DataError(
                    f"{self.name}: {field} has {len(values)} entries",
                    expected=f"{entries}: 0 to the {entries - 1} tokens that its rules allow in an iteration",
                )
            wrong = next((i for i, x in enumerate(values) if not (math.isfinite(x) and x >= 0)), None)
            if wrong is not None:
                raise DataError(f"{self.name}: {field}[{wrong}] is {values[wrong]}", expected="0 or more")
        if min(self.seconds[1:]) <= 0:
            raise DataError(f"{self.name}: an iteration takes no time", expected="more than 0 seconds")
        for field in ("cached_token_s", "pair_s", "cached_token_j", "pair_j", "idle_w", "prefill_share",
                      "eager_s", "late_share"):  # fmt: skip
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0):
                raise DataError(f"{self.name}: {field} is {value}", expected="0 or more")
        _between(f"{self.name}: cache_tokens", self.cache_tokens, self.rules.block_tokens, 2**40)
