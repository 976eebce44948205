"""Upstream framing: any split of an engine's bytes gives the same head, payload and end."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.gateway.pool import Pool
from tokenmill.gateway.upstream import Address, Upstream, address_of


class Heard:
    """Writes down what a receiver is told."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.payload = b""
        self.ends = 0
        self.lost: list[str] = []

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status, self.headers = status, dict(headers)

    def on_payload(self, data: bytes) -> None:
        self.payload += data

    def on_end(self) -> None:
        self.ends += 1

    def on_lost(self, reason: str, *, untouched: bool) -> None:
        self.lost.append(reason)


class Wire(asyncio.Transport):
    """Takes what is written; a transport that is open until it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Nobody listens."""

    def resume_reading(self) -> None:
        """It never stopped."""

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


def hear(pieces: list[bytes], *, eof: bool = False) -> tuple[Heard, Upstream]:
    loop = asyncio.new_event_loop()
    try:
        upstream = Upstream(Pool(loop, 1.0), Address("h", 1))
        upstream.connection_made(Wire())
        heard = Heard()
        upstream.begin(heard, b"", b"")
        for piece in pieces:
            upstream.data_received(piece)
        if eof:
            upstream.connection_lost(None)
        return heard, upstream
    finally:
        loop.close()


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a != b]


CUTS = st.lists(st.integers(0, 100_000), max_size=60)


@settings(max_examples=150, deadline=None)
@given(CUTS, st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.booleans())
def test_chunked_in_any_split(cuts: list[int], chunks: list[bytes], extension: bool) -> None:
    mark = b";x=y" if extension else b""
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(c), mark, c) for c in chunks) + b"0\r\nTrailer: t\r\n\r\n"
    sent = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n" + body
    heard, upstream = hear(cut(sent, cuts))
    assert (heard.status, heard.ends, heard.lost) == (200, 1, [])
    assert heard.payload == b"".join(chunks)
    assert heard.headers == {b"transfer-encoding": b"chunked", b"x-a": b"b"}
    assert upstream.usable


@settings(max_examples=100, deadline=None)
@given(CUTS, st.binary(max_size=2000), st.booleans())
def test_sized_and_unsized_in_any_split(cuts: list[int], body: bytes, sized: bool) -> None:
    head = b"content-length: %d\r\n" % len(body) if sized else b"connection: close\r\n"
    sent = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n" + head + b"\r\n" + body
    heard, _ = hear(cut(sent, cuts), eof=not sized)
    assert (heard.status, heard.payload, heard.ends, heard.lost) == (200, body, 1, [])


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"",
    ],
)
def test_a_cut_answer_is_lost_once(sent: bytes) -> None:
    heard, upstream = hear([sent] if sent else [], eof=True)
    assert heard.ends == 0
    assert len(heard.lost) == 1
    assert not upstream.usable


@pytest.mark.parametrize(
    "sent",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n+5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000,
    ],
)
def test_what_is_no_answer_is_lost(sent: bytes) -> None:
    heard, upstream = hear([sent])
    assert heard.ends == 0
    assert len(heard.lost) == 1
    assert not upstream.usable


def test_bytes_after_the_answer_end_the_connection_not_the_answer() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    heard, upstream = hear([answer + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"])
    assert (heard.payload, heard.ends) == (b"ok", 1)
    assert not upstream.usable
    heard, upstream = hear([answer, b"HTTP/1.1 200 OK\r\n"])
    assert (heard.payload, heard.ends) == (b"ok", 1)
    assert not upstream.usable


def test_addresses() -> None:
    assert address_of("127.0.0.1:80") == Address("127.0.0.1", 80)
    assert address_of("[::1]:80", True) == Address("::1", 80, True)
    assert address_of("[::1]:80").authority == b"[::1]:80"
    with pytest.raises(ValueError):
        address_of("nowhere")
