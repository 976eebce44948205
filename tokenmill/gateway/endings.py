"""Settlements of requests that control never saw: refused before admission, or left by a dead gateway.

Also the line that a request opens with, which the second kind is made from.
"""

from __future__ import annotations

from tokenmill.control.edge import keep_meters, meters_of
from tokenmill.control.requests import EdgeMemory, Index, Request
from tokenmill.domain.ledger import Outcome, Settlement
from tokenmill.domain.table import Endpoint, KeyEntry
from tokenmill.domain.value import replace, value
from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.message import HttpRequest
from tokenmill.policy.admit import Use, settle


@value
class Opening:
    """An open line: enough for a later life to settle the request and give its reserve back."""

    request: str
    at_us: int
    tenant: str
    project: str
    key: str
    alias: str
    endpoint: str
    release: str = ""
    replica: str = ""
    tokens: int = 0
    micros: int = 0


UNKNOWN_MODEL = "(unknown)"
"""What a request is settled as whose model its tenant has not: clients make up names without number, and each
would be a row of every usage page. The reason says which it was. No alias can be called so."""


def opening(request: Request, endpoint: Endpoint) -> Opening:
    """The open line of an admitted request."""
    call, key, reserved = request.call, request.call.key, request.reserved
    return Opening(
        call.id,
        call.at_us,
        key.tenant,
        key.project,
        key.id,
        call.alias,
        call.endpoint,
        endpoint.release,
        endpoint.replica,
        reserved.tokens,
        reserved.micros,
    )


def give_back(index: Index, memory: EdgeMemory, opened: Opening, now_us: int) -> EdgeMemory:
    """What the request of an open line had reserved when its gateway died is nobody's use."""
    project = KeyEntry("", "", opened.tenant, opened.project, "")
    limits = index.bounds(project, opened.alias)
    reserved = Use(opened.tokens, opened.micros)
    kept = settle(limits, meters_of(memory, limits), reserved, Use(), opened.at_us, now_us)
    return replace(memory, meters=keep_meters(memory.meters, limits, kept))


def turned_away(
    request_id: str, key: KeyEntry, alias: str, endpoint: str, error: ApiError, http: HttpRequest, now_us: int
) -> Settlement:
    """A request of a known key that was wrong in itself, or came when nothing can be served."""
    return Settlement(
        request=request_id,
        at_us=now_us,
        tenant=key.tenant,
        project=key.project,
        key=key.id,
        alias=alias,
        release="",
        replica="",
        endpoint=endpoint,
        outcome=Outcome.REFUSED,
        status=error.status,
        duration_us=max(0, now_us - http.arrived_us),
        reason=f"{error.code or 'bad_request'}: {error.reason}"[:500],
    )


def interrupted(opened: Opening, now_us: int) -> Settlement:
    """What is known of a request that was open when its gateway died: that it was admitted, and when."""
    return Settlement(
        request=opened.request,
        at_us=now_us,
        tenant=opened.tenant,
        project=opened.project,
        key=opened.key,
        alias=opened.alias,
        release=opened.release,
        replica=opened.replica,
        endpoint=opened.endpoint,
        outcome=Outcome.INTERRUPTED,
        status=0,
        duration_us=max(0, now_us - opened.at_us),
        reason="the gateway died with this request open",
    )
