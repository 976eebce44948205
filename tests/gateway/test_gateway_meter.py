"""Metering: whatever way the bytes are split, the same events go on and the same tokens are counted."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.control.requests import TokenUsage
from tokenmill.gateway.meter import (
    EVENT_BYTES,
    BrokenStreamError,
    EventStream,
    estimate_output,
    find_usage,
    usage_of,
)

USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
COUNTED = TokenUsage(11, 4, 3, 1, "engine")


def event(body: Any, end: str = "\n\n") -> bytes:
    return b"data: " + (body if isinstance(body, bytes) else json.dumps(body).encode()) + end.encode()


def stream(
    end: str = "\n\n", words: tuple[str, ...] = ("one", 'say "usage"', "data: [DONE]\n\n")
) -> list[bytes]:
    deltas = [{"choices": [{"index": 0, "delta": {"content": w}, "finish_reason": None}]} for w in words]
    role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    finish = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    last = {"choices": [], "usage": USAGE}
    return [event(e, end) for e in (role, *deltas, finish, last)] + [event(b"[DONE]", end)]


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 10_000), max_size=40),
    st.booleans(),
    st.sampled_from(["\n\n", "\r\n\r\n"]),
    st.lists(st.text(max_size=20), max_size=5),
)
def test_any_split_gives_the_same_relay_and_usage(
    cuts: list[int], hide: bool, end: str, words: list[str]
) -> None:
    sent = stream(end, tuple(words))
    expected = b"".join(e for e in sent if not (hide and b'"choices": [], "usage"' in e))
    meter = EventStream(hide_usage=hide)
    got = b"".join(meter.feed(p) for p in pieces(b"".join(sent), cuts))
    assert got == expected
    assert meter.rest() == b""
    assert meter.counted() == COUNTED
    assert meter.done
    assert meter.finished
    assert meter.deltas == sum(1 for w in words if w)


def test_byte_by_byte_settles_before_done_is_passed_on() -> None:
    meter = EventStream(hide_usage=True)
    for byte in b"".join(stream()):
        out = meter.feed(bytes([byte]))
        if b"data: [DONE]" in out and out.startswith(b"data: [DONE]"):
            assert meter.done
            assert meter.usage == COUNTED


def test_usage_in_a_chunk_with_choices_is_seen_and_kept() -> None:
    both = event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}], "usage": USAGE})
    meter = EventStream(hide_usage=True)
    assert meter.feed(both) == both
    assert meter.usage == COUNTED


def test_running_usage_makes_a_cut_stream_exact() -> None:
    meter = EventStream(hide_usage=False)
    running = {"prompt_tokens": 9, "completion_tokens": 5}
    meter.feed(event({"choices": [{"index": 0, "delta": {"content": "five tokens"}}], "usage": running}))
    assert meter.counted() == TokenUsage(9, 0, 5, 0, "engine")


@pytest.mark.parametrize("beside", [{"usage": {**USAGE, "total_tokens": 3}}, {"timings": {"predicted_n": 2}}])
def test_counts_beside_output_are_read_and_not_passed_on(beside: dict[str, object]) -> None:
    tricky = 'say ,"usage":{"prompt_tokens":1} aloud'
    plain = [
        {"choices": [{"index": 0, "delta": {"content": tricky}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]
    last = event({"choices": [], "usage": USAGE}) + event(b"[DONE]")
    meter = EventStream(hide_usage=False, hide_running=True)
    sent = [event({**chunk, **beside}) for chunk in plain]
    assert meter.feed(sent[0]) == event(plain[0])
    assert meter.counted().counted_by == "engine", "a stream cut here is exact"
    assert meter.feed(sent[1] + last) == event(plain[1]) + last
    assert meter.counted() == COUNTED
    assert EventStream(hide_usage=False).feed(sent[0]) == sent[0], "who asked for them gets them"


def test_llama_timings_make_a_cut_stream_exact() -> None:
    meter = EventStream(hide_usage=True)
    timings = {"cache_n": 30, "prompt_n": 1, "predicted_n": 3}
    meter.feed(event({"choices": [{"index": 0, "delta": {"content": "x"}}], "timings": timings}))
    assert meter.counted() == TokenUsage(31, 30, 3, 0, "engine")


def test_a_cut_stream_counts_its_deltas() -> None:
    meter = EventStream(hide_usage=True)
    for sent in stream()[:3]:
        meter.feed(sent)
    assert meter.counted() == TokenUsage(output_tokens=2, counted_by="stream")


def test_an_error_event_is_held_back_with_what_follows() -> None:
    meter = EventStream(hide_usage=True)
    good = event({"choices": [{"index": 0, "delta": {"content": "x"}}]})
    got = meter.feed(good + event({"error": {"message": "boom"}}) + event(b"[DONE]"))
    assert got == good
    assert meter.error == {"error": {"message": "boom"}}
    assert not meter.done


def test_the_last_event_may_lack_its_empty_line() -> None:
    meter = EventStream(hide_usage=True)
    assert meter.feed(b"data: [DONE]\n") == b""
    assert meter.rest().strip() == b"data: [DONE]"
    assert meter.done


def test_an_endless_event_is_refused() -> None:
    meter = EventStream(hide_usage=True)
    assert meter.feed(b"x" * EVENT_BYTES) == b""
    with pytest.raises(BrokenStreamError):
        meter.feed(b"x")


@pytest.mark.parametrize("pad", [0, 100, 70_000, 500_000])
@pytest.mark.parametrize("first", [True, False])
def test_usage_is_found_at_either_end_of_a_body(pad: int, first: bool) -> None:
    usage, data = {"usage": USAGE}, {"data": ["x" * pad, '{"usage": {"prompt_tokens": 1}}']}
    body = json.dumps({**usage, **data} if first else {**data, **usage}).encode()
    assert find_usage(body) == COUNTED


def test_an_answer_without_usage_is_estimated() -> None:
    body = (
        b'{"choices": [{"message": {"content": "12345"}}, {"text": "1234"}, {"message": {"content": null}}]}'
    )
    assert estimate_output(body) == TokenUsage(output_tokens=3, counted_by="estimate")
    assert estimate_output(b"[]").output_tokens == 0


def test_no_usage_is_no_usage() -> None:
    assert find_usage(b'{"choices": [{"text": "\\"usage\\": {\\"prompt_tokens\\": 5}"}]}') is None
    assert find_usage(b'{"usage": {"prompt_tokens"') is None
    assert usage_of({"prompt_tokens": "7"}) is None
    assert usage_of({"prompt_tokens": 7, "completion_tokens": -1}) == TokenUsage(7, 0, 0, 0, "engine")
