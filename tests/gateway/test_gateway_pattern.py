"""The short way through the relay: the client gets the same events and the meter counts the same tokens."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gateway_framing import Wire

from tokenmill.control.requests import TokenUsage
from tokenmill.gateway.body import CHAT
from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.message import HttpRequest, RequestHead
from tokenmill.gateway.pattern import LONGEST, Pattern
from tokenmill.gateway.pool import Pool
from tokenmill.gateway.relay import Relay
from tokenmill.gateway.upstream import Address, Upstream

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(word: str, finish: str | None = None, index: int = 0) -> bytes:
    body = {"id": "chatcmpl-1", "choices": [{"index": index, "delta": {"content": word}}], "n": 1}
    body["choices"][0]["finish_reason"] = finish  # type: ignore[index]
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


class Sink:
    """A client's connection, and the owner of the relay: writes down what it is told."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.connection = self
        self.http = HttpRequest(
            RequestHead("POST", "/", b"/", [], {}, True, True), "/", b"/", b"", True, True, 0.0, 0
        )
        self.settled = self.settling = False
        self.hide_usage = True
        self.hide_running = True
        self.endpoint = CHAT
        self.context_tokens = 0
        self.response_id = ""
        self.usage = TokenUsage()
        self.lost_for = ""
        self.finished = False

    def write(self, data: bytes) -> None:
        self.got.append(data)

    def head(self, request: HttpRequest, status: int, headers: bytes, length: int | None) -> bytes:
        return b""

    def respond(self, request: HttpRequest, status: int, body: bytes, **more: bytes) -> None:
        self.got.append(body)

    def finish(self, keep_alive: bool) -> None:
        self.finished = True

    def abort(self) -> None:
        self.finished = True

    def answer_headers(self) -> bytes:
        return b""

    def first_byte(self) -> None:
        """Nothing to do."""

    def first_token(self) -> None:
        """Nothing to do."""

    def complete(self, status: int, usage: TokenUsage) -> None:
        self.settled, self.usage = True, usage

    def reject(self, error: ApiError) -> None:
        self.lost_for = error.message

    def lost(self, reason: str) -> None:
        self.lost_for = reason

    def ended(self) -> None: ...

    def again(self) -> None:
        raise AssertionError("nothing was reused")


def unchunk(data: bytes) -> bytes:
    """Payload of strictly framed chunks, and nothing after their end."""
    out = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        assert size == b"%x" % int(size, 16)
        out, data = out + data[: int(size, 16)], data[int(size, 16) :]
        assert data.startswith(b"\r\n")
        data = data[2:]
    return out


def relayed(pieces: list[bytes], sink: Sink | None = None) -> tuple[Sink, Relay, Upstream]:
    loop = asyncio.new_event_loop()
    try:
        upstream = Upstream(Pool(loop, 1.0), Address("h", 1))
        upstream.connection_made(Wire())
        sink = sink or Sink()
        relay = Relay(sink, upstream)
        upstream.begin(relay, b"", b"")
        for piece in pieces:
            upstream.data_received(piece)
        return sink, relay, upstream
    finally:
        loop.close()


WORDS = st.lists(
    st.one_of(
        st.sampled_from(["", " token", '"', "\\", '"}}],"usage":{', "data: [DONE]", "\n\n", "é"]), st.text()
    ),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(WORDS, st.lists(st.integers(0, 100_000), max_size=12), st.integers(1, 3), st.booleans())
def test_any_split_relays_the_same_events_and_counts_the_same(
    words: list[str], cuts: list[int], together: int, zero: bool
) -> None:
    plain = [event(w) for w in words]
    grouped = [b"".join(plain[i : i + together]) for i in range(0, len(plain), together)]
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n'
    tail = event("", "stop")
    body = b"".join(chunk(e) for e in (event(""), *grouped, tail, usage, b"data: [DONE]\n\n")) + b"0\r\n\r\n"
    if zero:  # other framing than ours
        body = b"0" + body
    sent = HEAD + body
    edges = [0, *sorted(c % (len(sent) + 1) for c in cuts), len(sent)]
    sink, relay, upstream = relayed([sent[a:b] for a, b in itertools.pairwise(edges) if a != b])
    assert sink.lost_for == ""
    got = b"".join(sink.got)
    assert got.endswith(b"0\r\n\r\n")
    assert unchunk(got[:-5]) == b"".join([event(""), *plain, tail, b"data: [DONE]\n\n"])
    assert relay.stream is not None
    assert relay.stream.deltas == sum(1 for w in words if w)
    assert sink.usage == TokenUsage(7, 0, 3, 0, "engine")
    assert sink.finished
    assert upstream.usable


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(0, 100_000))
def test_a_cut_stream_counts_what_was_passed_on(count: int, cut: int) -> None:
    sent = HEAD + b"".join(chunk(event(f" w{n}")) for n in range(count))
    whole = sent[: len(HEAD) + cut % (len(sent) - len(HEAD) + 1)]
    sink, relay, _ = relayed([whole])
    passed = b"".join(sink.got).count(b'"content"')
    assert (relay.stream.deltas if relay.stream else 0) == passed


class Timeline(Sink):
    """Writes down when it was settled, too."""

    def head(self, request: HttpRequest, status: int, headers: bytes, length: int | None) -> bytes:
        return b"HEAD "

    def complete(self, status: int, usage: TokenUsage) -> None:
        super().complete(status, usage)
        self.got.append(b"settled")


