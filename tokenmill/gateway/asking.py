"""What control is asked about a request: the model that it names, and all that the decision needs.

Decides nothing, but that a model which is not there, or of another kind, cannot be asked.
"""

from __future__ import annotations

from typing import Protocol

from tokenmill.control.requests import Call
from tokenmill.domain.table import AliasEntry, KeyEntry
from tokenmill.gateway.body import (
    EMBEDDINGS,
    PREFIX_BLOCK,
    Asked,
    check_engine,
    check_kind,
    output_bound,
    prefix_blocks,
)
from tokenmill.gateway.edge import Gateway
from tokenmill.gateway.errors import unavailable, unknown_model
from tokenmill.gateway.message import HttpRequest
from tokenmill.gateway.outlet import Surface


class Asking(Protocol):
    """The exchange that asks."""

    id: str
    http: HttpRequest
    surface: Surface
    endpoint: str
    key: KeyEntry


def servable(gateway: Gateway, asked: Asked, key: KeyEntry) -> AliasEntry:
    """The model that is asked. Raises ``ApiError`` for one that cannot be asked of it, or not now."""
    serving, spool = gateway.tables.serving, gateway.spool
    if gateway.draining:
        raise unavailable("This gateway is stopping; ask again.", code="draining")
    if spool.problem:
        why = f"Requests cannot be recorded now: {spool.problem}."
        raise unavailable(why, 5_000_000, "spool_unwritable")
    if serving.version < 0:
        raise unavailable("The factory has published no models yet.", 2_000_000, "not_ready")
    entry = serving.visible(asked.alias, key.tenant)
    if entry is None:
        raise unknown_model(asked.alias)
    check_kind(asked, entry)
    check_engine(asked, entry)
    return entry


def call_of(gateway: Gateway, asking: Asking, asked: Asked, size: int, entry: AliasEntry) -> Call:
    """What control needs to decide on a body of ``size`` bytes."""
    warm = size >= PREFIX_BLOCK and len(entry.endpoints) > 1 and asking.endpoint != EMBEDDINGS
    lot = gateway.lot()
    return Call(
        id=asking.id,
        at_us=asking.http.arrived_us,
        endpoint=asking.surface.name,
        key=asking.key,
        alias=asked.alias,
        input_estimate=asked.input_estimate,
        max_output=output_bound(asked, entry),
        prefix=prefix_blocks(asked, asking.key.tenant) if warm else (),
        draw=lot % 1000,
        lot=lot // 1000,
    )
