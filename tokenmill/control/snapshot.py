"""A state as plain values and back, so that a start need not replay the whole journal.

The index and the table are derived again when it is loaded; they are not stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from immutables import Map

from tokenmill.control.index import index_state
from tokenmill.control.state import State
from tokenmill.control.table import table_of
from tokenmill.domain.codec import from_plain, to_plain
from tokenmill.domain.errors import DataError
from tokenmill.domain.factory import Factory
from tokenmill.domain.work import (
    Alias,
    Imported,
    Job,
    JobResult,
    Key,
    Lease,
    NodeState,
    Recall,
    Release,
    Replica,
    Reservation,
    Run,
    Tuning,
    Uptime,
    Usage,
)
from tokenmill.policy.scale import ScaleMemory

FORMAT = 1
DERIVED = ("index", "table")
NUMBERS = ("version", "epoch", "table_version", "next_id")
MAPS: dict[str, type] = {
    "nodes": NodeState,
    "leases": Lease,
    "models": Imported,
    "replicas": Replica,
    "aliases": Alias,
    "jobs": Job,
    "runs": Run,
    "releases": Release,
    "recalls": Recall,
    "tunings": Tuning,
    "keys": Key,
    "done": JobResult,
    "scaling": ScaleMemory,
    "reservations": Reservation,
    "usage": Usage,
}


def dump(state: State) -> dict[str, Any]:
    """Plain values in a fixed order: equal states give equal dumps."""
    body: dict[str, Any] = {"format": FORMAT, "factory": to_plain(state.factory)}
    body["uptime"] = to_plain(state.uptime)
    body["draws"] = {name: to_plain(state.draws[name]) for name in sorted(state.draws)}
    for name in NUMBERS:
        body[name] = getattr(state, name)
    for name in MAPS:
        records = getattr(state, name)
        body[name] = {key: to_plain(records[key]) for key in sorted(records)}
    return body


def load(body: Mapping[str, Any]) -> State:
    """The state that ``dump`` was given. Raises ``DataError`` for an unknown format."""
    if body.get("format") != FORMAT:
        raise DataError(
            f"the snapshot has format {body.get('format')!r}",
            expected=f"format {FORMAT}",
            fix="Start with the version of Tokenmill that wrote it.",
        )
    known = {field.name for field in fields(State)} - set(DERIVED)
    values: dict[str, Any] = {"factory": from_plain(body["factory"], Factory)}
    draws = body.get("draws", {})
    values["draws"] = Map({name: tuple((at, mw) for at, mw in draws[name]) for name in sorted(draws)})
    values["uptime"] = from_plain(body.get("uptime", {}), Uptime)
    for name in NUMBERS:
        values[name] = body[name]
    for name, kind in MAPS.items():
        values[name] = Map({key: from_plain(plain, kind) for key, plain in body.get(name, {}).items()})
    bare = {name: values[name] for name in known}
    state = State(**bare)
    index = index_state(
        state.factory,
        state.nodes,
        state.leases,
        state.replicas,
        state.jobs,
        state.runs,
        state.tunings,
        state.draws,
    )
    indexed = State(**bare, index=index)
    return State(**bare, index=index, table=table_of(indexed))
