"""What the gateway's decisions read and remember: the values of ``control.requests``, and their upkeep.

``Index`` is a table arranged for look-up, ``EdgeMemory`` all that admission and routing remember, in bounded
size; ``Request`` and the actions are the words of one request's life. ``control.requests`` decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from immutables import Map

from tokenmill.domain.factory import Price, Quota
from tokenmill.domain.ledger import Settlement
from tokenmill.domain.table import AliasEntry, Endpoint, KeyEntry, Table, TenantEntry
from tokenmill.domain.value import replace, value
from tokenmill.policy.admit import MINUTE_US, NO_QUOTA, Limit, Meter, Use
from tokenmill.policy.price import FREE, price_id
from tokenmill.policy.reside import reside

COOLING_US = 1_000_000
COOLING_MOST_US = 30_000_000
"""A replica that failed is left alone for 1 s, doubled per failure in a row, at most 30 s."""

NEW_METER = Meter()
PREFIXES = 8192
"""Prefix blocks remembered per generation; two generations are kept, so memory is bounded."""


@value
class Tariff:
    """A price and its id, which is made once."""

    id: str
    price: Price


FREE_TARIFF = Tariff(price_id(FREE), FREE)


@value
class Reach:
    """The replicas of an alias that data bound to some jurisdictions may go to."""

    endpoints: Sequence[Endpoint]
    barred: tuple[str, ...]  # a reason for each that it may not go to
    pools: Mapping[str, Sequence[Endpoint]]  # by release
    named: Mapping[str, Endpoint]  # by replica id


@value
class Index:
    """A ``Table`` arranged for look-up. Replace it whole when a newer table comes."""

    table: Table
    keys: Mapping[str, KeyEntry]  # by digest of the secret
    tenants: Mapping[str, TenantEntry]
    projects: Mapping[tuple[str, str], Quota]  # (tenant, project)
    aliases: Mapping[str, AliasEntry]
    limits: Mapping[tuple[str, str], tuple[Limit, ...]]  # what binds a project, by (tenant, project)
    model_limits: Mapping[tuple[str, str, str], tuple[Limit, ...]]  # the same where an alias has a quota too
    books: Mapping[str, tuple[Tariff, ...]]  # prices of an alias, by the time from which they are valid
    reaches: dict[tuple[str, tuple[str, ...]], Reach]  # filled as they are asked for

    def reach(self, alias: AliasEntry, jurisdictions: tuple[str, ...]) -> Reach:
        """Where requests for ``alias`` may go. Arranged once per table."""
        asked = (alias.name, jurisdictions)
        found = self.reaches.get(asked)
        if found is None:
            endpoints, barred = reside(alias.endpoints, jurisdictions)
            pools: dict[str, list[Endpoint]] = {}
            for endpoint in endpoints:
                pools.setdefault(endpoint.release, []).append(endpoint)
            found = self.reaches[asked] = Reach(endpoints, barred, pools, {e.replica: e for e in endpoints})
        return found

    def bounds(self, key: KeyEntry, alias: str) -> tuple[Limit, ...]:
        """Every limit that a request has to keep."""
        if self.model_limits:
            found = self.model_limits.get((key.tenant, key.project, alias))
            if found is not None:
                return found
        return self.limits.get((key.tenant, key.project), ())

    def all_limits(self) -> Iterable[tuple[Limit, ...]]:
        """Those of every project, and of every project on a model."""
        return (*self.limits.values(), *self.model_limits.values())

    def tariff(self, alias: str, at_us: int) -> Tariff:
        """The price of an alias at this time."""
        for tariff in reversed(self.books.get(alias, ())):
            if tariff.price.from_us <= at_us:
                return tariff
        return FREE_TARIFF


@value
class EndpointMemory:
    """What routing remembers of one replica."""

    outstanding: int = 0
    failures: int = 0  # in a row
    cooling_until_us: int = 0


NEW_ENDPOINT = EndpointMemory()

V = TypeVar("V")


class Kept(Protocol[V]):
    """Values by name. Keep what ``set`` and ``delete`` return.

    A persistent map is one, which leaves the old one as it was. A gateway gives one that writes in place,
    because several processes remember together.
    """

    def get(self, name: str, /) -> V | None: ...

    def set(self, name: str, value: V, /) -> Any: ...

    def delete(self, name: str, /) -> Any: ...

    def items(self) -> Iterable[tuple[str, V]]: ...


@value
class EdgeMemory:
    """All that the gateway's decisions remember. ``meters`` are by the name that a ``Limit`` gives."""

    meters: Kept[Meter] = Map()
    endpoints: Kept[EndpointMemory] = Map()  # by replica id
    prefixes: Map[int, str] = Map()  # prefix block hash -> replica
    prefixes_old: Map[int, str] = Map()


