"""A head that came before is taken as read: however bytes are split, requests are what parsing makes them."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gateway_framing import Heard, Wire, cut

from tokenmill.gateway import heads
from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.heads import LESSONS, Familiar, learn
from tokenmill.gateway.options import Options, parse
from tokenmill.gateway.pool import Pool
from tokenmill.gateway.reading import Reading
from tokenmill.gateway.upstream import Address, Upstream

CHAT = b"/v1/chat/completions"


def message(body: bytes, path: bytes = CHAT, more: bytes = b"") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: h\r\n%bContent-Length: %d\r\nAuthorization: Bearer k\r\n\r\n"
    return head % (path, more, len(body)) + body


class Door:
    """What reading needs of a gateway, and no more."""

    def __init__(self) -> None:
        self.options: Options = parse(
            ["--table", "t", "--spool", "s-0.jsonl", "--control", "c", "--state", "g", "--port", "0"]
        )
        self.buffered = 0

    def known(self, headers: dict[bytes, bytes]) -> bool:
        return b"authorization" in headers


class Reader(Reading):
    """Writes down what it would answer."""

    def __init__(self) -> None:
        self.door = Door()
        super().__init__(self.door, asyncio.new_event_loop(), lambda: 0)
        self.refusals: list[ApiError] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        """Nobody listens."""

    def close(self) -> None:
        self.closed = True

    def refuse(self, error: ApiError, *, linger: bool = False) -> None:
        self._refused = True
        self.refusals.append(error)

    def failed(self, error: BaseException | None) -> None:
        raise AssertionError(error)

    def all_of(self, pieces: list[bytes]) -> list[tuple[object, ...]]:
        """What the requests in ``pieces`` say."""
        for piece in pieces:
            if not self._refused:
                self.read(piece)
        self.loop.close()
        return [(r.method, r.path, r.target, r.head, r.body, r.keep_alive) for r in self.queue]


def parsed(monkeypatch: pytest.MonkeyPatch, pieces: list[bytes]) -> tuple[list[tuple[object, ...]], Reader]:
    """The same by the parser alone."""
    with monkeypatch.context() as patch:
        patch.setattr(heads, "LESSONS", 0)
        reader = Reader()
        return reader.all_of(pieces), reader


BODIES = st.lists(
    st.tuples(st.binary(max_size=1200), st.sampled_from([CHAT, b"/v1/embeddings"]), st.booleans()),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(BODIES, st.lists(st.integers(0, 100_000), max_size=30))
def test_any_split_says_the_same(bodies: list[tuple[bytes, bytes, bool]], cuts: list[int]) -> None:
    sent = b"".join(message(b, path, b"traceparent: x\r\n" if traced else b"") for b, path, traced in bodies)
    for pieces in (cut(sent, cuts), [message(b, path) for b, path, _ in bodies]):
        reader = Reader()
        found = reader.all_of(pieces)
        with pytest.MonkeyPatch.context() as patch:
            expected, other = parsed(patch, pieces)
        assert found == expected
        assert (reader.refusals, reader.door.buffered) == ([], other.door.buffered)
        assert reader.door.buffered == sum(len(b) for b, _, _ in bodies)


def test_heads_that_came_before_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader()
    fed: list[bytes] = []
    whole = reader._parse
    monkeypatch.setattr(reader, "_parse", lambda data: (fed.append(data), whole(data)))
    first, second, third = message(b'{"a":1}'), message(b"x" * 5000), message(b"")
    apart = message(b"in two pieces")
    said = reader.all_of([first, second, third, apart[:-13], apart[-13:], message(b"", b"/v1/models")])
    assert [r[4] for r in said] == [b'{"a":1}', b"x" * 5000, b"", b"in two pieces", b""]
    assert fed == [first, message(b"", b"/v1/models")]
    assert said[0][3] is said[3][3]


@pytest.mark.parametrize(
    "second",
    [
        message(b"abcd").replace(b"Length: 4", b"Length: +4"),
        message(b"abcd").replace(b"Length: 4", b"Length: 4, 4"),
        message(b"abcd").replace(b"Length: 4", b"Length: 4\r\nContent-Length: 5"),
        message(b"abcd").replace(b"Length: 4", b"Length: 4\r\nTransfer-Encoding: chunked"),
        message(b"abcd").replace(b"Length: 4", b"Length: 4444444444444444"),
        message(b"abcd").replace(b"Length: 4", b"Length: "),
    ],
)
def test_what_was_ambiguous_is_refused_after_a_good_one_too(second: bytes) -> None:
    reader = Reader()
    said = reader.all_of([message(b"good"), message(b"goodness"), second])
    assert [r[4] for r in said] == [b"good", b"goodness"]
    assert [error.status for error in reader.refusals] == [400]


def test_a_large_body_asks_for_its_key_again() -> None:
    reader = Reader()
    limit = reader.door.options.anonymous_body_bytes
    asked: list[bool] = []
    reader.door.known = lambda headers: (asked.append(True), True)[1]  # type: ignore[method-assign,assignment]
    said = reader.all_of([message(b"a"), message(b"b" * (limit + 1))])
    assert [len(r[4]) for r in said] == [1, limit + 1]  # type: ignore[arg-type]
    assert asked == [True]


def test_a_full_gateway_refuses_a_known_head_too_and_reads_it_to_its_end() -> None:
    reader = Reader()
    reader.read(message(b"a"))
    whole = message(b"b" * 1000)
    reader.door.buffered = reader.door.options.buffered_bytes
    reader.read(whole[:-400])
    assert [error.status for error in reader.refusals] == [503]
    reader.discard(whole[-400:-1])
    assert not reader.closed
    reader.discard(whole[-1:])
    assert reader.closed
    reader.loop.close()


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nContent-Length: 4\r\nX: y\n\nabcd\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 4\nX: y\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 4\r\nX: y\rz\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length:\t4\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 4\r\n",
        b"POST / HTTP/1.1\r\nX: content-length: 4\r\n\r\n",
        b"",
    ],
)
def test_what_is_not_learned_from(data: bytes) -> None:
    assert learn(data, 4) is None


def test_heads_that_differ_all_the_time_are_soon_not_looked_at() -> None:
    familiar: Familiar[int] = Familiar()
    for number in range(LESSONS + 3):
        data = message(b"abcd", b"/%d" % number)
        assert familiar.recognise(data, 9)[0] is None
        familiar.remember(4, number)
    assert familiar.recognise(message(b"abcd", b"/%d" % (LESSONS - 1)), 9)[0] == LESSONS - 1
    assert familiar.recognise(message(b"abcd", b"/%d" % (LESSONS - 1)), 3)[0] is None


def test_answers_with_the_same_head() -> None:
    """A whole answer in one read, then one in two, then one with more behind it."""
    loop = asyncio.new_event_loop()
    pool = Pool(loop, 1.0)
    upstream = Upstream(pool, Address("h", 1))
    upstream.connection_made(Wire())
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    bodies = [b"one", b"seventeen letters", b"", b"again", b"last"]
    for number, body in enumerate(bodies):
        sent = head % len(body) + body
        heard = Heard()
        upstream.begin(heard, b"", b"")
        for piece in cut(sent, [len(sent) - 2] if number == 3 else []):
            upstream.data_received(piece)
        assert (heard.status, heard.payload, heard.ends, heard.lost) == (200, body, 1, [])
        assert heard.headers[b"content-length"] == b"%d" % len(body)
        assert upstream.usable
        assert pool.take(Address("h", 1)) is upstream
    heard = Heard()
    upstream.begin(heard, b"", b"")
    upstream.data_received(head % 2 + b"ok" + b"HTTP/1.1 200 OK\r\n\r\n")
    assert (heard.payload, heard.ends) == (b"ok", 1)
    assert not upstream.usable
    loop.close()


def test_every_length_of_digits() -> None:
    known = learn(message(b"abcd"), 4)
    assert known is not None
    for size, junk in itertools.product((0, 9, 10, 99, 100, 12345), (b"", b"junk")):
        sent = message(b"z" * size) + junk
        length, start = known.match(sent)
        assert (length, sent[start : start + length]) == (size, b"z" * size)
