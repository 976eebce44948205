"""Whether a layout fits: weights, activations and what stays for the key-value cache."""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.domain.errors import DataError
from tokenmill.spec.catalogue import AcceleratorType, ModelType
from tokenmill.twin.iteration import Layout, work_of

USABLE_SHARE = 0.92
"""Of the memory; the engines' default of 0.9 with the rest of a context that is allocated once."""

WORKSPACE_BYTES = 3e9
"""Per accelerator: activations, graphs and communication buffers, as engines report it at their defaults."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Bytes per accelerator; ``cache_tokens`` of one attention copy."""

    weight_bytes: float
    free_bytes: float
    cache_tokens: int


def fit_of(model: ModelType, accelerator: AcceleratorType, layout: Layout, precision: str) -> Fit:
    """What stays after the weights; ``cache_tokens`` is 0 or less when nothing does."""
    work = work_of(model, accelerator, layout, precision)
    experts = work.expert_bytes * work.experts / work.expert_parallel
    tables = 2 * model.vocabulary * model.hidden * (1 if model.tied else 2) / layout.tensor
    weights = (work.dense_bytes + experts + tables) / layout.pipeline
    free = accelerator.memory_gb * 1e9 * USABLE_SHARE - WORKSPACE_BYTES - weights
    return Fit(weights, free, int(free / (work.cache_bytes / layout.pipeline)))


def need_fit(
    model: ModelType, accelerator: AcceleratorType, layout: Layout, precision: str, tokens: int
) -> Fit:
    """As ``fit_of``; raises ``DataError`` that says what would fit when ``tokens`` of one request do not."""
    found = fit_of(model, accelerator, layout, precision)
    if found.cache_tokens >= tokens:
        return found
    gigabytes = found.weight_bytes / 1e9
    raise DataError(
        f"{model.id} in {precision} as {layout} does not fit {accelerator.name}",
        expected=f"{gigabytes:.0f} GB weights and {tokens} tokens of cache in {accelerator.memory_gb:g} GB",
        fix=_what_fits(model, accelerator, precision, tokens),
    )


def layouts(model: ModelType, most: int) -> list[Layout]:
    """The layouts that are worth comparing, smallest first."""
    found = []
    for count in (1, 2, 4, 8, 16, 32, 64, 72):
        if count > most:
            break
        if model.heads % count == 0 and count <= 16:
            found.append(Layout(tensor=count, expert=1, expert_tensor=count))
        if model.experts and count > 1 and model.experts % count in (0, count - (-model.experts % count)):
            found.append(Layout(data=count, expert=count))
            if model.heads % count == 0 and count <= 16:
                found.append(Layout(tensor=count, expert=count))
        if count >= 8 and not model.experts:
            found.append(Layout(tensor=count // 2, pipeline=2, expert_tensor=count // 2))
    return found


def _what_fits(model: ModelType, accelerator: AcceleratorType, precision: str, tokens: int) -> str:
    for layout in layouts(model, 72):
        if fit_of(model, accelerator, layout, precision).cache_tokens >= tokens:
            return f"The smallest layout that fits is {layout} ({layout.accelerators} accelerators)."
    return "No layout up to 72 accelerators fits: choose fewer bits, shorter requests or a smaller model."