def test_the_head_goes_with_the_first_event_and_the_end_with_the_last() -> None:
    first, second, done = chunk(event("one")), chunk(event("two", "stop")), chunk(b"data: [DONE]\n\n")
    end = b"0\r\n\r\n"
    by_event, _, _ = relayed([HEAD, first, second, done + end], Timeline())
    assert by_event.got == [b"HEAD " + first, second, b"settled", done + end]
    late_end, _, _ = relayed([HEAD + first, second, done, end], Timeline())
    assert late_end.got == [b"HEAD " + first, second, b"settled", done, end]


def test_what_comes_all_at_once_is_begun_before_it_is_settled() -> None:
    first, second, done = event("one"), event("two", "stop"), b"data: [DONE]\n\n"
    sent = HEAD + chunk(first) + chunk(second) + chunk(done) + b"0\r\n\r\n"
    sink, _, _ = relayed([sent], Timeline())
    assert sink.got == [b"HEAD " + chunk(first + second), b"settled", chunk(done) + b"0\r\n\r\n"]
    only_end, _, _ = relayed([HEAD + chunk(done) + b"0\r\n\r\n"], Timeline())
    assert only_end.got == [b"settled", b"HEAD " + chunk(done) + b"0\r\n\r\n"]


def test_most_of_a_stream_takes_the_short_way_as_it_came() -> None:
    chunks = [chunk(event(f" word {n}")) for n in range(50)]
    sink, relay, upstream = relayed(
        [HEAD, *chunks[:20], b"".join(chunks[20:]) + chunks[0][:40], chunks[0][40:]]
    )
    assert all(a is b for a, b in zip(sink.got[1:20], chunks[1:20], strict=True))
    assert b"".join(chunks[20:]) in sink.got
    assert b"".join(sink.got).endswith(chunks[0])
    assert relay.stream is not None
    assert relay.stream.deltas == 51
    assert upstream.usable


@pytest.mark.parametrize(
    "other",
    [
        chunk(event("")),
        chunk(event("x", "stop")),
        chunk(event("x") + event("y")),
        chunk(event("x", index=1)),
        chunk(event("x")).replace(b"\r\n", b";a=b\r\n", 1),
        chunk(event("x")).upper(),
        b"0" + chunk(event("x")),
        b"+" + chunk(event("x")),
        chunk(event("x"))[:-1],
        chunk(event("x"))[:-2] + b"\n\n",
        chunk(event("x" * LONGEST)),
        chunk(b"data: [DONE]\n\n"),
        chunk(b'data: {"error":{"message":"no"}}\n\n'),
        b"",
    ],
)
def test_what_is_not_alike_is_left_to_the_parser(other: bytes) -> None:
    pattern = Pattern()
    first = event("one")
    assert not pattern.is_one(chunk(event("x")))
    pattern.learn(first, first.index(b"one"))
    assert pattern.is_one(chunk(event("x")))
    assert not pattern.is_one(other)
    assert pattern.leading(chunk(event("x")) + other) == (len(chunk(event("x"))), 1)


def test_an_engine_whose_events_always_differ_is_given_up_on() -> None:
    pattern = Pattern()
    for number in range(20):
        text = event(f"one{number}").replace(b'"n":1', b'"n":%d' % number)
        pattern.learn(text, text.index(b"one"))
    assert not pattern.is_one(chunk(text))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 8), st.sampled_from([b"\n\n", b"\r\n\r\n"]), st.lists(st.integers(0, 100_000), max_size=8)
)
def test_an_error_ends_what_is_passed_on_however_much_came_at_once(
    before: int, end: bytes, cuts: list[int]
) -> None:
    plain = [event(f" w{n}").replace(b"\n\n", end) for n in range(before + 1)]
    error = b'data: {"error":{"message":"out of memory"}}' + end
    sent = HEAD + b"".join(chunk(e) for e in (*plain, error, event(" never"))) + b"0\r\n\r\n"
    edges = [len(HEAD), *sorted(len(HEAD) + c % (len(sent) - len(HEAD)) for c in cuts), len(sent)]
    sink, _, upstream = relayed([HEAD, *(sent[a:b] for a, b in itertools.pairwise(edges) if a != b)])
    passed = b"".join(sink.got)
    assert b"never" not in passed
    assert b"out of memory" not in passed
    assert not upstream.usable
    if sink.got:
        assert unchunk(passed) == b"".join(plain)
        assert sink.lost_for == "it sent an error inside its stream"
    else:  # all of it came before anything went to the client: a plain error
        assert "out of memory" in sink.lost_for


def test_an_end_without_usage_is_seen_in_a_read_with_events_that_do_not_end() -> None:
    events = [event(f" w{n}") for n in range(30)] + [event("", "stop")]
    sink, relay, upstream = relayed([HEAD + b"".join(chunk(e) for e in events) + b"0\r\n\r\n"])
    assert (sink.lost_for, sink.settled, sink.finished) == ("", True, True)
    assert relay.stream is not None
    assert (relay.stream.deltas, sink.usage.counted_by) == (30, "stream")
    assert unchunk(b"".join(sink.got)[:-5]) == b"".join(events)
    assert len(sink.got) <= 3, "what came at once is passed on at once"
    assert upstream.usable


def test_a_mistake_of_the_receiver_costs_that_answer_only() -> None:
    class Failing(Sink):
        def first_token(self) -> None:
            raise RuntimeError("a mistake")

    loop = asyncio.new_event_loop()
    told: list[object] = []
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
    try:
        upstream = Upstream(Pool(loop, 1.0), Address("h", 1))
        upstream.connection_made(Wire())
        sink = Failing()
        upstream.begin(Relay(sink, upstream), b"", b"")
        upstream.data_received(HEAD + chunk(event(" a")))
    finally:
        loop.close()
    assert [str(e) for e in told] == ["a mistake"]
    assert sink.lost_for == "the gateway failed on its answer"
    assert not upstream.usable
