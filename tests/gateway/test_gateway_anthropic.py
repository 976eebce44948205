"""Tool use in Anthropic's format: the unmodified SDK over a real socket, to an engine that speaks chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import pytest
from gateway_rig import PROMPT_TOKENS, SECRET, rig, run

pytestmark = pytest.mark.live

TOOLS: Any = [
    {
        "name": name,
        "description": name,
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
    for name in ("weather", "clock")
]


def call(index: int, arguments: str, **more: Any) -> dict[str, Any]:
    """A part of a tool call as chat engines stream it; ``name`` and ``id`` on the first."""
    name = {"name": more.pop("name")} if "name" in more else {}
    return {"index": index, **more, "function": {**name, "arguments": arguments}}


CALLS = [
    call(0, "", id="call_a", type="function", name="weather"),
    *(call(0, piece) for piece in ('{"ci', 'ty": "Tar', 'tu 🌧"', "}")),
    call(1, "", id="call_b", type="function", name="clock"),
    call(1, "{}"),
]


def turn(script: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": json.dumps(script)}]


def test_streamed_tool_use_and_the_turn_after_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r, anthropic.AsyncAnthropic(base_url=r.url, api_key=SECRET) as c:
            words = turn({"tokens": 0, "calls": CALLS, "finish": "tool_calls", "split": 7})
            kinds: list[str] = []
            async with c.messages.stream(
                model="m", max_tokens=99, messages=words, tools=TOOLS, tool_choice={"type": "any"}
            ) as stream:
                async for event in stream:
                    if event.type in ("content_block_start", "content_block_stop", "message_stop"):
                        kinds.append(event.type)
                final = await stream.get_final_message()
            assert kinds == ["content_block_start", "content_block_stop"] * 2 + ["message_stop"]
            assert final.stop_reason == "tool_use"
            blocks = [(b.id, b.name, b.input) for b in final.content if b.type == "tool_use"]
            assert blocks == [("call_a", "weather", {"city": "Tartu 🌧"}), ("call_b", "clock", {})]
            assert len(final.content) == 2
            asked = r.engines[0].requests[0]
            assert [tool["function"]["name"] for tool in asked["tools"]] == ["weather", "clock"]
            assert asked["tool_choice"] == "required"

            results: Any = [
                {"type": "tool_result", "tool_use_id": "call_a", "content": "rain"},
                {"type": "tool_result", "tool_use_id": "call_b", "content": json.dumps({"tokens": 2})},
            ]
            said: Any = [*words, {"role": "assistant", "content": final.content}]
            said.append({"role": "user", "content": results})
            async with c.messages.stream(model="m", max_tokens=99, messages=said, tools=TOOLS) as stream:
                assert "".join([text async for text in stream.text_stream]) == "t0 t1 "
                after = await stream.get_final_message()
            assert after.stop_reason == "end_turn"
            assert after.usage.input_tokens + (after.usage.cache_read_input_tokens or 0) == PROMPT_TOKENS
            assert after.usage.output_tokens == 2
            sent = r.engines[0].requests[1]["messages"]
            assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool"]
            calls = [
                (x["id"], x["function"]["name"], x["function"]["arguments"]) for x in sent[1]["tool_calls"]
            ]
            assert [(n, f, json.loads(a)) for n, f, a in calls] == blocks
            assert [message["tool_call_id"] for message in sent[2:]] == ["call_a", "call_b"]
            lines = await r.settled(2)
            assert [(x["endpoint"], x["outcome"], x["output_tokens"]) for x in lines] == [
                ("messages", "ok", 0),
                ("messages", "ok", 2),
            ]

    run(work)


def test_arguments_of_two_calls_that_an_engine_mixes_are_an_error_and_never_one_call(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r, anthropic.AsyncAnthropic(base_url=r.url, api_key=SECRET) as c:
            mixed = [CALLS[0], CALLS[5], *CALLS[1:5]]
            words = turn({"tokens": 0, "calls": mixed, "finish": "tool_calls"})
            with pytest.raises(anthropic.APIStatusError, match="mixed the arguments"):
                async with c.messages.stream(model="m", max_tokens=9, messages=words, tools=TOOLS) as stream:
                    await stream.get_final_message()
            await r.settled(1)

    run(work)
