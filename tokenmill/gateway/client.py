"""One client connection: HTTP/1.1 in, one request after another, and its answers out in the same order.

Requests that HTTP parsers could read in two ways are refused and the connection is closed. It knows
nothing of models or tenants: a finished request goes to ``dispatch``, which answers or takes it over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.message import PHRASES, HttpRequest
from tokenmill.gateway.reading import Reading, ReadingEdge

QUEUED_REQUESTS = 64  # pipelined ahead of the one being answered
LINGER_S = 10.0  # for the rest of a body that was refused


class Responder(Protocol):
    """Who answers a request that takes longer than one call."""

    def client_gone(self) -> None:
        """The client closed the connection."""

    def pause(self) -> None:
        """The client does not take bytes as fast as they come."""

    def resume(self) -> None:
        """It does again."""


class Edge(ReadingEdge, Protocol):
    """What a connection needs of the gateway around it."""

    connections: set[ClientConnection]
    draining: bool

    def dispatch(self, connection: ClientConnection, request: HttpRequest) -> Responder | None:
        """Answer ``request`` at once and return ``None``, or return who will."""

    def count_response(self, status: int) -> None:
        """A response begins."""


class ClientConnection(Reading):
    """See the module; the other half is ``reading``."""

    edge: Edge

    def __init__(
        self, edge: Edge, loop: asyncio.AbstractEventLoop, clock: Callable[[], int], *, inside: bool = False
    ) -> None:
        super().__init__(edge, loop, clock)
        self.inside = inside  # another process of this gateway, not a client
        self.transport: asyncio.Transport | None = None
        self.peer = ""
        self.responder: Responder | None = None
        self._answering = 0  # bytes of the body of the request that is being answered
        self.stalled = False
        self._held = False  # reading is paused because requests queue up

    # -- asyncio
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if isinstance(peer, tuple) and peer else ""
        if len(self.edge.connections) >= self.edge.options.connections:
            self.refuse(ApiError(503, "overloaded", "Too many connections are open.", retry_us=1_000_000))
        self.edge.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            if self._lingers:
                self.discard(data)
            return
        self.read(data)
        if not self.busy:
            self._next()
        elif len(self.queue) >= QUEUED_REQUESTS and self.transport is not None:
            self._held = True
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        return False  # a client that says it is done is gone: nobody reads what would still come

    def connection_lost(self, exc: Exception | None) -> None:
        self.edge.connections.discard(self)
        self.release()
        self.edge.buffered -= self._answering
        self._answering = 0
        for request in self.queue:
            self.edge.buffered -= len(request.body)
        self.queue.clear()
        responder, self.responder = self.responder, None
        if responder is not None:
            responder.client_gone()

    def pause_writing(self) -> None:
        self.stalled = True
        self.since = self.loop.time()
        if self.responder is not None:
            self.responder.pause()

    def resume_writing(self) -> None:
        self.stalled = False
        if self.responder is not None:
            self.responder.resume()

    # -- answering
    def _next(self) -> None:
        """Hand the next queued request on; simple ones are answered within the loop."""
        while self.queue and not self.busy and not self._refused:
            request = self.queue.popleft()
            self.busy, self._answering = True, len(request.body)
            responder = self.edge.dispatch(self, request)
            if responder is not None and self.busy:
                self.responder = responder
        if self._held and not self.queue and self.transport is not None and not self.transport.is_closing():
            self._held = False
            self.transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Send bytes, unless the client has gone."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def respond(
        self,
        request: HttpRequest,
        status: int,
        body: bytes,
        *,
        headers: bytes = b"",
        content_type: bytes = b"application/json",
    ) -> None:
        """Send a whole answer and go on to the next request. ``headers`` are lines that end in CRLF."""
        head = self.head(request, status, headers + b"content-type: %b\r\n" % content_type, len(body))
        self.write(head if request.method == "HEAD" else head + body)
        self.finish(request.keep_alive)

    def head(self, request: HttpRequest, status: int, headers: bytes, length: int | None) -> bytes:
        """A response head. ``length`` ``None`` means chunked, or until close for HTTP/1.0."""
        self.edge.count_response(status)
        request.keep_alive = request.keep_alive and not self.edge.draining
        if length is not None:
            framing = b"content-length: %d\r\n" % length
        elif request.chunked_ok:
            framing = b"transfer-encoding: chunked\r\n"
        else:
            framing, request.keep_alive = b"", False
        close = b"" if request.keep_alive else b"connection: close\r\n"
        if request.keep_alive and not request.chunked_ok:
            close = b"connection: keep-alive\r\n"
        return b"HTTP/1.1 %d %b\r\nserver: tokenmill\r\n%b%b%b\r\n" % (
            status,
            PHRASES.get(status, b"Status"),
            headers,
            framing,
            close,
        )

    def finish(self, keep_alive: bool) -> None:
        """The current answer is complete."""
        self.responder = None
        self.busy = False
        self.edge.buffered -= self._answering
        self._answering = 0
        self.since = self.loop.time()
        if not keep_alive or self.edge.draining:
            self.close()
        elif self.queue:
            self.loop.call_soon(self._next)

    def close(self) -> None:
        """Close after what is written has gone out."""
        self._refused = True
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Close at once, so that the client sees that the answer is not whole."""
        self._refused = True
        if self.transport is not None:
            self.transport.abort()

    def refuse(self, error: ApiError, *, linger: bool = False) -> None:
        """Answer what is wrong with the bytes themselves, and close: what follows cannot be trusted.

        ``linger``: the rest of a body is still under way. To close at once would reset the connection, and
        most clients would see that and not the answer.
        """
        if self._refused:
            return
        self._refused = True
        self.release()
        if not self.busy:
            self.edge.count_response(error.status)
            body = error.body
            self.write(
                b"HTTP/1.1 %d %b\r\nserver: tokenmill\r\ncontent-type: application/json\r\n%b%b"
                b"content-length: %d\r\nconnection: close\r\n\r\n%b"
                % (
                    error.status,
                    PHRASES[error.status],
                    error.headers,
                    self.refusal_headers(),
                    len(body),
                    body,
                )
            )
            if linger:
                self._lingers, self.since = True, self.loop.time()
                return
        if self.transport is not None:
            self.transport.close()

    def refusal_headers(self) -> bytes:
        """More header lines for what ``_refuse`` answers."""
        return b""

    def failed(self, error: BaseException | None) -> None:
        """A mistake of ours: report it, and close this connection only."""
        self.loop.call_exception_handler({"message": "a request could not be read", "exception": error})
        self.abort()

    def sweep(self, now: float) -> None:
        """Enforce the time limits. Called every second."""
        options = self.edge.options
        waited = now - self.since
        if self.stalled:
            if waited > options.stalled_s:
                self.abort()
        elif self._lingers:
            if waited > LINGER_S:
                self.abort()
        elif self.busy or self._refused:
            return
        elif self._state == "idle":
            if waited > options.idle_s or self.edge.draining:
                self.close()
        elif waited > (options.head_s if self._state == "head" else options.body_s):
            self.refuse(ApiError(408, None, "Your request took too long to arrive."))
