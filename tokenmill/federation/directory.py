"""What each peer factory offers now, and the table with only those of its endpoints that are worth asking.

A peer is in the table as an endpoint of every alias it may answer for; this adds what ``GET /v1/models`` of
that peer said when it was last asked. It opens no connection: its owner asks, and records the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from tokenmill.domain.table import AliasEntry, Endpoint, Table
from tokenmill.policy.route import PEER_PREFIX

REFRESH_US = 10_000_000
RETRY_US = 2_000_000
MODELS_MOST = 10_000


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """``models`` maps what the peer offers to its context length, 0 when it does not say."""

    reachable: bool
    models: Mapping[str, int] = field(default_factory=dict)
    checked_us: int = 0
    reason: str = ""


def peers_in(table: Table) -> dict[str, Endpoint]:
    """One endpoint per peer, by replica id, in table order."""
    found: dict[str, Endpoint] = {}
    for alias in table.aliases:
        for endpoint in alias.endpoints:
            if endpoint.release.startswith(PEER_PREFIX):
                found.setdefault(endpoint.replica, endpoint)
    return found


def read_models(status: int, body: bytes, now_us: int) -> PeerStatus:
    """Understand a peer's answer to ``GET /v1/models``; anything but a list of models is a failure."""
    if status != 200:
        return unreachable(f"it answered {status} to GET /v1/models", now_us)
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return unreachable("its list of models is no JSON", now_us)
    data = parsed.get("data") if isinstance(parsed, dict) else None
    if not isinstance(data, list):
        return unreachable("its list of models has no data", now_us)
    models = {
        item["id"]: _length(item)
        for item in data[:MODELS_MOST]
        if isinstance(item, dict) and isinstance(item.get("id"), str)
    }
    return PeerStatus(True, models, now_us)


def unreachable(reason: str, now_us: int) -> PeerStatus:
    """A peer that cannot be used until it is asked again."""
    return PeerStatus(False, {}, now_us, reason)


def resolve(table: Table, statuses: Mapping[str, PeerStatus]) -> Table:
    """The table without endpoints of peers that are away or do not offer the alias.

    A peer that nobody has asked yet stays: the first request may find out. A context length that only a peer
    knows is filled in.
    """
    if not statuses:
        return table
    return replace(table, aliases=tuple(_resolved(alias, statuses) for alias in table.aliases))


def _resolved(alias: AliasEntry, statuses: Mapping[str, PeerStatus]) -> AliasEntry:
    kept = []
    context_tokens = alias.context_tokens
    reasons = [alias.reason] if alias.reason else []
    for endpoint in alias.endpoints:
        status = statuses.get(endpoint.replica)
        if status is not None:
            name = endpoint.served_model or alias.name
            if not status.reachable:
                reasons.append(f"{endpoint.replica}: {status.reason}")
                continue
            if name not in status.models:
                reasons.append(f"{endpoint.replica}: does not offer {name}")
                continue
            context_tokens = context_tokens or status.models[name]
        kept.append(endpoint)
    if len(kept) == len(alias.endpoints) and context_tokens == alias.context_tokens:
        return alias
    return replace(alias, endpoints=tuple(kept), context_tokens=context_tokens, reason="; ".join(reasons))


def _length(item: dict[str, Any]) -> int:
    value = item.get("max_model_len")
    return value if isinstance(value, int) and value > 0 else 0


class Directory:
    """Remembers the last answer of each peer, and who is due to be asked."""

    def __init__(self) -> None:
        self.statuses: dict[str, PeerStatus] = {}
        self.asking: set[str] = set()

    def due(self, peers: Mapping[str, Endpoint], now_us: int) -> list[Endpoint]:
        """Peers to ask now, and marks them as being asked."""
        for gone in [name for name in self.statuses if name not in peers]:
            del self.statuses[gone]
        found = []
        for name, endpoint in peers.items():
            status = self.statuses.get(name)
            if name in self.asking:
                continue
            wait_us = REFRESH_US if status is None or status.reachable else RETRY_US
            if status is None or now_us - status.checked_us >= wait_us:
                self.asking.add(name)
                found.append(endpoint)
        return found

    def record(self, name: str, status: PeerStatus) -> bool:
        """Keep an answer. True when it changes what may be asked of the peer."""
        self.asking.discard(name)
        before = self.statuses.get(name)
        self.statuses[name] = status
        if before is None:
            return True
        return (before.reachable, before.models) != (status.reachable, status.models)
