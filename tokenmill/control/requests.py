"""The life cycle of one request, as the gateway drives it: pure functions over explicit values.

The gateway holds two values: ``Index`` (made from each new ``Table`` by ``index_of``) and one ``EdgeMemory``
(what admission and routing remember; call ``refresh`` on it with each new index). It calls, in this order::

    entry = identify(index, digest, now_us)         # KeyEntry, or Refuse 401: nobody to bill, no settlement
    turn = arrive(index, memory, call)              # Forward(endpoint), or Refuse + Settle; place, then take
    turn = first_byte(memory, request, at_us)       # before the first byte goes to the client
    turn = finished(index, memory, request, ...)    # Settle: the engine answered to the end (any status)
    turn = client_gone(index, memory, request, ...) # Settle: the client went away
    turn = engine_lost(index, memory, request, ...) # Forward elsewhere, or Refuse/Break + Settle
    turn = interrupted(index, memory, request, ...) # Settle: the gateway itself is stopping

Each returns a ``Turn``: the memory to keep, the request's next value and the actions to do in order. Every
request that ``arrive`` took ends in exactly one ``Settle``; after it, further calls return no action, so that
a client that leaves while the engine dies is settled once. The caller keeps nothing else: outstanding work,
cooling replicas, meters and prefix affinity are in ``EdgeMemory``, whose size is bounded.

It does no I/O and parses no HTTP; the spool line is the caller's, made from ``Settle.settlement``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenmill.control.edge import (
    NEW_ENDPOINT,
    Action,
    Break,
    Call,
    EdgeMemory,
    EndpointMemory,
    Forward,
    Index,
    Phase,
    Refuse,
    Request,
    Settle,
    Tariff,
    TokenUsage,
    Turn,
    index_of,
    keep_meters,
    left,
    meters_of,
    prefix_hits,
    refresh,
    taken,
)
from tokenmill.domain.ledger import Outcome, Settlement
from tokenmill.domain.table import AliasEntry, Endpoint, KeyEntry, TenantEntry
from tokenmill.domain.value import replace
from tokenmill.policy.admit import Admitted, Limit, Use, admit, settle
from tokenmill.policy.price import cost_micros
from tokenmill.policy.route import FEW, Routed, Seen, Unroutable, route, shortlist

__all__ = [
    "RETRIES",
    "Action",
    "Break",
    "Call",
    "EdgeMemory",
    "EndpointMemory",
    "Forward",
    "Index",
    "Phase",
    "Refuse",
    "Request",
    "Settle",
    "TokenUsage",
    "Turn",
    "arrive",
    "client_gone",
    "engine_lost",
    "finished",
    "first_byte",
    "identify",
    "index_of",
    "interrupted",
    "place",
    "prefix_hits",
    "refresh",
    "take",
    "visible_aliases",
]

NO_USE = Use()
RETRIES = 2
"""An engine that dies before the first byte is replaced by another at most this often per request."""


def identify(index: Index, digest: str, now_us: int) -> KeyEntry | Refuse:
    """Find the key whose secret has this hex sha256. Unknown and expired keys get the same 401."""
    entry = index.keys.get(digest)
    if entry is None or (entry.expires_us and entry.expires_us <= now_us):
        return Refuse(401, "invalid_api_key", "The API key is unknown, disabled or expired.")
    return entry


def visible_aliases(index: Index, key: KeyEntry) -> tuple[AliasEntry, ...]:
    """The aliases that this key's tenant may call, in table order: the answer to ``GET /v1/models``."""
    return tuple(a for a in index.aliases.values() if not a.tenants or key.tenant in a.tenants)


def arrive(index: Index, memory: EdgeMemory, call: Call) -> Turn:
    """Route and admit a new request: ``Forward``, or ``Refuse`` followed by its ``Settle``."""
    found = place(index, memory, call)
    return take(index, memory, call, found) if isinstance(found, Endpoint) else found


