"""Tool calls that engines send wrong, and requests that clients send odd, over real sockets."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from gateway_rig import SECRET, chat, post, raw, rig, run

from tokenmill.gateway.meter import EventStream
from tokenmill.gateway.pattern import Pattern

pytestmark = pytest.mark.live


def part(arguments: Any, **more: Any) -> dict[str, Any]:
    name = {"name": more.pop("name")} if "name" in more else {}
    return {**more, "function": {**name, "arguments": arguments}}


RIGHT = [
    part("", index=0, id="a", type="function", name="look"),
    part('{"x":', index=0),
    part("1}", index=0),
    part("", index=1, id="b", type="function", name="find"),
    part("{}", index=1),
]
WRONG = {
    "no index": [{k: v for k, v in x.items() if k != "index"} for x in RIGHT],
    "index null": [{**x, "index": None} for x in RIGHT],
    "all at 0": [{**x, "index": 0} for x in RIGHT],
    "empty ids": [{"id": "", **x} for x in RIGHT],
    "null ids": [{"id": None, **x} for x in RIGHT],
    "id and name repeated": [
        {**x, "id": "ab"[x["index"]], "function": {**x["function"], "name": ["look", "find"][x["index"]]}}
        for x in RIGHT
    ],
    "a new id for every part": [{**x, "id": f"n{n}" if n % 3 else x["id"]} for n, x in enumerate(RIGHT)],
}


@pytest.mark.parametrize("kind", sorted(WRONG))
def test_wrong_parts_of_tool_calls_reach_the_sdk_right(tmp_path: Path, kind: str) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r, openai.AsyncOpenAI(base_url=r.url + "/v1", api_key=SECRET) as c:
            words: Any = [{"role": "user", "content": json.dumps({"tokens": 0, "calls": WRONG[kind]})}]
            async with c.chat.completions.stream(model="m", messages=words) as stream:
                final = await stream.get_final_completion()
            calls = final.choices[0].message.tool_calls or []
            assert [(x.id, x.function.name, x.function.arguments) for x in calls] == [
                ("a", "look", '{"x":1}'),
                ("b", "find", "{}"),
            ]
            answer = await raw(r, post(chat({"tokens": 0, "calls": WRONG[kind]}, stream=True)))
            events = [json.loads(x[6:]) for x in answer.split(b"\n") if x.startswith(b'data: {"')]
            parts = [
                x["choices"][0]["delta"]["tool_calls"][0] for x in events if b"tool_calls" in str(x).encode()
            ]
            assert parts == RIGHT

    run(work)


INTERLEAVED = [
    part("", index=0, id="a", type="function", name="look"),
    part("", index=1, id="b", type="function", name="find"),
    part('{"x":', index=0),
    part('{"y":"', index=1),
    part("12", index=0),
    part("zz", index=1),
    part("}", index=0),
    part('"}', index=1),
]


@pytest.mark.parametrize("repeated", [False, True])
def test_parts_of_calls_that_take_turns_reach_the_sdk_right(tmp_path: Path, repeated: bool) -> None:
    sent = [{**x, "id": "ab"[x["index"]]} for x in INTERLEAVED] if repeated else INTERLEAVED

    async def work() -> None:
        async with rig(tmp_path) as r, openai.AsyncOpenAI(base_url=r.url + "/v1", api_key=SECRET) as c:
            words: Any = [{"role": "user", "content": json.dumps({"tokens": 0, "calls": sent})}]
            async with c.chat.completions.stream(model="m", messages=words) as stream:
                calls = (await stream.get_final_completion()).choices[0].message.tool_calls or []
            assert [(x.id, x.function.name, x.function.arguments) for x in calls] == [
                ("a", "look", '{"x":12}'),
                ("b", "find", '{"y":"zz"}'),
            ]

    run(work)


def test_right_parts_keep_their_bytes_and_a_missing_id_is_made() -> None:
    def events(parts: list[dict[str, Any]]) -> list[bytes]:
        made = (
            {"choices": [{"index": 0, "delta": {"tool_calls": [x]}, "finish_reason": None}]} for x in parts
        )
        return [b"data: " + json.dumps(x).encode() + b"\n\n" for x in made]

    stream = EventStream(hide_usage=True)
    stream.pattern = Pattern()
    assert [stream.feed(x) for x in events(RIGHT)] == events(RIGHT)
    # A second call under the same index, after the first one's parts were learned as alike.
    learned = events([part("zz", index=0)])[0]
    stream = EventStream(hide_usage=True)
    stream.pattern = Pattern()
    for event in events(RIGHT[:3]):
        stream.feed(event)
    framed = b"%x\r\n%b\r\n" % (len(learned), learned)
    assert stream.skim(framed) == len(framed)
    stream.feed(events([part("", index=0, id="b", type="function", name="find")])[0])
    assert stream.skim(framed) == 0
    assert b'"index":1' in stream.feed(learned)
    made = json.loads(EventStream(hide_usage=True).feed(events([part({"x": 1}, name="look")])[0])[6:])
    (call,) = made["choices"][0]["delta"]["tool_calls"]
    assert (call["index"], call["type"], call["function"]) == (
        0,
        "function",
        {"name": "look", "arguments": '{"x":1}'},
    )
    assert call["id"].startswith("call_")


@pytest.mark.parametrize("hide", [True, False])
def test_a_usage_event_without_choices_is_hidden_or_completed(hide: bool) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    stream = EventStream(hide_usage=hide)
    out = stream.feed(b"data: " + json.dumps({"usage": usage}).encode() + b"\n\ndata: [DONE]\n\n")
    assert stream.usage is not None
    first = out.split(b"\n\n")[0]
    assert first == b"data: [DONE]" if hide else json.loads(first[6:]) == {"usage": usage, "choices": []}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"])
def test_bodies_that_cannot_be_read_are_refused_in_words(tmp_path: Path, path: str) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            close = "connection: close\r\n"
            for depth in (252, 1000, 100_000):
                nest = b"[" * depth + b"]" * depth
                for name in (b"messages", b"input", b"other"):
                    plain = b'{"model":"embed","max_tokens":1,"%b":%b}' % (name, nest)
                    assert b" 400 " in (await raw(r, post(plain, path, close)))[:20]
            body = json.dumps(chat()).encode()
            packed = await raw(r, post(gzip.compress(body), path, close + "content-encoding: gzip\r\n"))
            assert b" 415 Unsupported" in packed
            assert b"plain JSON" in packed
            assert b" 400 " in (await raw(r, post(b"", path, close)))[:20]
            assert r.engines[0].requests == []

    run(work)


def test_odd_requests_of_real_clients_are_taken(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            close = "connection: close\r\n"
            tool = {"role": "tool", "tool_call_id": "a", "content": "{}"}
            call = {"id": "a", "type": "function", "function": {"name": "x", "arguments": "{}"}}
            for more in (
                {"stream": True, "stream_options": None},
                {"n": 2, "stop": ["a", "b"], "logprobs": True, "top_logprobs": 3},
                {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
                {"user": "u" * 1_000_000},
                {"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}, tool]},
            ):
                assert b" 200 " in (await raw(r, post(chat({"tokens": 1}, **more), headers=close)))[:20]
                sent = {k: v for k, v in more.items() if v is not None}
                assert r.engines[0].requests[-1].items() >= sent.items()
            for path in ("/v1/chat/completions/", "/chat/completions/", "/v1/chat/completions?api-version=1"):
                assert b" 200 " in (await raw(r, post(chat(), path, close)))[:20]
            twice = "accept: a\r\naccept: b\r\nexpect: 100-continue\r\n"
            answer = await raw(r, post(chat(), headers=close + twice))
            assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")

    run(work)
