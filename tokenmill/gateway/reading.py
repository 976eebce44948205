"""Reads the requests of one client connection: HTTP/1.1, a head that came before by its bytes, else parsed.

Requests that HTTP parsers could read in two ways are refused. What is read waits in ``queue``; who answers,
and when, is ``client``'s.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import Protocol
from urllib.parse import unquote

import httptools

from tokenmill.gateway.errors import ApiError, bad_request
from tokenmill.gateway.heads import Familiar
from tokenmill.gateway.message import HttpRequest, RequestHead, ambiguity
from tokenmill.gateway.options import Options

ABSOLUTE = re.compile(rb"^https?://[^/?]*/?", re.IGNORECASE)


class ReadingEdge(Protocol):
    """What reading needs of the gateway around it."""

    options: Options
    buffered: int

    def known(self, headers: dict[bytes, bytes]) -> bool:
        """Whether these headers identify a key, so that a large body may be read."""


class Reading(asyncio.Protocol):
    """The reading half of a client's connection. ``on_*`` are httptools' callbacks."""

    def __init__(self, edge: ReadingEdge, loop: asyncio.AbstractEventLoop, clock: Callable[[], int]) -> None:
        self.edge = edge
        self.loop = loop
        self.clock = clock
        self.busy = False  # a request is being answered
        self.queue: deque[HttpRequest] = deque()
        self.since = loop.time()  # of the state it is in: idle, in headers, in body, stalled
        self._refused = False
        self._lingers = False  # refused, and reads on until the client has sent all
        self._parser = httptools.HttpRequestParser(self)
        self._familiar: Familiar[RequestHead] = Familiar()
        self._body: list[bytes] = []
        self._headers: list[tuple[bytes, bytes]] = []
        self._head: RequestHead | None = None
        self._length = 0
        self._begin()

    # -- what the other half does
    def write(self, data: bytes) -> None:
        """Send bytes, unless the client has gone."""
        raise NotImplementedError

    def close(self) -> None:
        """Close after what is written has gone out."""
        raise NotImplementedError

    def refuse(self, error: ApiError, *, linger: bool = False) -> None:
        """Answer what is wrong with the bytes themselves, and close."""
        raise NotImplementedError

    def failed(self, error: BaseException | None) -> None:
        """A mistake of ours: report it, and close this connection only."""
        raise NotImplementedError

    # -- bytes
    def read(self, data: bytes) -> None:
        """Take bytes as they come; whole requests go to ``queue``."""
        if self._state == "body":
            # A body may pause, but must arrive with a kilobyte a second on the whole.
            self.since = min(self.loop.time(), self.since + len(data) / 1024)
        elif self._state == "idle" and self._raw == 0:
            data = self._recognise(data)
            if not data:
                return
        if self._due >= 0:
            data = self._body_of_known(data)
        if data:
            self._parse(data)

    def _recognise(self, data: bytes) -> bytes:
        """Where ``data`` begins with the head that came last, take that as read, and the body too if that is
        all of the rest; returns what is to be read."""
        edge = self.edge
        head, length, start = self._familiar.recognise(data, edge.options.anonymous_body_bytes)
        if head is None:
            return data
        if start + length == len(data) and edge.buffered + length <= edge.options.buffered_bytes:
            edge.buffered += length
            self._arrived(head, data[start:])
            return b""
        self._begin()
        self._head, self._target, self._headers = head, head.target, head.headers
        self._state, self._due, self._limit = "body", length, length
        if not self.busy:
            self.since = self.loop.time()
        return data[start:]

    def _body_of_known(self, data: bytes) -> bytes:
        """Take what belongs to the body whose head was recognised; returns what follows it."""
        due = self._due
        body = data if len(data) <= due else data[:due]
        self._due = due - len(body)
        if body:
            self.on_body(body)
        if self._refused:
            return b""
        if self._due == 0:
            self._due = -1
            self._complete()
        return data[due:]

    def _parse(self, data: bytes) -> None:
        self._raw += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.refuse(bad_request("Protocol upgrades are not supported.", code=None))
        except httptools.HttpParserCallbackError as error:
            self.failed(error.__context__)
        except httptools.HttpParserError as error:
            self.refuse(bad_request(f"Your request is not valid HTTP/1.1: {error}.", code=None))
        else:
            self._check_size()

    def _check_size(self) -> None:
        options = self.edge.options
        if self._state != "body" and self._raw > options.head_bytes:
            self.refuse(ApiError(431, None, f"Request headers exceed {options.head_bytes} bytes."))
        elif self._raw > 2 * options.body_bytes:
            self.refuse(ApiError(413, None, f"The request exceeds {options.body_bytes} bytes."))

    def discard(self, data: bytes) -> None:
        """Look in the rest of a refused request for its end only."""
        if self._due >= 0:
            self._due = max(0, self._due - len(data))
            if self._due == 0:
                self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def release(self) -> None:
        """What was read of a body that is not whole is no longer held."""
        self.edge.buffered -= self._length
        self._length = 0
        self._body = []

    # -- httptools
    def _begin(self) -> None:
        self._state = "idle"
        self._raw = 0
        self._target = b""
        self._headers = []
        self._body = []
        self._length = 0
        self._limit = 0
        self._head = None
        self._due = -1  # bytes still to come of the body whose head was recognised

    def on_message_begin(self) -> None:
        raw = self._raw
        self._begin()
        self._raw = raw
        self._state = "head"
        if not self.busy:
            self.since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._state == "head":  # later ones are trailers, which nobody asked for
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        options = self.edge.options
        size = len(self._target) + sum(len(n) + len(v) + 4 for n, v in self._headers)
        if size > options.head_bytes:
            self.refuse(ApiError(431, None, f"Request headers exceed {options.head_bytes} bytes."))
            return
        self._state, self._raw = "body", 0
        if not self.busy:
            self.since = self.loop.time()
        problem = ambiguity(self._headers)
        if problem:
            self.refuse(bad_request(problem, code=None))
            return
        names = dict(self._headers)
        length = int(names.get(b"content-length", b"0"))
        large = length > options.anonymous_body_bytes or b"transfer-encoding" in names
        known = large and self.edge.known(names)
        self._limit = options.body_bytes if known else options.anonymous_body_bytes
        if length > self._limit:
            self.refuse(ApiError(413, None, f"The body exceeds {self._limit} bytes."), linger=True)
        elif names.get(b"expect", b"").lower() == b"100-continue" and not self.busy:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        if self._refused:
            return
        self._length += len(data)
        self.edge.buffered += len(data)
        self._body.append(data)
        if self._length > self._limit:
            self.refuse(ApiError(413, None, f"The body exceeds {self._limit} bytes."), linger=True)
        elif self.edge.buffered > self.edge.options.buffered_bytes:
            error = ApiError(503, "overloaded", "Too many request bodies are in memory.", retry_us=1_000_000)
            self.refuse(error, linger=True)

    def on_message_complete(self) -> None:
        if self._refused:
            if self._lingers:
                self.close()
            return
        parser, target = self._parser, self._target
        if target[:1] != b"/":  # a proxy's form, http://host/path, which names this server once more
            target = ABSOLUTE.sub(b"/", target)
        path = target.partition(b"?")[0].decode("latin-1")
        headers = [(name, value) for name, value in self._headers if name != b"content-length"]
        head = self._head = RequestHead(
            method=parser.get_method().decode("latin-1"),
            path=unquote(path) if "%" in path else path,
            target=target,
            headers=headers,
            fields=dict(reversed(headers)),
            keep_alive=parser.should_keep_alive(),
            chunked_ok=parser.get_http_version() == "1.1",
        )
        if head.keep_alive and b"expect" not in head.fields:
            self._familiar.remember(self._length, head)
        else:
            self._familiar.pass_over()
        self._complete()

    def _complete(self) -> None:
        head = self._head
        assert head is not None, "a request is complete after its head"
        self._arrived(head, self._body[0] if len(self._body) == 1 else b"".join(self._body))
        self._body = []  # its bytes stay counted until the request has been answered
        self._length = 0
        self._state, self._raw = "idle", 0

    def _arrived(self, head: RequestHead, body: bytes) -> None:
        self.queue.append(
            HttpRequest(
                head,
                head.path,
                head.target,
                body,
                head.keep_alive,
                head.chunked_ok,
                arrived_s=self.loop.time(),
                arrived_us=self.clock(),
            )
        )
