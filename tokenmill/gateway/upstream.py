"""Connections to engines, peers and the controller: pooled, parsed by httptools, relayed by callbacks.

A connection carries one request at a time. What comes back is handed on as a head, payload pieces with all
transfer framing removed, and an end; a connection that dies says so once. Nothing is retried here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol, cast

import httptools

from tokenmill.domain.value import value
from tokenmill.gateway.heads import Familiar

DEFAULT_KEEP_S = 4.0  # uvicorn closes idle connections after 5 s; llama.cpp says 5 s in its header
HEAD_BYTES = 64 * 1024


class Receiver(Protocol):
    """Who is told what an upstream answers."""

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The final status line and headers (names in lower case)."""

    def on_payload(self, data: bytes) -> None:
        """A piece of the body, without chunk framing."""

    def on_end(self) -> None:
        """The body is complete. The connection has left; do not touch it any more."""

    def on_lost(self, reason: str, *, untouched: bool) -> None:
        """The connection broke. ``untouched``: it was reused, and closed before a byte of an answer came."""


@value
class Address:
    """Where an upstream listens: ``host``/``port``, or ``path`` of a unix socket."""

    host: str = ""
    port: int = 0
    tls: bool = False
    path: str = ""

    @property
    def authority(self) -> bytes:
        if self.path:
            return b"localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}".encode()


@lru_cache(maxsize=4096)
def address_of(text: str, tls: bool = False) -> Address:
    """Parse ``host:port``; IPv6 hosts may be in brackets. A bad port raises ``ValueError``."""
    host, _, port = text.rpartition(":")
    return Address(host.strip("[]"), int(port), tls)


class Home(Protocol):
    """Where connections come from and go back to."""

    loop: asyncio.AbstractEventLoop

    def give(self, upstream: Upstream) -> None:
        """Take a connection back that has finished its answer."""

    def forget(self, upstream: Upstream) -> None:
        """A connection is gone."""


