"""The tenant's API as one ASGI app: identify the key, find the endpoint, answer in OpenAI's shapes.

It is reached through the gateway only, which has checked the key too; here it says whose things these are.
"""

from __future__ import annotations

import secrets

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenmill.console.commands import Commands
from tokenmill.console.context import ApiContext
from tokenmill.console.requests import Endpoint
from tokenmill.console.tenant.answers import ApiRefusedError, refuse, refuse_house
from tokenmill.console.tenant.batch_runner import BatchRunner
from tokenmill.console.tenant.batches import Batches
from tokenmill.console.tenant.caller import identify
from tokenmill.console.tenant.feedback import Feedback
from tokenmill.console.tenant.tunings import Tunings
from tokenmill.console.tenant.uploads import Uploads
from tokenmill.console.tenant.usage import TenantUsage
from tokenmill.domain.errors import TokenmillError


def make_tenant_app(context: ApiContext, runner: BatchRunner, commands: Commands) -> ASGIApp:
    """Every endpoint that the controller serves below ``/v1``, where it is mounted."""
    app = Starlette(
        routes=[
            Route(path, endpoint, methods=[method])
            for method, path, endpoint in routes(context, runner, commands)
        ],
        exception_handlers={
            ApiRefusedError: _refused,
            TokenmillError: _refused_by_the_house,
            Exception: _broken,
            404: _unknown,
            405: _unknown,
        },
    )
    return _identified(app, context)


def routes(context: ApiContext, runner: BatchRunner, commands: Commands) -> list[tuple[str, str, Endpoint]]:
    """Method, path below ``/v1`` and what answers. ``gateway.openapi`` describes them; a test compares."""
    uploads = Uploads(context.shelf)
    batches = Batches(context.store.batches, context.shelf, runner, context.now_us)
    tunings = Tunings(context, commands)
    return [
        ("POST", "/files", uploads.create),
        ("GET", "/files", uploads.list),
        ("GET", "/files/{id}", uploads.get),
        ("DELETE", "/files/{id}", uploads.delete),
        ("GET", "/files/{id}/content", uploads.content),
        ("POST", "/batches", batches.create),
        ("GET", "/batches", batches.list),
        ("GET", "/batches/{id}", batches.get),
        ("POST", "/batches/{id}/cancel", batches.cancel),
        ("POST", "/fine_tuning/jobs", tunings.create),
        ("GET", "/fine_tuning/jobs", tunings.page),
        ("GET", "/fine_tuning/jobs/{id}", tunings.get),
        ("POST", "/fine_tuning/jobs/{id}/cancel", tunings.cancel),
        ("POST", "/fine_tuning/jobs/{id}/pause", tunings.pause),
        ("POST", "/fine_tuning/jobs/{id}/resume", tunings.resume),
        ("GET", "/fine_tuning/jobs/{id}/events", tunings.events),
        ("GET", "/fine_tuning/jobs/{id}/checkpoints", tunings.checkpoints),
        ("DELETE", "/models/{model:path}", tunings.delete_model),
        ("POST", "/feedback", Feedback(context).create),
        ("GET", "/usage", TenantUsage(context).list),
    ]


def _identified(app: ASGIApp, context: ApiContext) -> ASGIApp:
    async def identified(scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        send = _numbered(send, headers.get("x-request-id", "") or f"req-{secrets.token_hex(12)}")
        try:
            if not context.runtime.ready.is_set():
                raise ApiRefusedError(503, "starting", "The controller is starting; ask again in a second.")
            key = identify(context, headers.get("authorization", ""), headers.get("x-api-key", ""))
        except ApiRefusedError as error:
            await refuse(error)(scope, receive, send)
            return
        scope.setdefault("state", {})["key"] = key
        await app(scope, receive, send)

    return identified


def _numbered(send: Send, request_id: str) -> Send:
    async def numbered(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode("latin-1"))]
        await send(message)

    return numbered


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiRefusedError)
    return refuse(error)


async def _refused_by_the_house(_request: Request, error: Exception) -> Response:
    assert isinstance(error, TokenmillError)
    return refuse_house(error)


async def _broken(_request: Request, _error: Exception) -> Response:
    """A mistake of ours, which the log has: still an error object."""
    return refuse(ApiRefusedError(500, None, "The server had an error while processing your request."))


async def _unknown(request: Request, error: Exception) -> Response:
    path = request.url.path
    if getattr(error, "status_code", 404) == 405:
        return refuse(
            ApiRefusedError(405, "method_not_allowed", f"{request.method} is not answered at {path}.")
        )
    return refuse(ApiRefusedError(404, "unknown_url", f"Unknown request URL: {request.method} {path[:200]}."))
