"""Which of several processes keeps the answer of an ``Idempotency-Key``: a request with one is handed to it.

Without this a client that asks again on another connection could reach a process that knows nothing of the
first time. When the owner is away, what it kept is gone too, and the client is told to come back.
"""

from __future__ import annotations

import zlib

from tokenmill.gateway.client import ClientConnection, Responder
from tokenmill.gateway.edge import Gateway
from tokenmill.gateway.errors import unavailable
from tokenmill.gateway.forward import Forwarding
from tokenmill.gateway.message import HttpRequest


class Handing(Forwarding):
    """One request on its way to the process that owns its key."""

    def away(self) -> None:
        error = unavailable("The process that keeps this Idempotency-Key is being started again.", 1_000_000)
        self.connection.respond(self.http, error.status, error.body, headers=error.headers)


def owner_of(gateway: Gateway, connection: ClientConnection, request: HttpRequest) -> Responder | None:
    """Hand a request to the process that owns its ``Idempotency-Key``; ``None`` when it is answered here."""
    options = gateway.options
    if options.processes == 1 or connection.inside:
        return None
    value = request.header(b"idempotency-key")
    owner = zlib.crc32(value) % options.processes
    if not value or owner == options.index:
        return None
    handing = Handing(gateway, connection, request, options.sibling(owner))
    handing.begin()
    return handing