class Upstream(asyncio.Protocol):
    """One connection. Callbacks named ``on_*`` without a receiver's meaning are httptools'."""

    def __init__(self, pool: Home, address: Address) -> None:
        self.pool = pool
        self.address = address
        self.authority = address.authority  # of the head's ``host``
        self.transport: asyncio.Transport | None = None
        self.receiver: Receiver | None = None
        self.used = 0  # requests begun
        self.idle_since = 0.0
        self.keep_s = DEFAULT_KEEP_S
        self.shortcut: Callable[[bytes], int] | None = None
        self._heard_s = 0.0
        self._news = False  # bytes came since ``heard_s`` was asked
        self._kept = b""  # the start of a chunk, when what came before it took the shortcut
        self._between = False  # the last bytes ended a chunk
        self._aligned = False  # and nothing of the next has come: the shortcut may be taken
        self._answered = False  # any byte of the current answer came
        self._head_bytes = 0
        self._headers: list[tuple[bytes, bytes]] | None = []
        self._sized = False
        self._length = -1  # of the body, where it is stated
        self._said: list[tuple[bytes, bytes]] = []  # the answer's headers, but for that
        self._closing = False
        self.ended = False  # all of the current answer has come
        self._extra = False  # more came after the answer's end
        self._pieces: list[bytes] = []  # of the body, in the bytes that are being parsed
        self._familiar: Familiar[list[tuple[bytes, bytes]]] = Familiar()
        self._parser = httptools.HttpResponseParser(self)

    # -- asyncio
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._news = True
        if self._aligned and self.shortcut is not None:
            if self._kept:
                data, self._kept = self._kept + data, b""
            taken = self.shortcut(data)
            if taken == len(data):
                return
            if taken:
                data = data[taken:]
                if _is_partial(data):
                    self._kept = data
                    return
        elif not self._answered and self._recognised(data):
            return
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        if self.receiver is None:
            self.abort()  # an answer that nobody asked for: never let it meet the next request
            return
        self._answered = True
        if self._headers is not None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
            broken = ""
        except httptools.HttpParserCallbackError as error:
            self._failed(error.__context__)
            return
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            broken = f"it does not speak HTTP: {error}"
        if self._pieces:
            self._hand_on()
        if broken:
            self._lose(broken)
            return
        if self._headers is not None and self._head_bytes > HEAD_BYTES:
            self._lose(f"its headers are longer than {HEAD_BYTES} bytes")
        elif self.ended:
            self._finish()
        else:
            # A size line that ends here was told by ``on_chunk_header``, so this is the end of a chunk.
            self._aligned = self._between and data.endswith(b"\r\n")

    def _recognised(self, data: bytes) -> bool:
        """Take a whole answer that came at once, with the head that the last one had; nothing is parsed."""
        receiver = self.receiver
        headers, length, start = self._familiar.recognise(data, len(data))
        if receiver is None or headers is None or start + length != len(data):
            return False
        self._answered, self._headers = True, None
        try:
            receiver.on_head(200, [*headers, (b"content-length", b"%d" % length)])
            if self.receiver is receiver:
                receiver.on_payload(data[start:])
        except Exception as error:  # noqa: BLE001 - a mistake of ours costs this answer and no other
            self._failed(error)
            return True
        if self.receiver is receiver:
            self._finish()
        return True

    def _hand_on(self) -> None:
        """Give the receiver, in one piece, all of the body that came at once: a stream that is read late
        has hundreds of chunks in one read, and each handed on by itself would cost as much as all."""
        pieces, self._pieces = self._pieces, []
        if self.receiver is None:
            return
        try:
            self.receiver.on_payload(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        except Exception as error:  # noqa: BLE001 - a mistake of ours costs this answer and no other
            self._failed(error)

    def _failed(self, error: BaseException | None) -> None:
        message = "a receiver failed on an upstream's answer"
        self.pool.loop.call_exception_handler({"message": message, "exception": error})
        self._lose("the gateway failed on its answer")

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self.pool.forget(self)
        receiver = self.receiver
        if receiver is None:
            return
        if exc is None and self._headers is None and not self._sized:
            self.ended = True  # a body without length or chunks ends with the connection
            self._finish()
            return
        self._lose("it closed the connection" if exc is None else f"the connection broke: {exc}")

    def pause_writing(self) -> None:
        """Request bodies are in memory before they are sent, so there is no producer to slow down."""

    def resume_writing(self) -> None:
        """See ``pause_writing``."""

    # -- httptools
    def on_message_begin(self) -> None:
        if self.ended:
            self._extra = self._closing = True
            return
        self._headers = []
        self._sized = False
        self.ended = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._headers is not None and not self._extra:  # else it is a trailer, which is dropped
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._extra:
            return
        headers, status = self._headers, self._parser.get_status_code()
        self._headers = None
        receiver = self.receiver
        if receiver is None or headers is None or status < 200:
            return
        self._length, self._said = -1, []
        for name, said in headers:
            if name == b"content-length":
                self._sized, self._length = True, int(said)
                continue
            self._said.append((name, said))
            if name == b"transfer-encoding":
                self._sized = True
            elif name == b"keep-alive":
                self.keep_s = _keep_of(said)
        self._sized = self._sized or status in (204, 304)
        receiver.on_head(status, headers)

    def on_body(self, data: bytes) -> None:
        if not self._extra:
            self._pieces.append(data)

    def on_chunk_header(self) -> None:
        self._between = False

    def on_chunk_complete(self) -> None:
        self._between = True

    def on_message_complete(self) -> None:
        if not self._extra and self._parser.get_status_code() >= 200:
            self.ended = True
            # Unsized bodies are complete for llhttp only at the end of the connection.
            if not self._parser.should_keep_alive():
                self._closing = True
            elif self._parser.get_status_code() == 200 and self._length >= 0:
                self._familiar.remember(self._length, self._said)
            else:
                self._familiar.pass_over()

    # -- ours
    def begin(self, receiver: Receiver, head: bytes, body: bytes) -> None:
        """Send one request; ``receiver`` hears the answer."""
        transport = self.transport
        assert transport is not None, "begin is called after connection_made"
        self.receiver = receiver
        self.used += 1
        self._heard_s = self.pool.loop.time()
        self.shortcut = None
        self._kept = b""
        self._between = self._aligned = False
        self._answered = self.ended = False
        self._headers = []
        self._head_bytes = 0
        self._pieces = []
        if self._closing or transport.is_closing():
            self.pool.loop.call_soon(self._lose, "it closed the connection at once")
            return
        transport.resume_reading()  # the answer before may have ended while its client was slow
        transport.write(head + body if len(body) < 65536 else head)
        if len(body) >= 65536:
            transport.write(body)

    def heard_s(self, now: float) -> float:
        """When bytes last came, by the loop's clock, as exactly as this is asked."""
        if self._news:
            self._news, self._heard_s = False, now
        return self._heard_s

    def pause(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def abort(self) -> None:
        """Close at once and tell nobody. The engine sees the disconnect and stops generating."""
        self.receiver = self.shortcut = None
        self._closing = True
        if self.transport is not None:
            self.transport.abort()

    @property
    def usable(self) -> bool:
        transport = self.transport
        return not self._closing and transport is not None and not transport.is_closing()

    def _finish(self) -> None:
        receiver, self.receiver, self.shortcut = self.receiver, None, None
        if self.usable:
            self.pool.give(self)
        elif self.transport is not None:
            self.transport.close()
        if receiver is not None:
            receiver.on_end()

    def _lose(self, reason: str) -> None:
        receiver = self.receiver
        untouched = self.used > 1 and not self._answered
        self.abort()
        if receiver is not None:
            receiver.on_lost(reason, untouched=untouched)


def _is_partial(data: bytes) -> bool:
    """Whether ``data``, from a chunk's start on, is part of a chunk of a usual size and not all of it."""
    end = data.find(b"\r\n", 0, 8)
    if end < 0:
        return len(data) < 6
    digits = data[:end]
    if not digits.isalnum() or end > 4:
        return False
    try:
        size = int(digits, 16)
    except ValueError:
        return False
    return size > 0 and len(data) < end + size + 4


def _keep_of(value: bytes) -> float:
    """How long an idle connection may be reused, from ``Keep-Alive: timeout=N``: one second less."""
    for part in value.split(b","):
        name, _, number = part.strip().partition(b"=")
        if name.lower() == b"timeout" and number.isdigit():
            return max(0.0, min(60.0, int(number[:6]) - 1.0))
    return DEFAULT_KEEP_S
