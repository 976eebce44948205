"""Tools: what is refused, and a call that was asked for whatever the model would rather say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import orjson
import pytest
from gateway_rig import SECRET, chat, rig, run, table_of

from tokenmill.domain.table import Endpoint
from tokenmill.domain.value import replace
from tokenmill.gateway.body import CHAT, check_engine, engine_body, is_forced, read_body
from tokenmill.gateway.errors import ApiError, from_engine
from tokenmill.gateway.forced import ForcedCall

USER = {"role": "user", "content": "hello"}
ALIAS = table_of([]).aliases[0]
OWN = Endpoint("r-1", "rel", "h:1", "DE", 4, engine="embedded")
PLACE = {
    "type": "object",
    "properties": {"at": {"$ref": "#/$defs/point"}, "unit": {"enum": ["c", "f"]}},
    "required": ["at"],
    "$defs": {"point": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}},
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PLACE}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
NAMED = {"type": "function", "function": {"name": "clock"}}
GIVEN = '{"at": {"city": "R}\\"o}"}}'
SAID = f'{{"name": "weather",\n "arguments":  {GIVEN} }} \n'


def allowed(mode: str, *tools: Any) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


def read(**more: Any) -> Any:
    return read_body(CHAT, orjson.dumps({"model": "m", "messages": [USER], **more}))


def sent(engine: str = "embedded", **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(engine_body(read(**more), "", engine))
    return found


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": "x"}, "tools"),
        ({"tools": ["x"]}, "tools[0]"),
        ({"tools": [CLOCK, {"type": "function", "function": {}}]}, "tools[1].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [CLOCK], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": 1}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": NAMED}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": NAMED}, "tool_choice"),
        ({"tools": [CLOCK], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ],
)
def test_no_engine_gets_tools_that_mean_nothing(more: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        read(**more)
    assert (refused.value.status, refused.value.param) == (400, param)


def called(arguments: Any) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": arguments}}
    return {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, USER]}


SHAPE = {"type": "json_schema", "json_schema": {"name": "p", "schema": PLACE}}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"messages": [{"role": "alien", "content": "hi"}]}, "messages[0].role"),
        ({"functions": [CLOCK["function"]]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"tools": [CLOCK, {"type": "custom", "custom": {"name": "x"}}]}, "tools[1].type"),
        ({"tools": [CLOCK], "tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": allowed("all", CLOCK)}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": allowed("auto")}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": allowed("required", WEATHER)}, "tool_choice"),
        ({"tools": [CLOCK], "response_format": SHAPE}, "response_format"),
        (called(""), "messages[1].tool_calls[0].function.arguments"),
        (called('{"city": "Ri'), "messages[1].tool_calls[0].function.arguments"),
        (called("[]"), "messages[1].tool_calls[0].function.arguments"),
    ],
)
def test_llama_cpp_is_not_asked_what_it_fails_at_or_reads_over(more: dict[str, Any], param: str) -> None:
    asked = read(**more)
    check_engine(asked, replace(ALIAS, endpoints=(replace(OWN, engine="vllm"),)))
    with pytest.raises(ApiError) as refused:
        check_engine(asked, replace(ALIAS, endpoints=(OWN,)))
    assert (refused.value.status, refused.value.param) == (400, param)


@pytest.mark.parametrize(
    "more",
    [
        {"tools": []},
        {"tools": [CLOCK], "tool_choice": "none", "response_format": SHAPE},
        {"tools": [CLOCK], "tool_choice": "required", "response_format": SHAPE},
        {"tools": [CLOCK], "response_format": {"type": "text"}, "parallel_tool_calls": False},
        {"tools": [CLOCK], "tool_choice": allowed("auto", CLOCK)},
        {"tool_choice": "none"},
        called("{}"),
    ],
)
def test_what_is_usual_passes(more: dict[str, Any]) -> None:
    check_engine(read(**more), replace(ALIAS, endpoints=(OWN,)))


def test_only_llama_cpp_is_held_to_a_form() -> None:
    asked = {"tools": [WEATHER, CLOCK], "tool_choice": "required"}
    assert sent("vllm", **asked) == {"model": "m", "messages": [USER], **asked}
    assert not is_forced(read(**asked), "vllm")
    assert is_forced(read(**asked), "embedded")
    for choice in ("auto", "none", allowed("auto", CLOCK)):
        assert not is_forced(read(tools=[CLOCK], tool_choice=choice), "embedded")
    assert "response_format" not in sent(tools=[CLOCK], tool_choice="auto")
    some = sent(tools=[WEATHER, CLOCK], tool_choice=allowed("auto", CLOCK))
    assert (some["tools"], some["tool_choice"]) == ([CLOCK], "auto")


def test_the_form_is_one_call_of_a_function_allowed_with_its_arguments() -> None:
    def fits(choice: Any, name: str, arguments: Any) -> bool:
        body = sent(tools=[WEATHER, CLOCK], tool_choice=choice, chat_template_kwargs={"a": 1})
        assert body["tools"] == [WEATHER, CLOCK]
        assert body["chat_template_kwargs"] == {"a": 1, "tool_call_first": True}
        schema = body["response_format"]["json_schema"]["schema"]
        return jsonschema.Draft202012Validator(schema).is_valid({"name": name, "arguments": arguments})

    rome = {"at": {"city": "Rome"}, "unit": "c"}
    assert fits("required", "weather", rome)
    assert fits("required", "clock", {})
    assert not fits("required", "weather", {"at": {"city": 1}})
    assert not fits("required", "weather", {"unit": "c"})
    assert not fits("required", "clocks", {})
    assert fits(NAMED, "clock", {})
    assert not fits(NAMED, "weather", rome)
    assert fits(allowed("required", CLOCK), "clock", {})
    assert not fits("required", "clock", {"any": 1})
    assert not fits(allowed("required", CLOCK), "weather", rome)


def test_several_calls_are_a_list_where_they_are_asked_for() -> None:
    call = {"name": "clock", "arguments": {}}

    def fits(said: Any, choice: Any = "required", parallel: bool | None = True) -> bool:
        body = sent(tools=[WEATHER, CLOCK], tool_choice=choice, parallel_tool_calls=parallel)
        schema = body["response_format"]["json_schema"]["schema"]
        return jsonschema.Draft202012Validator(schema).is_valid(said)

    assert fits([call, {"name": "weather", "arguments": {"at": {"city": "Rome"}}}])
    assert not fits([call, {"name": "weather", "arguments": {"at": {"city": 1}}}])
    assert not fits([])
    assert not fits([call] * 17)
    for parallel in (None, False):
        assert fits(call, parallel=parallel)
        assert not fits([call], parallel=parallel)
    assert fits(call, NAMED)
    assert fits([call], allowed("required", CLOCK))


def events(pieces: list[str], finish: str) -> bytes:
    def chunk(delta: dict[str, Any], end: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": end}
        return b"data: " + orjson.dumps({"id": "c", "choices": [choice]}) + b"\n\n"

    said = [chunk({"role": "assistant", "content": None}), *(chunk({"content": p}) for p in pieces)]
    return b"".join([*said, chunk({}, finish), b"data: [DONE]\n\n"])


def put_together(stream: bytes) -> tuple[list[list[str]], str | None]:
    """Name and arguments of each call and the end, as clients put them together."""
    calls: list[list[str]] = []
    finish = None
    for line in stream.split(b"\n\n"):
        if not line.startswith(b"data: {"):
            continue
        (choice,) = json.loads(line[6:])["choices"]
        assert not choice["delta"].get("content")
        for part in choice["delta"].get("tool_calls", ()):
            assert ("id" in part) == ("name" in part["function"])
            if "id" in part:
                assert part["index"] == len(calls)
                calls.append([part["function"]["name"], ""])
            calls[part["index"]][1] += part["function"]["arguments"]
        finish = choice["finish_reason"] or finish
    return calls, finish


def joined(stream: bytes) -> tuple[str, str, str | None]:
    calls, finish = put_together(stream)
    assert len(calls) <= 1
    name, arguments = calls[0] if calls else ("", "")
    return name, arguments, finish


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_stream_becomes_the_call_however_it_is_cut(size: int) -> None:
    pieces = [SAID[at : at + size] for at in range(0, len(SAID), size)]
    assert joined(ForcedCall().feed(events(pieces, "stop"))) == ("weather", GIVEN, "tool_calls")
    assert joined(ForcedCall().feed(events(pieces, "length"))) == ("weather", GIVEN, "tool_calls")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_list_becomes_its_calls_however_it_is_cut(size: int) -> None:
    odd = '{"at": {"city": "}, {\\"name\\": [ \\\\"}, "unit" : [ ] }'
    calls = [["weather", GIVEN], ["weather", odd], ["clock", "{}"]]
    said = " [" + " ,\n".join(f'{{"name": "{name}", "arguments": {given} }}' for name, given in calls) + "]"
    pieces = [said[at : at + size] for at in range(0, len(said), size)]
    assert put_together(ForcedCall().feed(events(pieces, "stop"))) == (calls, "tool_calls")
    assert put_together(ForcedCall().feed(events(pieces[:-1], "length")))[1] == "length"
    answer = {"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]}
    (choice,) = json.loads(ForcedCall().whole(orjson.dumps(answer)))["choices"]
    found = choice["message"]["tool_calls"]
    assert [[call["function"]["name"], call["function"]["arguments"]] for call in found] == calls
    assert len({call["id"] for call in found}) == 3


def test_what_was_cut_off_is_no_more_than_was_said() -> None:
    for end in range(len(SAID.rstrip())):
        name, arguments, finish = joined(ForcedCall().feed(events([SAID[:end]], "length")))
        assert finish == "length"
        assert not name or (name == "weather" and GIVEN.startswith(arguments.removesuffix(" ")))
        message = {"role": "assistant", "content": SAID[:end]}
        whole = {"choices": [{"message": message, "finish_reason": "length"}]}
        (choice,) = json.loads(ForcedCall().whole(orjson.dumps(whole)))["choices"]
        calls = choice["message"].get("tool_calls", [])
        assert [c["function"]["arguments"] for c in calls] == ([arguments] if name else [])
        assert (choice["finish_reason"], choice["message"]["content"]) == ("length", None)


def test_a_whole_answer_becomes_the_call() -> None:
    answer = {"choices": [{"message": {"role": "assistant", "content": SAID}, "finish_reason": "stop"}]}
    (choice,) = json.loads(ForcedCall().whole(orjson.dumps(answer)))["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": GIVEN}
    assert (call["type"], call["id"][:5], choice["finish_reason"]) == ("function", "call_", "tool_calls")
    assert ForcedCall().whole(b"no json") == b"no json"


def test_a_schema_that_cannot_be_used_is_said_without_the_template() -> None:
    body = b'{"error":{"code":400,"message":"No parser. JSON schema error at #/a: unrecognized type x"}}'
    error = from_engine(400, body, 4096)
    assert error.status == 400
    assert error.message.endswith("cannot be used: JSON schema error at #/a: unrecognized type x")


def test_a_functions_schema_that_cannot_be_used_is_named_where_the_client_wrote_it() -> None:
    """The place is that in our schema for the answer, which the client never sees."""
    tools = [WEATHER, {"type": "function", "function": {"name": "b", "parameters": {"$ref": "#/$defs/no"}}}]
    schema = sent(tools=tools, tool_choice={"type": "function", "function": {"name": "b"}})
    (place,) = schema["response_format"]["json_schema"]["schema"]["$defs"]
    body = orjson.dumps({"error": {"message": f"x. JSON schema error at #/$defs/{place}/items: no type y"}})
    error = from_engine(400, body, 4096)
    assert error.param == "tools[1].function.parameters"
    assert error.message.endswith("used: JSON schema error at tools[1].function.parameters/items: no type y")


def test_through_the_gateway_the_engines_counts_stay(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r, httpx.AsyncClient(timeout=10) as client:
            aliases = r.table.aliases
            own = tuple(replace(endpoint, engine="embedded") for endpoint in aliases[0].endpoints)
            r.publish(aliases=(replace(aliases[0], endpoints=own), *aliases[1:]))
            words = [SAID[at : at + 5] for at in range(0, len(SAID), 5)]
            script = {"words": words, "tokens": len(words)}
            body = chat(script, tools=[WEATHER], tool_choice="required", stream=True)
            key = {"authorization": f"Bearer {SECRET}"}
            answer = await client.post(r.url + "/v1/chat/completions", json=body, headers=key)
            assert joined(answer.content) == ("weather", GIVEN, "tool_calls")
            assert answer.content.endswith(b"data: [DONE]\n\n")
            assert b"timings" not in answer.content
            (line,) = await r.settled(1)
            assert (line["output_tokens"], line["counted_by"]) == (len(words), "engine")

    run(work)