@value
class Call:
    """What the gateway read from one HTTP request.

    ``input_estimate`` and ``max_output`` are in tokens; ``prefix`` holds hashes of the prompt's leading
    blocks, each over everything up to its end, shortest first, eight at most; ``draw`` is 0..999 and ``lot``
    any whole number, both by chance.
    """

    id: str
    at_us: int
    endpoint: str  # "chat.completions"
    key: KeyEntry
    alias: str
    input_estimate: int
    max_output: int
    prefix: tuple[int, ...] = ()
    draw: int = 0
    lot: int = 0


@value
class TokenUsage:
    """Tokens of one request. ``counted_by`` is "engine" (usage object), "stream" (deltas seen) or "none"."""

    input_tokens: int = 0
    cached_tokens: int = 0  # part of input_tokens
    output_tokens: int = 0
    reasoning_tokens: int = 0  # part of output_tokens
    counted_by: str = "none"


class Phase(StrEnum):
    FORWARDED = "forwarded"  # nothing has gone to the client
    ANSWERING = "answering"
    SETTLED = "settled"


@value
class Request:
    """Where one request is. ``tried`` are the replicas that were lost before the current ``endpoint``."""

    call: Call
    phase: Phase
    endpoint: Endpoint | None = None
    reserved: Use = Use()
    tariff: Tariff = FREE_TARIFF  # valid at admission
    limits: tuple[Limit, ...] = ()  # those that it was admitted by
    tried: tuple[str, ...] = ()
    first_token_us: int = 0  # after arrival
    response: str = ""  # what the answer calls itself, once its first bytes are here


@value
class Forward:
    """Send the request to ``endpoint``."""

    endpoint: Endpoint


@value
class Refuse:
    """Answer the client with this error; nothing was sent before.

    ``code`` is OpenAI's where it has one: invalid_api_key, model_not_found, rate_limit_exceeded; ours are
    request_too_large, residency_refused, model_not_ready, overloaded and engine_failed. ``retry_after_s`` 0
    is no header. ``reasons`` are for the client and name no other tenant.
    """

    status: int
    code: str
    message: str
    retry_after_s: int = 0
    reasons: tuple[str, ...] = ()


@value
class Break:
    """The answer had begun and cannot be completed: send an error event on the stream and end it."""

    code: str
    message: str


@value
class Settle:
    """Write this to the spool. Exactly one per request."""

    settlement: Settlement


Action = Forward | Refuse | Break | Settle


@value
class Turn:
    """The result of one call: keep ``memory`` and ``request``, do ``actions`` in order."""

    memory: EdgeMemory
    request: Request
    actions: tuple[Action, ...] = ()


def index_of(table: Table) -> Index:
    """Arrange ``table`` for look-up.

    A key whose tenant or project the table does not have is no key: no quota would bind it.
    """
    projects = {(t.name, name): quota for t in table.tenants for name, quota in t.projects}
    return Index(
        table,
        keys={key.digest: key for key in table.keys if (key.tenant, key.project) in projects},
        tenants={tenant.name: tenant for tenant in table.tenants},
        projects=projects,
        aliases={alias.name: alias for alias in table.aliases},
        limits={(t.name, name): _limits(t, name) for t in table.tenants for name, _ in t.projects},
        model_limits=_model_limits(table),
        books={a.name: tuple(Tariff(price_id(p), p) for p in a.prices) for a in table.aliases},
        reaches={},
    )


def _limits(tenant: TenantEntry, project: str) -> tuple[Limit, ...]:
    """What binds a project whatever it asks for. Who has no quota has no meter either."""
    quotas = [
        (tenant.name, f"tenant {tenant.name}", tenant.quota),
        (f"{tenant.name}/{project}", f"project {project}", dict(tenant.projects)[project]),
    ]
    return tuple(Limit(*found) for found in quotas if found[2] != NO_QUOTA)


def _model_limits(table: Table) -> dict[tuple[str, str, str], tuple[Limit, ...]]:
    """All limits of each project and alias of which at least one is a quota on that alias."""
    found: dict[tuple[str, str, str], tuple[Limit, ...]] = {}
    for tenant in table.tenants:
        for project, _ in tenant.projects:
            for bound in tenant.models:
                if bound.project in ("", project):
                    place = (tenant.name, project, bound.model)
                    limit = Limit(
                        f"{tenant.name}/{bound.project}/{bound.model}",
                        f"{f'project {bound.project}' if bound.project else f'tenant {tenant.name}'} "
                        f"on model {bound.model}",
                        bound.quota,
                    )
                    found[place] = (*found.get(place, _limits(tenant, project)), limit)
    return found


