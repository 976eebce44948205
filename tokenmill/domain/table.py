"""The table that a gateway serves from: keys, limits, aliases and live replicas.

``control`` derives it from its state and publishes it as one versioned value; the gateway keeps its last
one when the controller is away. It holds digests of keys, never keys.
"""

from __future__ import annotations

from tokenmill.domain.factory import Capture, ModelQuota, Objective, Price, Quota
from tokenmill.domain.value import value


@value
class KeyEntry:
    id: str
    digest: str  # hex sha256 of the secret
    tenant: str
    project: str
    scope: str
    expires_us: int = 0


@value
class TenantEntry:
    name: str
    quota: Quota
    jurisdictions: tuple[str, ...]
    projects: tuple[tuple[str, Quota], ...]
    models: tuple[ModelQuota, ...] = ()
    priority: int = 0
    share: int = 1
    captures: tuple[tuple[str, Capture], ...] = ()  # (project, what of its traffic is kept)


@value
class Endpoint:
    """One replica, or a peer factory, that answers for a release."""

    replica: str
    release: str
    address: str  # "host:port"
    jurisdiction: str
    slots: int
    draining: bool = False
    tls: bool = False
    key_ref: str = ""  # peers only
    engine: str = ""  # its kind, where we started it: how its streams say what they have counted
    served_model: str = ""  # the name that the engine knows its weights by; empty keeps the client's


@value
class AliasEntry:
    """``reason`` says why nothing serves, when nothing does."""

    name: str
    kind: str  # chat or embedding
    context_tokens: int
    targets: tuple[tuple[str, int], ...]  # (release, weight in thousandths)
    endpoints: tuple[Endpoint, ...]
    tenants: tuple[str, ...]
    created_s: int
    owner: str
    reason: str = ""
    shadow: tuple[str, int] | None = None  # (release, thousandths of the requests it gets a copy of)
    slo: Objective | None = None  # what its answers are counted against
    prices: tuple[Price, ...] = ()  # what it costs now and from later dates on, by ``from_us``
    asleep: bool = False  # it has no replica because nobody asks; a request wakes it


@value
class Table:
    version: int
    factory: str
    keys: tuple[KeyEntry, ...] = ()
    tenants: tuple[TenantEntry, ...] = ()
    aliases: tuple[AliasEntry, ...] = ()
