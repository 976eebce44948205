"""What a rehearsal says: numbers with the error they are stated with, and what was assumed."""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.domain.codec import digest_of

UNCALIBRATED = "uncalibrated"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number; ``error`` is the relative error that nine of ten left-out measurements stayed within.

    None means that nothing was measured, so no interval is stated; ``basis`` says what the number rests on.
    """

    value: float
    error: float | None = None
    basis: str = UNCALIBRATED

    @property
    def low(self) -> float | None:
        return None if self.error is None else self.value * max(0.0, 1 - self.error)

    @property
    def high(self) -> float | None:
        return None if self.error is None else self.value * (1 + self.error)


@dataclass(frozen=True, slots=True)
class DeploymentForecast:
    """One deployment under the traffic. Without ``tokens_per_s`` it was not modelled: see ``note``."""

    name: str
    model: str
    replicas_ready: int
    replicas_wanted: int
    ready_us: int  # after the change was applied; 0 when it never was
    note: str = ""
    requests: int = 0
    refused: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    mean_input_tokens: float = 0.0
    mean_output_tokens: float = 0.0
    utilisation: float = 0.0
    tokens_per_s: Estimate | None = None  # output tokens
    ttft_p50_ms: Estimate | None = None
    ttft_p99_ms: Estimate | None = None
    tpot_p50_ms: Estimate | None = None
    tpot_p99_ms: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """The outcome of a rehearsal. ``pending`` says what does not get ready, and why."""

    seed: int
    base_version: int
    converged: bool
    converge_us: int
    pending: tuple[str, ...]
    duration_s: float
    deployments: tuple[DeploymentForecast, ...]
    tokens_per_s: Estimate
    watts: Estimate
    energy_j: float
    cost_micros_per_mtok: Estimate | None  # None: no tokens, or no price of energy and accelerators
    currency: str
    assumptions: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The same for the same state, factory, traffic and seed, on every machine."""
        return digest_of(self)


def quantile(values: list[float], share: float) -> float:
    """The smallest value that at least ``share`` of ``values`` do not exceed; 0 when there are none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * round(share * 1000) // 1000))
    return ordered[rank - 1]
