"""The answer of one attempt on its way from the engine to the client.

Nothing goes to the client before the engine's first event or, for an answer that is no stream, before all
of it up to ``WHOLE_BYTES``; until then a dying engine can be replaced. Before the last bytes go out the owner
has settled. Bytes inside events are never touched, but for tool calls that clients cannot read (``calls``).
"""

from __future__ import annotations

from typing import Protocol

from tokenmill.control.requests import TokenUsage
from tokenmill.gateway.body import INPUT
from tokenmill.gateway.errors import ApiError, from_engine, from_engine_object
from tokenmill.gateway.forced import ForcedCall
from tokenmill.gateway.message import HttpRequest
from tokenmill.gateway.meter import (
    EDGE_BYTES,
    BrokenStreamError,
    EventStream,
    estimate_output,
    find_id,
    find_usage,
)
from tokenmill.gateway.outlet import Outlet
from tokenmill.gateway.pattern import Pattern
from tokenmill.gateway.upstream import Upstream

WHOLE_BYTES = 1024 * 1024
LOST_STATUS = frozenset((502, 503, 504))
NOTHING = TokenUsage()


class Owner(Protocol):
    """The exchange that a relay works for."""

    connection: Outlet
    http: HttpRequest
    endpoint: str
    settled: bool
    settling: bool
    hide_usage: bool
    hide_running: bool
    context_tokens: int
    response_id: str

    def answer_headers(self) -> bytes:
        """Header lines that every answer carries."""

    def first_byte(self) -> None:
        """The answer begins: nothing is retried from here on."""

    def first_token(self) -> None:
        """The first output reached us."""

    def complete(self, status: int, usage: TokenUsage) -> None:
        """The engine answered to the end: settle."""

    def reject(self, error: ApiError) -> None:
        """The engine answered with an error: settle and tell the client."""

    def lost(self, reason: str) -> None:
        """The engine failed."""

    def again(self) -> None:
        """A reused connection turned out to be closed: send once more on a new one."""

    def ended(self) -> None:
        """The client has all that it will get."""


