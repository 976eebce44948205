"""How long one iteration of an inference engine takes, from its batch.

Two models answer the same question. ``RooflineModel`` computes it from the model's architecture and the
accelerator's data sheet, at fitted efficiencies; ``LinearModel`` is fitted to measured rows (``calibrate``).
Neither knows requests or time: ``serving`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tokenmill.spec.catalogue import Catalogue, ModelType
from tokenmill.twin.iteration import Efficiency, Work, parts


class EngineModel(Protocol):
    """One replica's iteration time. ``prefill`` tokens of new prompts start at ``context`` tokens."""

    def iteration_s(self, decode: int, prefill: int, cached: int, context: int = 0) -> float:
        """Seconds of one iteration with ``decode`` sequences, ``prefill`` prompt tokens and ``cached`` tokens
        of key-value cache that the decoding sequences read."""
        ...

    @property
    def cached_token_s(self) -> float:
        """Seconds that one more cached token adds to an iteration: the slope along which decoding slows."""
        ...


def shape_of(source: str, known: Catalogue) -> ModelType | None:
    """The longest name of a model that a source or name holds, or None: then nothing is forecast."""
    plain = source.lower().replace("_", "-")
    for name in sorted(known.models, key=lambda one: (-len(one), one)):
        if name in plain or name.replace(".", "-") in plain:
            return known.models[name]
    return None


@dataclass(frozen=True, slots=True)
class RooflineModel:
    """``iteration.parts`` of one configuration at its efficiencies.

    ``copies``: attention copies and pipeline stages, over which a batch is spread as in ``engine_tables``.
    """

    work: Work
    efficiency: Efficiency
    copies: int = 1

    @property
    def cached_token_s(self) -> float:
        none, one = (parts(self.work, self.efficiency, 0.0, cached, 0.0, 0.0).total for cached in (0.0, 1.0))
        return float(one - none) / self.copies

    @property
    def pair_s(self) -> float:
        """Seconds of one pair of prefill attention: see ``step_table``."""
        none, one = (parts(self.work, self.efficiency, 0.0, 0.0, pairs, 0.0).total for pairs in (0.0, 1.0))
        return float(one - none) / self.copies

    def iteration_s(self, decode: int, prefill: int, cached: int, context: int = 0) -> float:
        tokens = decode + prefill
        if tokens == 0:
            return 0.0
        pairs = prefill * (context + prefill / 2)
        sampled = decode + (1 if prefill else 0)
        batch = (amount / self.copies for amount in (tokens, cached, pairs, sampled))
        return float(parts(self.work, self.efficiency, *batch).total)


@dataclass(frozen=True, slots=True)
class LinearModel:
    """Iteration time as a sum of what it does, each part measured: see ``calibrate.fit``.

    seconds = base + decode * per_decode + cached * per_cached + prefill * per_prefill + pairs * per_pair,
    where pairs = prefill * (context + prefill / 2) is the work of causal attention. A busy neighbour on the
    same cores multiplies it by ``slowdown``.
    """

    base_s: float
    per_decode_s: float
    per_cached_s: float
    per_prefill_s: float
    per_pair_s: float
    slowdown: float = 1.0

    @property
    def cached_token_s(self) -> float:
        return self.per_cached_s * self.slowdown

    def iteration_s(self, decode: int, prefill: int, cached: int, context: int = 0) -> float:
        if decode + prefill == 0:
            return 0.0
        pairs = prefill * (context + prefill / 2)
        return self.slowdown * (
            self.base_s
            + decode * self.per_decode_s
            + cached * self.per_cached_s
            + prefill * self.per_prefill_s
            + pairs * self.per_pair_s
        )
