"""Responses, Messages, rerank and score: translation alone, with bytes split anywhere."""

from __future__ import annotations

import json
import math
from typing import Any, get_args

import anthropic
import pytest
from openai.types.responses import ResponseIncludable, response_create_params

from tokenmill.gateway.bridge import Dialect
from tokenmill.gateway.dialects.messages import Messages
from tokenmill.gateway.dialects.messages_input import TAKEN as MESSAGES_TAKEN
from tokenmill.gateway.dialects.rerank import Rerank, Score, cosine
from tokenmill.gateway.dialects.responses import Responses
from tokenmill.gateway.dialects.responses_fields import INCLUDABLE, LOGPROBS
from tokenmill.gateway.dialects.responses_input import TAKEN
from tokenmill.gateway.errors import ApiError, bad_request, context_overflow

USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
ASKED = {
    Responses: {"model": "m", "input": "hi"},
    Messages: {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]},
}

PIXEL = {"type": "base64", "media_type": "image/png", "data": "AA=="}


def stream(*deltas: dict[str, Any], finish: str = "stop", usage: bool = True) -> bytes:
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    if usage:
        chunks.append({"choices": [], "usage": USAGE})
    events = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
    return b": ping\n\n" + b"".join(events) + b"data: [DONE]\n\n"


def calls(index: int, arguments: str, **first: str) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": first["name"]} if first else {})}
    return {"tool_calls": [{"index": index, "function": function, **({"id": first["id"]} if first else {})}]}


TALK = stream(
    {"role": "assistant", "content": ""},
    {"reasoning_content": "hm"},
    {"content": "Hël"},
    {"content": "lo"},
    calls(0, "", id="call-a", name="look"),
    calls(0, '{"a":'),
    calls(0, "1}"),
    calls(1, '{"b":2}', id="call-b", name="see"),
    finish="tool_calls",
)