def place(index: Index, memory: EdgeMemory, call: Call) -> Endpoint | Turn:
    """Where a new request would go, or its refusal. Nothing is remembered yet."""
    alias = index.aliases.get(call.alias)
    tenant = index.tenants.get(call.key.tenant)
    if tenant is None:
        refusal = Refuse(401, "invalid_api_key", "The API key is unknown, disabled or expired.")
        return _refused(memory, call, refusal)
    if alias is None or (alias.tenants and tenant.name not in alias.tenants):
        # An alias of another tenant is answered like one that does not exist: names are not leaked.
        message = f"The model {call.alias!r} does not exist or you do not have access to it."
        return _refused(memory, call, Refuse(404, "model_not_found", message))
    if not alias.targets and not alias.endpoints:
        reasons = (alias.reason,) if alias.reason else ()
        message = f"The model {call.alias!r} is not ready."
        return _refused(memory, call, Refuse(503, "model_not_ready", message, 5, reasons))
    found = _routed(index, memory, alias, tenant, call, (), call.at_us)
    return _refused(memory, call, found) if isinstance(found, Refuse) else found


def take(index: Index, memory: EdgeMemory, call: Call, found: Endpoint) -> Turn:
    """Admit a new request to where it was placed: ``Forward``, or ``Refuse`` followed by its ``Settle``.

    Where several processes keep one memory they take turns with this, and not with ``place``: what each has
    open on a replica is counted here, so a replica is at most one request a process fuller than was seen.
    """
    limits = index.bounds(call.key, call.alias)
    tariff = index.tariff(call.alias, call.at_us)
    admitted = admit(limits, meters_of(memory, limits), _most(call, limits, tariff), call.at_us)
    if not isinstance(admitted, Admitted):
        return _refused(memory, call, _over_quota(admitted.code, admitted.reasons, admitted.retry_after_us))
    meters = keep_meters(memory.meters, limits, admitted.meters)
    memory = taken(memory, found, call.prefix, meters)
    request = Request(call, Phase.FORWARDED, found, admitted.reserved, tariff, limits)
    return Turn(memory, request, (Forward(found),))


def first_byte(memory: EdgeMemory, request: Request, at_us: int, response: str = "") -> Turn:
    """The engine's first byte is here and goes to the client now: from here on nothing is retried.

    ``response`` is what the answer calls itself, where its first bytes say so.
    """
    if request.phase is not Phase.FORWARDED:
        return Turn(memory, request)
    waited_us = max(1, at_us - request.call.at_us)
    answering = Request(
        request.call,
        Phase.ANSWERING,
        request.endpoint,
        request.reserved,
        request.tariff,
        request.limits,
        request.tried,
        waited_us,
        response,
    )
    return Turn(memory, answering)


def finished(
    index: Index,
    memory: EdgeMemory,
    request: Request,
    at_us: int,
    status: int,
    usage: TokenUsage,
    response: str = "",
) -> Turn:
    """The engine answered to the end. A ``status`` of 400 or more settles as an engine's error.

    An answer whose first byte was not told of came in one piece; ``response`` is what it calls itself.
    """
    outcome = Outcome.OK if status < 400 else Outcome.ENGINE_ERROR
    if request.phase is Phase.FORWARDED and outcome is Outcome.OK:
        waited_us = max(1, at_us - request.call.at_us)
        request = replace(request, first_token_us=waited_us, response=response)
    return _settled(index, memory, request, at_us, outcome, status, usage, "", failed=False)


def client_gone(index: Index, memory: EdgeMemory, request: Request, at_us: int, usage: TokenUsage) -> Turn:
    """The client left; ``usage`` is what the engine reported or the gateway saw pass. Status is 499."""
    return _settled(index, memory, request, at_us, Outcome.CANCELLED, 499, usage, "", failed=False)


def interrupted(index: Index, memory: EdgeMemory, request: Request, at_us: int, usage: TokenUsage) -> Turn:
    """The gateway stops with this request open."""
    status = 200 if request.phase is Phase.ANSWERING else 503
    reason = "the gateway stopped"
    return _settled(index, memory, request, at_us, Outcome.INTERRUPTED, status, usage, reason, failed=False)