def refresh(index: Index, memory: EdgeMemory) -> EdgeMemory:
    """Forget replicas and tenants that a new table no longer has, unless they still have open requests."""
    live = {e.replica for a in index.aliases.values() for e in a.endpoints}
    endpoints = memory.endpoints
    for replica, entry in tuple(endpoints.items()):
        if replica not in live and entry.outstanding == 0:
            endpoints = endpoints.delete(replica)
    meters = memory.meters
    for name, meter in tuple(meters.items()):
        if name.split("/", 1)[0] not in index.tenants and meter.open == 0:
            meters = meters.delete(name)
    return replace(memory, endpoints=endpoints, meters=meters)


def set_back(index: Index, memory: EdgeMemory, now_us: int) -> EdgeMemory:
    """After the clock was set back: no bucket is fuller, and no replica cools longer, than could begin now.

    Else whoever has a quota by the minute would wait until the clock had caught up with what it was.
    """
    latest, meters, endpoints = now_us + MINUTE_US, memory.meters, memory.endpoints
    for name in dict.fromkeys(limit.meter for limits in index.all_limits() for limit in limits):
        meter = meters.get(name) or NEW_METER
        if meter.requests_empty_us > latest or meter.tokens_empty_us > latest:
            due = min(meter.requests_empty_us, latest), min(meter.tokens_empty_us, latest)
            meters = meters.set(name, replace(meter, requests_empty_us=due[0], tokens_empty_us=due[1]))
    for replica, seen in tuple(endpoints.items()):
        cool_us = min(seen.cooling_until_us, now_us + COOLING_MOST_US)
        if cool_us != seen.cooling_until_us:
            endpoints = endpoints.set(replica, replace(seen, cooling_until_us=cool_us))
    return replace(memory, meters=meters, endpoints=endpoints)


def prefix_hits(memory: EdgeMemory, prefix: tuple[int, ...]) -> dict[str, int]:
    """How many leading blocks of this prompt each replica took last, by replica id."""
    hits: dict[str, int] = {}
    for block in prefix[:8]:
        replica = memory.prefixes.get(block) or memory.prefixes_old.get(block)
        if replica is None:
            break
        hits[replica] = hits.get(replica, 0) + 1
    return hits


def meters_of(memory: EdgeMemory, limits: tuple[Limit, ...]) -> tuple[Meter, ...]:
    get = memory.meters.get
    return tuple([get(limit.meter) or NEW_METER for limit in limits])


def keep_meters(meters: Kept[Meter], limits: tuple[Limit, ...], kept: tuple[Meter, ...]) -> Kept[Meter]:
    for limit, meter in zip(limits, kept, strict=True):
        meters = meters.set(limit.meter, meter)
    return meters


def taken(
    memory: EdgeMemory, endpoint: Endpoint, prefix: tuple[int, ...], meters: Kept[Meter] | None = None
) -> EdgeMemory:
    """``endpoint`` takes one more request, and is where its prefix blocks are warm from now on."""
    seen = memory.endpoints.get(endpoint.replica) or NEW_ENDPOINT
    busier = EndpointMemory(seen.outstanding + 1, seen.failures, seen.cooling_until_us)
    young, old = memory.prefixes, memory.prefixes_old
    if prefix:
        for block in prefix[:8]:
            young = young.set(block, endpoint.replica)
        if len(young) > PREFIXES:
            young, old = Map(), young
    endpoints = memory.endpoints.set(endpoint.replica, busier)
    return EdgeMemory(memory.meters if meters is None else meters, endpoints, young, old)


def left(
    memory: EdgeMemory,
    endpoint: Endpoint,
    now_us: int,
    *,
    failed: bool,
    meters: Kept[Meter] | None = None,
) -> EdgeMemory:
    """``endpoint`` has one request fewer; one that failed cools, one that answered is trusted again."""
    seen = memory.endpoints.get(endpoint.replica) or NEW_ENDPOINT
    outstanding = max(0, seen.outstanding - 1)
    if failed:
        failures = seen.failures + 1
        cooling_us = min(COOLING_US << min(failures - 1, 5), COOLING_MOST_US)
        entry = EndpointMemory(outstanding, failures, now_us + cooling_us)
    else:
        entry = EndpointMemory(outstanding)
    endpoints = memory.endpoints.set(endpoint.replica, entry)
    kept = memory.meters if meters is None else meters
    return EdgeMemory(kept, endpoints, memory.prefixes, memory.prefixes_old)