def told(
    dialect: Dialect, data: bytes, step: int, body: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The events of a stream whose bytes came ``step`` at a time."""
    asked = body or {**ASKED[type(dialect)], "stream": True}
    dialect.read(json.dumps(asked).encode())
    out = b"".join(dialect.feed(data[i : i + step]) for i in range(0, len(data), step)) + dialect.end()
    found = []
    for text in out.decode().split("\n\n")[:-1]:
        name, _, body_ = text.partition("\n")
        event = json.loads(body_.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def shape(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 100_000])
def test_responses_tell_the_whole_sequence(step: int) -> None:
    events = told(Responses(), TALK, step)
    assert shape(events) == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done") * 2,
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    final = events[-1]["response"]
    kinds = [item["type"] for item in final["output"]]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == final["output"]  # the same ids and the same contents in the stream and in the final object
    added = {e["item"]["id"]: e["output_index"] for e in events if e["type"].endswith("item.added")}
    assert [added[item["id"]] for item in final["output"]] == [0, 1, 2, 3]
    for event in events:
        if event["type"].endswith(".delta"):
            assert event["item_id"] in added
            assert event["output_index"] == added[event["item_id"]]
    text = final["output"][1]["content"][0]
    assert text == {"type": "output_text", "text": "Hëllo", "annotations": [], "logprobs": []}
    assert [(x["call_id"], x["name"], x["arguments"]) for x in final["output"][2:]] == [
        ("call-a", "look", '{"a":1}'),
        ("call-b", "see", '{"b":2}'),
    ]
    assert final["usage"] == {
        "input_tokens": 11,
        "input_tokens_details": {"cached_tokens": 3},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 16,
    }
    assert {event["response"]["id"] for event in events if "response" in event} == {final["id"]}


def test_a_response_that_is_cut_short_or_fails_says_so_with_its_usage() -> None:
    events = told(Responses(), stream({"content": "x"}, finish="length"), 9)
    final = events[-1]
    assert final["type"] == "response.incomplete"
    assert final["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert final["response"]["output"][0]["status"] == "incomplete"
    assert final["response"]["usage"]["output_tokens"] == 5
    broken = stream({"content": "x"}).partition(b'data: {"choices": [{"index": 0, "delta": {}, ')[0]
    broken += b'data: {"error": {"message": "gone", "code": "engine_failed"}}\n\n'
    failed = told(Responses(), broken, 5)
    assert shape(failed)[-1] == "failed"
    assert failed[-1]["response"]["error"] == {"code": "server_error", "message": "gone"}
    assert failed[-1]["response"]["usage"] is not None
    empty = told(Responses(), stream(), 5)
    assert empty[-1]["response"]["output"][0]["content"][0]["text"] == ""


def test_a_whole_response() -> None:
    dialect = Responses()
    body = {**ASKED[Responses], "temperature": 0.5, "tools": [tool("look")], "metadata": {"a": "b"}}
    asked = dialect.read(json.dumps(body).encode())
    assert asked.document["tools"][0]["function"]["name"] == "look"
    assert "metadata" not in asked.document
    message = {
        "content": "hello",
        "tool_calls": [{"id": "c", "function": {"name": "look", "arguments": "{}"}}],
    }
    answer = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": USAGE}
    found = json.loads(dialect.whole(json.dumps(answer).encode()))
    assert found["status"] == "completed"
    assert [item["type"] for item in found["output"]] == ["message", "function_call"]
    assert (found["temperature"], found["metadata"], found["store"]) == (0.5, {"a": "b"}, False)
    with pytest.raises(ApiError):
        Responses().whole(b"<html>")


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "name": name, "parameters": {"type": "object"}, **more}


def test_what_responses_read() -> None:
    items = [
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
        {"type": "reasoning", "summary": []},
        {"role": "assistant", "content": [{"type": "output_text", "text": "c"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AA=="}]},
    ]
    body = {
        "model": "m",
        "instructions": "You help.",
        "input": items,
        "max_output_tokens": 7,
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True}},
        "tools": [tool("f", strict=True)],
        "tool_choice": {"type": "function", "name": "f"},
        "min_p": 0.1,
        "store": True,
    }
    asked = Responses().read(json.dumps(body).encode())
    document = asked.document
    assert document["messages"][0] == {"role": "system", "content": "You help.\n\nbe brief"}
    assert document["messages"][1] == {"role": "user", "content": "ab"}
    assert [c["id"] for c in document["messages"][2]["tool_calls"]] == ["c1", "c2"]
    assert document["messages"][2]["content"] == "c"
    assert document["messages"][3] == {"role": "tool", "tool_call_id": "c1", "content": "1"}
    assert document["messages"][4]["content"][0]["image_url"] == {"url": "data:image/png;base64,AA=="}
    assert document["max_completion_tokens"] == 7
    assert document["reasoning_effort"] == "low"
    assert document["response_format"]["json_schema"] == {"name": "n", "schema": {}, "strict": True}
    assert document["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert document["min_p"] == 0.1
    assert "store" not in document
    assert asked.max_output == 7
    assert asked.wants_usage


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": "x"}, "tools"),
        ({"tools": [tool("f")], "tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"max_output_tokens": "x"}, "max_output_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"instructions": 4}, "instructions"),
        ({"include": "x"}, "include"),
        ({"include": [LOGPROBS, "message.thoughts"]}, "include[1]"),
        ({"truncation": "auto"}, "truncation"),
        ({"n": 2}, "n"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
        ({"moderation": {"model": "x"}}, "moderation"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"service_tier": "gold"}, "service_tier"),
        ({"prompt_cache_options": {"prewarm": True}}, "prompt_cache_options.prewarm"),
        ({"reasoning": "high"}, "reasoning"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"metadata": "x"}, "metadata"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"max_tool_calls": 0}, "max_tool_calls"),
        ({"store": "yes"}, "store"),
        ({"safety_identifier": 5}, "safety_identifier"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"tools": [tool("f", defer_loading=True)]}, "tools[0].defer_loading"),
        ({"tools": [tool("f")], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.tools"),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "1"}]},
            "input[0].call_id",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}]},
            "input[0].arguments",
        ),
    ],
)
def test_what_responses_refuse(change: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        Responses().read(json.dumps({**ASKED[Responses], **change}).encode())
    assert (caught.value.status, caught.value.param) == (400, param)


def test_no_field_of_openais_client_is_left_out_without_a_word() -> None:
    """What this release of the client can send is translated, checked, refused, or means the same in chat."""
    known = set(response_create_params.ResponseCreateParamsBase.__annotations__)
    same = {"model", "stream", "temperature", "top_p", "user", "parallel_tool_calls"}
    assert known - TAKEN == same - {"stream"}
    assert set(get_args(ResponseIncludable)) == set(INCLUDABLE)


def test_a_response_that_needs_nothing_more_is_taken() -> None:
    """Fields that ask for nothing that could be missed, and null for all that is left to the server."""
    nulls = dict.fromkeys(TAKEN - {"input"})
    some = {
        "include": ["reasoning.encrypted_content", "message.input_image.image_url"],
        "truncation": "disabled",
        "background": False,
        "service_tier": "auto",
        "reasoning": {"summary": "auto", "effort": None},
        "prompt_cache_retention": "24h",
        "metadata": {},
        "n": 1,
        "tools": [tool("f", allowed_callers=["direct"], strict=None)],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "f"}],
        },
    }
    for more in (nulls, some):
        asked = Responses().read(json.dumps({**nulls, **more, "model": "m", "input": "hi"}).encode())
        assert asked.document["messages"] == [{"role": "user", "content": "hi"}]
        assert "logprobs" not in asked.document
    assert asked.document["tools"] == [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    ]
    assert asked.document["tool_choice"]["allowed_tools"]["tools"] == [
        {"type": "function", "function": {"name": "f"}}
    ]


def test_an_error_names_the_field_as_responses_call_it() -> None:
    for error, param, words in (
        (context_overflow(8, 9, "messages"), "input", "length of the input."),
        (bad_request("'tools[0].function.name' is bad", "tools[0].function.name"), "tools[0].name", "name'"),
        (bad_request("no", None), None, "no"),
        (bad_request("'model' is bad", "model"), "model", "'model' is bad"),
    ):
        found = json.loads(Responses().error(400, error.body))["error"]
        assert (found["param"], found["type"]) == (param, "invalid_request_error")
        assert words in found["message"]
        assert "messages" not in found["message"]


def test_a_response_has_the_log_probabilities_that_were_asked_for() -> None:
    said = {"token": "hi", "logprob": -0.5, "bytes": [104, 105]}
    given = {"content": [{**said, "id": 7, "top_logprobs": [{**said, "id": 7}]}]}
    wanted = [{**said, "top_logprobs": [said]}]
    for more in ({"include": [LOGPROBS]}, {"top_logprobs": 1}):
        dialect = Responses()
        body = {**ASKED[Responses], **more}
        asked = dialect.read(json.dumps(body).encode()).document
        assert (asked["logprobs"], asked["top_logprobs"]) == (True, more.get("top_logprobs", 0))
        choice = {"message": {"content": "hi"}, "logprobs": given, "finish_reason": "stop"}
        whole = json.loads(dialect.whole(json.dumps({"choices": [choice], "usage": USAGE}).encode()))
        assert whole["output"][0]["content"][0]["logprobs"] == wanted
        part = {"choices": [{"index": 0, "delta": {"content": "hi"}, "logprobs": given}]}
        chunks = b"data: " + json.dumps(part).encode() + b"\n\n" + stream({"content": "!"})
        seen = {e["type"]: e for e in reversed(told(Responses(), chunks, 9, {**body, "stream": True}))}
        assert seen["response.output_text.delta"]["logprobs"] == wanted
        assert seen["response.output_text.done"]["logprobs"] == wanted
        item = seen["response.completed"]["response"]["output"][0]
        assert item["content"][0]["logprobs"] == wanted


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 100_000])
def test_messages_tell_the_whole_sequence(step: int) -> None:
    body = {**ASKED[Messages], "stream": True, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    events = told(Messages(), TALK, step, body)
    delta, stop = "content_block_delta", "content_block_stop"
    assert shape(events) == [
        *("message_start", "ping"),
        *("content_block_start", delta, delta, stop),
        *("content_block_start", delta, delta, stop),
        *("content_block_start", delta, delta, stop),
        *("content_block_start", delta, stop),
        *("message_delta", "message_stop"),
    ]
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [block["type"] for block in starts] == ["thinking", "text", "tool_use", "tool_use"]
    assert (starts[2]["id"], starts[2]["name"], starts[2]["input"]) == ("call-a", "look", {})
    assert [e["index"] for e in events if e["type"] == stop] == [0, 1, 2, 3]
    parts = [e["delta"].get("partial_json", "") for e in events if e["type"] == delta and e["index"] == 2]
    assert json.loads("".join(parts)) == {"a": 1}
    last = events[-2]
    assert last["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert last["usage"]["input_tokens"] == 8
    assert last["usage"]["cache_read_input_tokens"] == 3
    assert last["usage"]["output_tokens"] == 5
    hidden = told(Messages(), TALK, step)
    assert "thinking" not in {e.get("content_block", {}).get("type") for e in hidden}


def test_messages_fail_in_anthropics_shape() -> None:
    broken = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\ndata: {"error": {"message": "gone"}}\n\n'
    events = told(Messages(), broken, 4)
    assert events[-1] == {"type": "error", "error": {"type": "api_error", "message": "gone"}}
    body = json.loads(Messages().error(429, b'{"error": {"message": "slow down", "code": "x"}}'))
    assert body == {"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}}
    mixed = stream(calls(0, "{", id="a", name="f"), calls(1, "{}", id="b", name="g"), calls(0, "}"))
    with pytest.raises(ApiError):
        told(Messages(), mixed, 10_000)
    cut = told(Messages(), stream({"content": "x"}, finish="length"), 50)
    assert cut[-2]["delta"]["stop_reason"] == "max_tokens"


def test_what_messages_read_and_a_whole_message() -> None:
    body = {
        "model": "m",
        "max_tokens": 5,
        "system": [{"type": "text", "text": "You help.", "cache_control": {"type": "ephemeral"}}],
        "stop_sequences": ["END"],
        "top_k": 4,
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "metadata": {"user_id": "u"},
        "messages": [
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "x", "signature": "y"},
                    {"type": "text", "text": "look"},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "no"}],
                     "is_error": True},
                    {"type": "text", "text": "and?"},
                    {"type": "image", "source": PIXEL},
                ],
            },
        ],
    }  # fmt: skip
    dialect = Messages()
    document = dialect.read(json.dumps(body).encode()).document
    assert [m["role"] for m in document["messages"]] == ["system", "user", "assistant", "tool", "user"]
    assert json.loads(document["messages"][2]["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
    assert document["messages"][3] == {"role": "tool", "tool_call_id": "t1", "content": "Error: no"}
    assert document["messages"][4]["content"][1]["image_url"]["url"] == "data:image/png;base64,AA=="
    assert (document["stop"], document["top_k"], document["user"]) == (["END"], 4, "u")
    assert (document["tool_choice"], document["parallel_tool_calls"]) == ("required", False)
    message = {"content": "", "tool_calls": [{"id": "t2", "function": {"name": "f", "arguments": '{"b":2}'}}]}
    answer = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": USAGE}
    found = json.loads(dialect.whole(json.dumps(answer).encode()))
    assert found["content"] == [{"type": "tool_use", "id": "t2", "name": "f", "input": {"b": 2}}]
    assert (found["stop_reason"], found["usage"]["input_tokens"]) == ("tool_use", 8)


def test_no_field_of_anthropics_client_is_left_out_without_a_word() -> None:
    known = set(anthropic.types.message_create_params.MessageCreateParamsBase.__annotations__)
    assert known - MESSAGES_TAKEN == {"model"}
    some = {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "integer"}}}
    nulls = dict.fromkeys(MESSAGES_TAKEN - {"messages", "max_tokens"})
    for body in ({"output_config": some}, {**nulls, "output_config": some, "speed": "standard"}):
        document = Messages().read(json.dumps({**ASKED[Messages], **body}).encode()).document
        assert document["reasoning_effort"] == "low"
        assert document["response_format"]["json_schema"]["schema"] == {"type": "integer"}
        assert document.keys() & known == {"model", "messages", "max_tokens"}
    error = bad_request("A schema: tools[1].function.parameters/a: unknown", "tools[1].function.parameters")
    said = json.loads(Messages().error(400, error.body))["error"]["message"]
    assert said == "A schema: tools[1].input_schema/a: unknown"


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 0},
        {"max_tokens": None},
        {"messages": []},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"system": [{"type": "image"}]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "x"}},
        {"tool_choice": {"type": "any"}},
        {"stop_sequences": [5]},
        {"mcp_servers": [{}]},
        {"container": "c"},
        {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
        {"inference_geo": "us"},
        {"speed": "fast"},
        {"output_format": {"type": "json_schema", "schema": {}}},
        {"output_config": "x"},
        {"output_config": {"task_budget": 5}},
        {"output_config": {"format": {"type": "yaml", "schema": {}}}},
        {"output_config": {"format": {"type": "json_schema"}}},
    ],
)
def test_what_messages_refuse(change: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        Messages().read(json.dumps({**ASKED[Messages], **change}).encode())
    assert caught.value.status == 400


def vectors(*rows: list[float]) -> bytes:
    data = [{"index": n, "embedding": row} for n, row in enumerate(rows)]
    return json.dumps({"data": data[::-1], "usage": {"prompt_tokens": 6, "total_tokens": 6}}).encode()


def test_rerank_orders_by_similarity() -> None:
    dialect = Rerank()
    body = {"model": "e", "query": "q", "documents": ["far", {"text": "near"}, "half"], "top_n": 2}
    asked = dialect.read(json.dumps({**body, "return_documents": True}).encode())
    assert asked.document["input"] == ["q", "far", "near", "half"]
    found = json.loads(dialect.whole(vectors([1, 0], [0, 1], [2, 0], [1, 1])))
    assert [r["index"] for r in found["results"]] == [1, 2]
    assert found["results"][0]["relevance_score"] == pytest.approx(1.0)
    assert found["results"][1]["relevance_score"] == pytest.approx(math.sqrt(0.5))
    assert found["results"][0]["document"] == {"text": "near"}
    assert found["usage"]["total_tokens"] == 6
    for wrong in (
        {"query": ""},
        {"documents": []},
        {"documents": [3]},
        {"top_n": 0},
        {"return_documents": 1},
    ):
        with pytest.raises(ApiError):
            Rerank().read(json.dumps({**body, **wrong}).encode())
    with pytest.raises(ApiError):
        dialect.whole(vectors([1, 0]))


def test_score_compares_pairs() -> None:
    dialect = Score()
    dialect.read(json.dumps({"model": "e", "text_1": "a", "text_2": ["b", "c"]}).encode())
    found = json.loads(dialect.whole(vectors([1, 0], [1, 0], [0, 1])))
    assert [row["score"] for row in found["data"]] == [pytest.approx(1.0), pytest.approx(0.0)]
    with pytest.raises(ApiError):
        Score().read(json.dumps({"model": "e", "text_1": ["a", "b"], "text_2": ["c"]}).encode())
    assert cosine([0.0], [1.0]) == 0.0
    assert cosine([1.0, 2.0], [1.0]) == 0.0