def engine_lost(
    index: Index, memory: EdgeMemory, request: Request, at_us: int, reason: str, usage: TokenUsage
) -> Turn:
    """The engine refused the connection, died, or broke the stream (also: it answered 502, 503 or 504).

    While nothing went to the client the request is forwarded to another replica, ``RETRIES`` times at most;
    tokens of lost attempts are not billed. Otherwise it is refused or broken, and settled.
    """
    endpoint = request.endpoint
    if request.phase is Phase.SETTLED or endpoint is None:
        return Turn(memory, request)
    if request.phase is Phase.FORWARDED and len(request.tried) < RETRIES:
        alias = index.aliases.get(request.call.alias)
        tenant = index.tenants.get(request.call.key.tenant)
        tried = (*request.tried, endpoint.replica)
        found = (
            _routed(index, memory, alias, tenant, request.call, tried, at_us) if alias and tenant else None
        )
        if isinstance(found, Endpoint):
            memory = taken(left(memory, endpoint, at_us, failed=True), found, request.call.prefix)
            return Turn(memory, replace(request, endpoint=found, tried=tried), (Forward(found),))
    broken = request.phase is Phase.ANSWERING
    message = (
        "The engine failed while it answered."
        if broken
        else "The engine failed and no other could take over."
    )
    action: Action = (
        Break("engine_failed", message) if broken else Refuse(502, "engine_failed", message, 1, (reason,))
    )
    status = 200 if broken else 502
    turn = _settled(index, memory, request, at_us, Outcome.ENGINE_FAILED, status, usage, reason, failed=True)
    return Turn(turn.memory, turn.request, (action, *turn.actions))


def _routed(
    index: Index,
    memory: EdgeMemory,
    alias: AliasEntry,
    tenant: TenantEntry,
    call: Call,
    tried: tuple[str, ...],
    now_us: int,
) -> Endpoint | Refuse:
    reach = index.reach(alias, tenant.jurisdictions)
    endpoints, barred = reach.endpoints, reach.barred
    if barred and not endpoints:
        message = "No replica of this model is where this tenant's data may be."
        return Refuse(403, "residency_refused", message, 0, barred)
    hits = prefix_hits(memory, call.prefix) if call.prefix else {}
    if len(endpoints) > FEW:
        warm = {replica: reach.named[replica] for replica in hits if replica in reach.named}
        found = shortlist(reach.pools, alias.targets, warm, call.draw, call.lot)
        if found is not None:
            release, looked_at = found
            routed = route(_candidates(memory, looked_at, hits, tried), ((release, 1000),), now_us, 0)
            if isinstance(routed, Routed):
                return routed.endpoint
    routed = route(_candidates(memory, endpoints, hits, tried), alias.targets, now_us, call.draw)
    if isinstance(routed, Routed):
        return routed.endpoint
    return _no_route(call.alias, alias, routed)


def _candidates(
    memory: EdgeMemory, endpoints: Sequence[Endpoint], hits: Mapping[str, int], tried: tuple[str, ...]
) -> list[Seen]:
    seen_of = memory.endpoints.get
    if tried:
        endpoints = [endpoint for endpoint in endpoints if endpoint.replica not in tried]
    if hits:
        return [
            (endpoint, seen.outstanding, seen.cooling_until_us, hits.get(endpoint.replica, 0))
            for endpoint in endpoints
            for seen in [seen_of(endpoint.replica) or NEW_ENDPOINT]
        ]
    return [
        (endpoint, seen.outstanding, seen.cooling_until_us, 0)
        for endpoint in endpoints
        for seen in [seen_of(endpoint.replica) or NEW_ENDPOINT]
    ]


