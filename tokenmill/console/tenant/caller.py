"""Who calls the tenant's API: the live key of the bearer secret. Its project owns what the call makes."""

from __future__ import annotations

from starlette.requests import Request

from tokenmill.console.auth import live_key
from tokenmill.console.context import ApiContext
from tokenmill.console.tenant.answers import ApiRefusedError
from tokenmill.domain.tenancy import Owner
from tokenmill.domain.work import Key


def identify(context: ApiContext, authorization: str, api_key: str = "") -> Key:
    """The key of an ``Authorization: Bearer`` or ``x-api-key`` header. Raises ``ApiRefusedError`` 401."""
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer":
        secret = api_key
    key = live_key(context, secret.strip()) if secret.strip() else None
    if key is None:
        raise ApiRefusedError(
            401, "invalid_api_key", "Incorrect API key provided. `tokenmill keys create` makes one."
        )
    return key


def key_of(request: Request) -> Key:
    """The key that was identified before the endpoint was called."""
    key: Key = request.scope["state"]["key"]
    return key


def owner_of(request: Request) -> Owner:
    key = key_of(request)
    return Owner(key.tenant, key.project)
