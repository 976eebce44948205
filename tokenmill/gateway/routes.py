"""Which path does what.

Model endpoints also answer without their ``/v1``, since clients disagree on what a base URL is. Paths of
the console and the admin API go to the controller; all else is an OpenAI error object.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson

from tokenmill import __version__
from tokenmill.domain.table import KeyEntry
from tokenmill.gateway import openapi
from tokenmill.gateway.body import CHAT, COMPLETIONS, EMBEDDINGS
from tokenmill.gateway.bridge import Bridge, Dialect, replay
from tokenmill.gateway.caller import idle_slot
from tokenmill.gateway.client import ClientConnection, Responder
from tokenmill.gateway.dialects.messages import Messages
from tokenmill.gateway.dialects.rerank import Rerank, Score
from tokenmill.gateway.dialects.responses import Responses
from tokenmill.gateway.edge import Gateway
from tokenmill.gateway.errors import (
    ApiError,
    invalid_key,
    not_stored,
    unavailable,
    unknown_model,
    unknown_path,
)
from tokenmill.gateway.exchange import Exchange
from tokenmill.gateway.forward import Forwarding
from tokenmill.gateway.gathering import TEXT, Gathering, own_metrics
from tokenmill.gateway.handing import owner_of
from tokenmill.gateway.health import readiness
from tokenmill.gateway.identity import identify
from tokenmill.gateway.message import HttpRequest
from tokenmill.gateway.options import is_loopback
from tokenmill.gateway.origins import preflight
from tokenmill.gateway.outlet import Plain, Surface
from tokenmill.gateway.table import model_object
from tokenmill.gateway.tokenizing import Answer, Tokenizing, count_tokens, detokenize, input_tokens, tokenize

SURFACES = {
    "/chat/completions": Plain(CHAT),
    "/completions": Plain(COMPLETIONS),
    "/embeddings": Plain(EMBEDDINGS),
}
DIALECTS: dict[str, Callable[[], Dialect]] = {
    "/responses": Responses,
    "/messages": Messages,
    "/rerank": Rerank,
    "/v2/rerank": Rerank,  # where Cohere's client asks
    "/score": Score,
}
TOKENIZERS: dict[str, Answer] = {
    "/tokenize": tokenize,
    "/detokenize": detokenize,
    "/messages/count_tokens": count_tokens,
    "/responses/input_tokens": input_tokens,
}
ENDPOINTS = frozenset((*SURFACES, *DIALECTS, *TOKENIZERS))
ANTHROPIC = "/messages"
DESCRIPTION = openapi.document()
CONSOLE = frozenset(("/", "/login", "/logout", "/console", "/static", "/api", "/favicon.ico"))
CONSOLE_TREES = ("/console/", "/static/", "/api/")
TENANT_TREES = ("files", "batches", "fine_tuning", "feedback", "usage")
"""Below ``/v1``: what the controller keeps for tenants."""


def dispatch(gateway: Gateway, connection: ClientConnection, request: HttpRequest) -> Responder | None:
    """Answer ``request`` at once, or return who will."""
    path = request.path
    short = path[3:] if path.startswith("/v1/") else path
    surface = SURFACES.get(short)
    if surface is not None:
        return _model_request(gateway, connection, request, surface, None)
    make = DIALECTS.get(short)
    if make is not None:
        dialect = make()
        return _model_request(gateway, connection, request, dialect, dialect)
    if short in TOKENIZERS:
        return _tokenizing(gateway, connection, request, short)
    if short.startswith("/responses/") and short != "/responses/compact":
        _error(connection, request, not_stored(short[11:].partition("/")[0]), gateway.request_id())
        return None
    if short[1:].partition("/")[0] in TENANT_TREES:
        return _tenant_request(gateway, connection, request)
    if request.method == "DELETE" and short.startswith("/models/"):
        return _tenant_request(gateway, connection, request)
    if short == "/models" or short.startswith("/models/"):
        _models(gateway, connection, request, short[8:])
    elif path in CONSOLE or path.startswith(CONSOLE_TREES):
        forwarding = Forwarding(gateway, connection, request)
        forwarding.begin()
        return forwarding
    elif short.endswith("/") and short[:-1] in ENDPOINTS:
        request.path = path[:-1]  # some clients join their base and path so
        return dispatch(gateway, connection, request)
    else:
        return _own(gateway, connection, request)
    return None


def dispatch_shared(gateway: Gateway, connection: ClientConnection, request: HttpRequest) -> Responder | None:
    """``dispatch``, where pages of other origins may call too."""
    try:
        answer = preflight(gateway.options.allowed_origins, request)
    except ApiError as error:
        _error(connection, request, error, gateway.request_id())
        return None
    if answer is None:
        return dispatch(gateway, connection, request)
    connection.respond(request, 200, b"", headers=answer, content_type=b"text/plain")
    return None


def _model_request(
    gateway: Gateway,
    connection: ClientConnection,
    request: HttpRequest,
    surface: Surface,
    dialect: Dialect | None,
) -> Responder | None:
    request_id = gateway.request_id()
    caller = gateway.caller(request.head)
    try:
        if caller is None:
            raise invalid_key()
        _post_only(request)
        if caller.batch:
            _yield(gateway, request)
        owner = owner_of(gateway, connection, request)
        if owner is not None:
            return owner
        entry = gateway.replays.begin(caller.key, request, request_id, gateway.loop.time())
    except ApiError as error:
        _error(connection, request, error, request_id, dialect)
        return None
    if entry is not None and not entry.open:
        replay(connection, request, entry)
        return None
    keeper = gateway.captures.keeper(gateway.serving.index, caller.key, gateway.draw)
    if entry is None and dialect is None and keeper is None:
        exchange = Exchange(gateway, connection, request, surface, caller.key, request_id)
        return exchange if exchange.begin() else None
    more = b"request-id: %b\r\n" % request_id.encode() if isinstance(dialect, Messages) else b""
    bridge = Bridge(
        connection, request, gateway.replays, dialect=dialect, entry=entry, keeper=keeper, headers=more
    )
    return bridge.begin(Exchange(gateway, bridge, bridge.inner, surface, caller.key, request_id))


def _tokenizing(
    gateway: Gateway, connection: ClientConnection, request: HttpRequest, short: str
) -> Responder | None:
    request_id = gateway.request_id()
    caller = gateway.caller(request.head)
    anthropic = short.startswith(ANTHROPIC)
    try:
        if caller is None:
            raise invalid_key()
        _post_only(request)
    except ApiError as error:
        _error(connection, request, error, request_id, Messages() if anthropic else None)
        return None
    work = Tokenizing(
        gateway, connection, request, caller.key, request_id, TOKENIZERS[short], anthropic=anthropic
    )
    work.begin()
    return work


def _post_only(request: HttpRequest) -> None:
    if request.method != "POST":
        raise ApiError(405, "method_not_allowed", f"Use POST for {request.path}, not {request.method}.")


def _yield(gateway: Gateway, request: HttpRequest) -> None:
    """Send batch work back while all slots are taken. It is no refusal of the tenant's, and not settled."""
    try:
        alias = orjson.loads(request.body)["model"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return
    if isinstance(alias, str) and not idle_slot(gateway.serving, gateway.memory, alias, gateway.clock()):
        raise unavailable(f"Every slot of {alias!r} is taken; batch work waits.", 500_000, "yielding")


def _tenant_request(gateway: Gateway, connection: ClientConnection, request: HttpRequest) -> Responder | None:
    """Files and batches are the controller's; it is asked only by those who have a key."""
    if gateway.caller(request.head) is None:
        _error(connection, request, invalid_key(), gateway.request_id())
        return None
    if not request.target.startswith(b"/v1/"):
        request.target = b"/v1" + request.target
    forwarding = Forwarding(gateway, connection, request)
    forwarding.begin()
    return forwarding


def _models(gateway: Gateway, connection: ClientConnection, request: HttpRequest, name: str) -> None:
    request_id = gateway.request_id()
    caller = gateway.caller(request.head)
    if caller is None:
        _error(connection, request, invalid_key(), request_id)
    elif request.method not in ("GET", "HEAD"):
        error = ApiError(405, "method_not_allowed", f"Use GET for {request.path}.")
        _error(connection, request, error, request_id)
    elif not name:
        _json(connection, request, gateway.serving.listing(caller.key), request_id)
    else:
        _model(gateway, connection, request, name, caller.key, request_id)


def _model(
    gateway: Gateway,
    connection: ClientConnection,
    request: HttpRequest,
    name: str,
    key: KeyEntry,
    request_id: str,
) -> None:
    entry = gateway.serving.visible(name, key.tenant)
    if entry is None:
        _error(connection, request, unknown_model(name), request_id)
    else:
        _json(connection, request, orjson.dumps(model_object(entry)), request_id)


def _own(gateway: Gateway, connection: ClientConnection, request: HttpRequest) -> Responder | None:
    path = request.path
    if request.method not in ("GET", "HEAD"):
        _error(connection, request, unknown_path(request.method, path), gateway.request_id())
    elif path in ("/healthz", "/health"):
        connection.respond(request, 200, b'{"status":"ok"}')
    elif path == "/readyz":
        ready, body = readiness(gateway)
        connection.respond(request, 200 if ready else 503, body)
    elif path == "/version":
        connection.respond(request, 200, orjson.dumps({"version": __version__}))
    elif path == "/openapi.json":
        connection.respond(request, 200, DESCRIPTION)
    elif path == "/metrics":
        return _metrics(gateway, connection, request)
    else:
        _error(connection, request, unknown_path(request.method, path), gateway.request_id())
    return None


def _metrics(gateway: Gateway, connection: ClientConnection, request: HttpRequest) -> Responder | None:
    """Without a key on loopback only: they name tenants and models."""
    if connection.inside:
        connection.respond(request, 200, own_metrics(gateway), content_type=TEXT)
        return None
    key = identify(gateway.serving.index, request.header(b"authorization"), gateway.clock())
    if not is_loopback(connection.peer) and (key is None or key.scope != "admin"):
        _error(connection, request, invalid_key(), gateway.request_id())
        return None
    if gateway.options.siblings:
        gathering = Gathering(gateway, connection, request)
        gathering.begin()
        return gathering
    connection.respond(request, 200, own_metrics(gateway), content_type=TEXT)
    return None


def _json(connection: ClientConnection, request: HttpRequest, body: bytes, request_id: str) -> None:
    connection.respond(request, 200, body, headers=b"x-request-id: %b\r\n" % request_id.encode())


def _error(
    connection: ClientConnection,
    request: HttpRequest,
    error: ApiError,
    request_id: str,
    dialect: Dialect | None = None,
) -> None:
    body = error.body if dialect is None else dialect.error(error.status, error.body)
    headers = b"x-request-id: %b\r\n%b" % (request_id.encode(), error.headers)
    connection.respond(request, error.status, body, headers=headers)