def _no_route(name: str, alias: AliasEntry, found: Unroutable) -> Refuse:
    retry_s = -(-found.retry_after_us // 1_000_000)
    if found.full:
        return Refuse(503, "overloaded", f"Every replica of {name!r} is full.", retry_s, found.reasons)
    reasons = (alias.reason, *found.reasons) if alias.reason else found.reasons
    return Refuse(503, "model_not_ready", f"No replica of {name!r} can answer.", max(retry_s, 1), reasons)


def _most(call: Call, limits: tuple[Limit, ...], tariff: Tariff) -> Use:
    """What a request may use at most. Money is only reckoned where money is bounded."""
    tokens = call.input_estimate + call.max_output
    if not _in_money(limits):
        return Use(tokens)
    price, most = tariff.price, call.max_output
    dearer = (price.reasoning_micros_per_mtok or 0) > price.output_micros_per_mtok
    return Use(tokens, cost_micros(price, call.input_estimate, 0, most, most if dearer else 0))


def _in_money(limits: tuple[Limit, ...]) -> bool:
    for limit in limits:
        quota = limit.quota
        if quota.micros_per_day is not None or quota.micros_per_month is not None:
            return True
    return False


def _used(usage: TokenUsage, limits: tuple[Limit, ...], tariff: Tariff) -> Use:
    """What it did use, in money by the same sum that the ledger posts."""
    tokens = usage.input_tokens + usage.output_tokens
    if not _in_money(limits):
        return Use(tokens)
    counts = (usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.reasoning_tokens)
    return Use(tokens, cost_micros(tariff.price, *counts))


def _over_quota(code: str, reasons: tuple[str, ...], retry_after_us: int) -> Refuse:
    retry_s = -(-retry_after_us // 1_000_000)
    return Refuse(429, code, f"Over quota: {'; '.join(reasons)}.", retry_s, reasons)


def _refused(memory: EdgeMemory, call: Call, refusal: Refuse) -> Turn:
    request = Request(call, Phase.SETTLED)
    reason = f"{refusal.code}: {'; '.join(refusal.reasons) or refusal.message}"
    settlement = _settlement(request, call.at_us, Outcome.REFUSED, refusal.status, TokenUsage(), reason)
    return Turn(memory, request, (refusal, Settle(settlement)))


def _settled(
    index: Index,
    memory: EdgeMemory,
    request: Request,
    at_us: int,
    outcome: Outcome,
    status: int,
    usage: TokenUsage,
    reason: str,
    *,
    failed: bool,
) -> Turn:
    if request.phase is Phase.SETTLED or request.endpoint is None:
        return Turn(memory, request)
    limits = request.limits
    used = _used(usage, limits, request.tariff)
    before = meters_of(memory, limits)
    kept = settle(limits, before, request.reserved, used, request.call.at_us, at_us)
    meters = keep_meters(memory.meters, limits, kept)
    memory = left(memory, request.endpoint, at_us, failed=failed, meters=meters)
    settlement = _settlement(request, at_us, outcome, status, usage, reason)
    call, endpoint = request.call, request.endpoint
    ended = Request(
        call, Phase.SETTLED, endpoint, NO_USE, request.tariff, (), request.tried, request.first_token_us
    )
    return Turn(memory, ended, (Settle(settlement),))


def _settlement(
    request: Request, at_us: int, outcome: Outcome, status: int, usage: TokenUsage, reason: str
) -> Settlement:
    call, endpoint = request.call, request.endpoint
    return Settlement(
        request=call.id,
        at_us=at_us,
        tenant=call.key.tenant,
        project=call.key.project,
        key=call.key.id,
        alias=call.alias,
        release=endpoint.release if endpoint else "",
        replica=endpoint.replica if endpoint else "",
        endpoint=call.endpoint,
        outcome=outcome,
        status=status,
        input_tokens=usage.input_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        counted_by=usage.counted_by,
        first_token_us=request.first_token_us,
        duration_us=max(0, at_us - call.at_us),
        reason=reason,
        response=request.response,
        tried=" ".join(request.tried),
        price=request.tariff.id if endpoint else "",
    )
