"""Relays console and admin requests to the controller's unix socket.

When the controller is away these answer 503 at once, and model requests go on. The mark that tells the
controller that a request came through this port is taken from clients before it is set.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from tokenmill.gateway.client import ClientConnection
from tokenmill.gateway.edge import Gateway
from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.message import HttpRequest
from tokenmill.gateway.upstream import Address, Upstream

MARK = b"x-tokenmill-forwarded"
_DROPPED = frozenset(
    (
        MARK,
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"content-length",
        b"te",
        b"trailer",
        b"upgrade",
        b"expect",
        b"x-forwarded-for",
        b"x-forwarded-proto",
    )
)
_AWAY = (
    "The controller is not running, so the console and the admin API are away. Models are still served. "
    "Start it again with `tokenmill up`."
)


class Forwarding:
    """One relayed request: responder to the client, receiver of the controller's answer."""

    def __init__(
        self, gateway: Gateway, connection: ClientConnection, http: HttpRequest, to: Path | None = None
    ) -> None:
        self.to = Address(path=str(to or gateway.options.control))
        self.gateway = gateway
        self.connection = connection
        self.http = http
        self.upstream: Upstream | None = None
        self._gone = False
        self._fresh = False
        self._started = False
        self._status = 0
        self._chunked = False
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Send it on, over an idle connection or a new one."""
        upstream = None if self._fresh else self.gateway.pool.take(self.to)
        if upstream is not None:
            self._forward(upstream)
        else:
            self._task = self.gateway.spawn(self._connect())

    async def _connect(self) -> None:
        try:
            upstream = await self.gateway.pool.connect(self.to)
        except OSError:
            if not self._gone:
                self.away()
            return
        if self._gone:
            upstream.abort()
        else:
            self._forward(upstream)

    def _forward(self, upstream: Upstream) -> None:
        http = self.http
        lines = b"".join(b"%b: %b\r\n" % (n, v) for n, v in http.head.headers if n not in _DROPPED)
        scheme = b"https" if self.gateway.options.tls_cert else b"http"
        # The upstream parser would wait for the body that HEAD does not have, so the controller sees a GET.
        method = "GET" if http.method == "HEAD" else http.method
        head = b"%b %b HTTP/1.1\r\n%b%b: 1\r\nx-forwarded-for: %b\r\nx-forwarded-proto: %b\r\n" % (
            method.encode(),
            http.target,
            lines,
            MARK,
            self.connection.peer.encode(),
            scheme,
        )
        self.upstream = upstream
        upstream.begin(self, head + b"content-length: %d\r\n\r\n" % len(http.body), http.body)

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._started = True
        length = dict(headers).get(b"content-length", b"")
        if status in (204, 304):
            length = b"0"
        size = int(length) if length.isdigit() else None
        self._chunked = size is None and self.http.chunked_ok
        lines = b"".join(
            b"%b: %b\r\n" % (n, v)
            for n, v in headers
            if n not in _DROPPED and n != b"server" and b"\n" not in v and b"\r" not in v
        )
        self.connection.write(self.connection.head(self.http, status, lines, size))

    def on_payload(self, data: bytes) -> None:
        if self.http.method != "HEAD":
            self.connection.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def on_end(self) -> None:
        self.upstream = None
        if self._chunked and self.http.method != "HEAD":
            self.connection.write(b"0\r\n\r\n")
        self.connection.finish(self.http.keep_alive)

    def on_lost(self, reason: str, *, untouched: bool) -> None:
        self.upstream = None
        if untouched and not self._fresh:
            self._fresh = True
            self.begin()
        elif self._started:
            self.connection.abort()
        else:
            self.away()

    def client_gone(self) -> None:
        self._gone = True
        if self.upstream is not None:
            self.upstream.abort()
            self.upstream = None

    def pause(self) -> None:
        if self.upstream is not None:
            self.upstream.pause()

    def resume(self) -> None:
        if self.upstream is not None:
            self.upstream.resume()

    def away(self) -> None:
        """Nobody listens there."""
        if b"text/html" in self.http.header(b"accept"):
            page = (
                "<!doctype html><html lang=en><meta charset=utf-8><title>Tokenmill: controller away</title>"
                "<meta http-equiv=refresh content=5><body style='font:16px sans-serif;margin:4em'>"
                f"<h1>The controller is away</h1><p>{_AWAY}</p></body></html>"
            )
            self.connection.respond(
                self.http,
                503,
                page.encode(),
                headers=b"retry-after: 5\r\n",
                content_type=b"text/html; charset=utf-8",
            )
            return
        error = ApiError(503, "controller_away", _AWAY, retry_us=5_000_000)
        self.connection.respond(self.http, 503, error.body, headers=error.headers)
