"""Stands between an exchange and its client: translates the answer, keeps it to be given again, or lets it be
captured.

The exchange works for an inner request whose body has no framing; the client's framing is added here. A
client with an ``Idempotency-Key`` that goes away is not the end of its request: the answer is completed and
kept for when it asks again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from tokenmill.control.requests import TokenUsage
from tokenmill.gateway.capturing import Keeper, Served
from tokenmill.gateway.client import ClientConnection, Responder
from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.idempotency import Entry, Replays
from tokenmill.gateway.message import HttpRequest
from tokenmill.gateway.outlet import Surface

COLLECTED_BYTES = 64 * 1024 * 1024
EVENTS = b"text/event-stream; charset=utf-8"


class Dialect(Surface, Protocol):
    """Reads another wire format and turns the engine's answer into it. One object per request.

    ``billed`` is set when the request has been settled, before what comes last is turned.
    """

    billed: TokenUsage

    def whole(self, body: bytes) -> bytes:
        """An answer that is no stream. Raises ``ApiError`` when the engine's cannot be understood."""

    def error(self, status: int, body: bytes) -> bytes:
        """An OpenAI error object in this format."""

    def feed(self, events: bytes) -> bytes:
        """Whole server-sent events of the engine as events of this format."""

    def end(self) -> bytes:
        """What still belongs to the stream when the engine's has ended."""


class Work(Responder, Served, Protocol):
    """The exchange behind a bridge."""

    def begin(self) -> bool:
        """False when the client has its answer already."""


class Bridge:
    """Outlet of an exchange and responder of a connection. ``inner`` is the request to work for."""

    def __init__(
        self,
        connection: ClientConnection,
        http: HttpRequest,
        replays: Replays,
        *,
        dialect: Dialect | None = None,
        entry: Entry | None = None,
        keeper: Keeper | None = None,
        headers: bytes = b"",
    ) -> None:
        self.inner = replace(http, keep_alive=True, chunked_ok=False)
        http.body = b""
        self._connection: ClientConnection | None = connection
        self._http = http
        self._replays = replays
        self._dialect = dialect
        self._entry = entry
        self._keeper = keeper
        self._headers = headers
        self._work: Work | None = None
        self._status = 0
        self._type = b"application/json"
        self._head = b""
        self._streams = False
        self._begun = False
        self._collected: list[bytes] = []
        self._size = 0
        self._chunked = False

    def begin(self, work: Work) -> Responder | None:
        """Start the exchange; return who answers the client, or ``None`` when that has happened."""
        self._work = work
        if not work.begin():
            return None
        if self._keeper is not None and not self._keeper.wants(work.asked):
            self._keeper = None
        return self

    # -- from the connection
    def client_gone(self) -> None:
        self._heard_all()  # clients may leave at the last event of a stream, before the engine has ended it
        if self._entry is not None and self._entry.open:
            self._connection = None
            if self._work is not None:
                self._work.resume()  # nobody is slow any more
        elif self._work is not None:
            work, self._work = self._work, None
            work.client_gone()

    def pause(self) -> None:
        if self._work is not None:
            self._work.pause()

    def resume(self) -> None:
        if self._work is not None:
            self._work.resume()

    # -- from the exchange
    def respond(
        self,
        request: HttpRequest,
        status: int,
        body: bytes,
        *,
        headers: bytes = b"",
        content_type: bytes = b"application/json",
    ) -> None:
        if self._keeper is not None and status == 200:
            self._keeper.hear(body)
            self._heard_all()
        if self._dialect is not None:
            self._tell_bill()
            if status < 400:
                try:
                    body = self._dialect.whole(body)
                except ApiError as error:
                    status, body = error.status, self._dialect.error(error.status, error.body)
            else:
                body = self._dialect.error(status, body)
            content_type = b"application/json"
        if self._entry is not None:
            self._entry.status, self._entry.content_type = status, content_type
            self._entry.keep(body)
            self._end_entry(well=status < 500 and status not in (401, 403, 409, 429))
        if self._connection is not None:
            headers += self._headers
            self._http.keep_alive = self._http.keep_alive and request.keep_alive
            self._connection.respond(self._http, status, body, headers=headers, content_type=content_type)
        self._work = None  # the two would keep one another alive

    def head(self, request: HttpRequest, status: int, headers: bytes, length: int | None) -> bytes:
        self._status = status
        self._streams = b"content-type: text/event-stream" in headers
        self._head = headers
        if self._entry is not None:
            self._entry.status = status
            self._entry.content_type = EVENTS if self._streams else b"application/json"
        return b""

    def write(self, data: bytes) -> None:
        if not data:
            return
        if self._streams and self._keeper is not None:
            self._keeper.hear(data)
        if not self._streams:
            self._size += len(data)
            if self._size <= COLLECTED_BYTES:
                self._collected.append(data)
        elif self._dialect is None:
            self._put(data)
        else:
            self._tell_bill()
            try:
                self._put(self._dialect.feed(data))
            except ApiError as error:
                self._put(self._dialect.feed(error.event))

    def finish(self, keep_alive: bool) -> None:
        if not self._streams:
            body, self._collected = b"".join(self._collected), []
            headers = b"".join(
                line + b"\r\n"
                for line in self._head.split(b"\r\n")
                if line and not line.startswith((b"content-type:", b"cache-control:"))
            )
            if self._size > COLLECTED_BYTES:
                self.abort()
                return
            self.respond(self.inner, self._status, body, headers=headers)
            return
        if keep_alive:
            self._heard_all()
        if self._dialect is not None:
            self._tell_bill()
            self._put(self._dialect.end())
        # A stream that ends its connection has broken off; that is no answer to give again.
        self._end_entry(well=keep_alive)
        if self._connection is not None:
            if self._chunked:
                self._connection.write(b"0\r\n\r\n")
            self._connection.finish(keep_alive and self._http.keep_alive)
        self._work = None

    def abort(self) -> None:
        self._end_entry(well=False)
        if self._connection is not None:
            self._connection.abort()
        self._work = None

    def _heard_all(self) -> None:
        """Let the answer be captured, once, if it is settled: the client was given all of it."""
        if self._keeper is not None and self._work is not None and self._work.settlement is not None:
            self._keeper.end(self._work)
            self._keeper = None

    def _tell_bill(self) -> None:
        settled = self._work.settlement if self._work is not None else None
        if settled is not None and self._dialect is not None:
            self._dialect.billed = TokenUsage(
                settled.input_tokens, settled.cached_tokens, settled.output_tokens, settled.reasoning_tokens
            )

    def _put(self, data: bytes) -> None:
        if not data:
            return
        if self._entry is not None:
            self._entry.keep(data)
        connection = self._connection
        if connection is None:
            return
        head = b""
        if not self._begun:
            self._begun = True
            self._chunked = self._http.chunked_ok
            head = connection.head(self._http, self._status, self._head + self._headers, None)
        connection.write(head + (b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data))

    def _end_entry(self, *, well: bool) -> None:
        if self._entry is not None:
            self._replays.end(self._entry, well=well)


def replay(connection: ClientConnection, http: HttpRequest, entry: Entry) -> None:
    """Give a kept answer again, as it was."""
    headers = b"x-request-id: %b\r\nidempotent-replayed: true\r\n" % entry.request_id.encode()
    connection.respond(http, entry.status, entry.body, headers=headers, content_type=entry.content_type)