class Relay:
    """Receiver of one engine's answer."""

    def __init__(self, owner: Owner, upstream: Upstream, forced: ForcedCall | None = None) -> None:
        self.owner = owner
        self._forced = forced
        self.upstream: Upstream | None = upstream
        self.started = False  # the client has had bytes
        self.stream: EventStream | None = None
        self._status = 0
        self._type = b"application/json"
        self._length: int | None = None
        self._parts: list[bytes] = []
        self._front = b""  # of a large answer that is passed on while it comes
        self._unsent = b""  # the head, or the last events, until what follows them at once
        self._size = 0

    # -- from the engine
    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._status = status
        fields = dict(headers)
        self._type = fields.get(b"content-type", b"application/json")
        length = fields.get(b"content-length", b"")
        self._length = int(length) if length.isdigit() else None
        if status in LOST_STATUS:
            self.drop()
            self.owner.lost(f"it answered {status}")
        elif status == 200 and self._type.startswith(b"text/event-stream"):
            self.stream = EventStream(self.owner.hide_usage, self.owner.hide_running, self._forced)
            self._length = None  # an event may be taken out, so the engine's length is not ours
            chunked = fields.get(b"transfer-encoding", b"").lower() == b"chunked"
            as_it_comes = chunked and self.owner.http.chunked_ok and self._forced is None
            if as_it_comes and self.upstream is not None:
                self.stream.pattern = Pattern()
                self.upstream.shortcut = self._shortcut

    def on_payload(self, data: bytes) -> None:
        stream = self.stream
        if stream is None:
            self._on_piece(data)
            return
        if not self.owner.response_id:
            self.owner.response_id = find_id(data)
        none_before = stream.deltas == 0
        try:
            out = stream.feed(data)
        except BrokenStreamError as error:
            self.drop()
            self.owner.lost(str(error))
            return
        if none_before and stream.deltas:
            self.owner.first_token()
        if out or stream.error is not None:
            self._pass_on(stream, out)

    def _shortcut(self, data: bytes) -> int:
        """Pass whole chunks of plain output on as the engine framed them; see ``EventStream.skim``."""
        if not self.started or self.stream is None:
            return 0
        taken = self.stream.skim(data)
        if taken:
            self.owner.connection.write(data if taken == len(data) else data[:taken])
        return taken

    def on_end(self) -> None:
        self.upstream = None
        stream = self.stream
        if stream is None:
            self._finish_whole()
            return
        if not self.owner.settled:
            rest = stream.rest()
            if rest or stream.error is not None:
                self._pass_on(stream, rest)
        owner = self.owner
        if owner.settled:
            self.end()
        elif owner.settling:
            return
        elif stream.finished or stream.usage is not None:
            self._begin_stream()
            owner.complete(self._status, stream.counted())
            self.end()
        else:
            owner.lost("it ended its stream without an end")

    def on_lost(self, reason: str, *, untouched: bool) -> None:
        self.upstream = None
        owner = self.owner
        if owner.settled:
            if self.stream is not None and self.stream.done:
                self.end()  # the client has all that there is
        elif untouched:
            owner.again()
        elif not owner.settling:
            owner.lost(reason)

    # -- from the owner
    def counted(self) -> TokenUsage:
        """What is known of an answer that was cut."""
        return self.stream.counted() if self.stream is not None else NOTHING

    def drop(self) -> None:
        """Abort the engine's connection: it stops generating."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abort()

    def break_off(self, error: ApiError) -> None:
        """End an answer that has begun: an error event in a stream, a cut connection for anything else."""
        self.drop()
        if self.stream is None:
            self.owner.connection.abort()
            self.owner.ended()
            return
        self._unsent += self._framed(error.event)
        self.owner.http.keep_alive = False
        self.end()

    def end(self) -> None:
        """The answer is complete."""
        if self.owner.http.chunked_ok and self._length is None:
            self._unsent += b"0\r\n\r\n"
        if self._unsent:
            self._write(b"")
        self.owner.connection.finish(self.owner.http.keep_alive)
        self.owner.ended()

    # -- to the client
    def _pass_on(self, stream: EventStream, out: bytes) -> None:
        owner = self.owner
        if stream.error is not None and not self.started:
            # Nothing was sent, so the client gets a plain error with its status, never one inside a 200.
            self.drop()
            owner.reject(_stream_error(stream, owner.context_tokens, INPUT[owner.endpoint]))
            return
        if out and not self.started:
            self._begin_stream()
            if stream.done and (last := out.rfind(b"\n\n", 0, -2) + 2) > 1:
                # All of it came at once: only the end has to wait until it is settled.
                self._write(self._framed(out[:last]))
                out = out[last:]
        if stream.done and not owner.settled:
            owner.complete(self._status, stream.counted())
        if out and stream.done and self.upstream is not None and self.upstream.ended:
            self._unsent += self._framed(out)  # ``on_end`` comes next
        elif out:
            self._write(self._framed(out))
        if stream.error is not None:
            self.drop()
            owner.lost("it sent an error inside its stream")

    def _begin_stream(self) -> None:
        if not self.started:
            charset = b"" if b"charset" in self._type else b"; charset=utf-8"
            self._begin(self._type + charset)

    def _begin(self, content_type: bytes) -> None:
        self.started = True
        owner = self.owner
        owner.first_byte()
        headers = owner.answer_headers()
        headers += b"content-type: %b\r\ncache-control: no-cache\r\n" % content_type
        self._unsent = owner.connection.head(owner.http, self._status, headers, self._length)

    def _write(self, data: bytes) -> None:
        if self._unsent:
            data, self._unsent = self._unsent + data, b""
        self.owner.connection.write(data)

    def _framed(self, data: bytes) -> bytes:
        if self.owner.http.chunked_ok and self._length is None:
            return b"%x\r\n%b\r\n" % (len(data), data)
        return data

    def _on_piece(self, data: bytes) -> None:
        """A piece of an answer that is no stream; a large one is passed on, one piece late."""
        self._parts.append(data)
        self._size += len(data)
        if self._size <= WHOLE_BYTES:
            return
        if self._status != 200 or self._forced is not None:
            self.drop()
            self.owner.lost("its error message, or its call of a tool, is too long")
            return
        if not self.started:
            self._front = b"".join(self._parts)[:EDGE_BYTES]
            self._begin(self._type)
        while len(self._parts) > 1:
            self._write(self._framed(self._parts.pop(0)))

    def _finish_whole(self) -> None:
        body = b"".join(self._parts)
        owner = self.owner
        if owner.settled or owner.settling:
            return
        if not 200 <= self._status < 300:
            owner.reject(from_engine(self._status, body, owner.context_tokens, INPUT[owner.endpoint]))
            return
        if self._forced is not None:
            body = self._forced.whole(body)
        if not owner.response_id:
            owner.response_id = find_id(body) or find_id(self._front)
        usage = find_usage(body) or find_usage(self._front) or estimate_output(body)
        if self.started:
            owner.complete(self._status, usage)
            self._unsent += self._framed(body)
            self.end()
            return
        owner.complete(self._status, usage)
        owner.connection.respond(
            owner.http, self._status, body, headers=owner.answer_headers(), content_type=self._type
        )
        owner.ended()


def _stream_error(stream: EventStream, context_tokens: int, field: str) -> ApiError:
    found = stream.error.get("error") if isinstance(stream.error, dict) else None
    code = found.get("code") if isinstance(found, dict) else None
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    return from_engine_object(status, stream.error, context_tokens, field)
