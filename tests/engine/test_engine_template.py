"""A template without a place for tools: what it is given for them, and the header that it is read from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import jinja2
import pytest

from tokenmill.domain.errors import CorruptWeightsError
from tokenmill.engine.template import template_of, with_tools
from tokenmill.line.conversation import conversation

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nBEGIN well<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PARAMETERS = {"type": "object", "properties": {"zone": {"type": "string"}, "at": {"enum": ["é", "<b>"]}}}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "clock", "description": "What time?", "parameters": PARAMETERS},
    },
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {}}},
]
CALLS = [
    {"id": "1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "Åland"}'}},
    {"id": "2", "type": "function", "function": {"name": "now", "arguments": "{}"}},
]
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "What time is it?"},
    {"role": "assistant", "content": "Let me see.", "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "1", "content": "12:00"},
    {"role": "assistant", "content": None, "tool_calls": CALLS[:1]},
]


def rendered(template: str, messages: Any, **more: Any) -> str:
    """As engines render: ``tojson`` without HTML's escapes."""
    environment = jinja2.Environment()
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(template).render(messages=messages, **more)


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_a_model_hears_of_tools_as_it_did_in_training(system: list[dict[str, Any]]) -> None:
    row = {"messages": [*system, *TALK], "tools": TOOLS}
    learnt, _, _ = conversation(json.loads(json.dumps(row)), "")
    expected = rendered(CHATML, learnt, add_generation_prompt=False)
    assert rendered(with_tools(CHATML), row["messages"], tools=TOOLS, add_generation_prompt=False) == expected
    assert expected.count("<tool_call>") == 4  # one in the introduction


def test_without_tools_a_conversation_reads_as_before() -> None:
    for talk in ([TALK[0]], [{"role": "system", "content": ""}, TALK[0]]):
        before = rendered(CHATML, talk, add_generation_prompt=True)
        assert rendered(with_tools(CHATML), talk, add_generation_prompt=True) == before
        assert rendered(with_tools(CHATML), talk, add_generation_prompt=True, tool_call_first=True) == before


def test_a_call_that_has_to_be_is_begun() -> None:
    asked = {"tools": TOOLS, "add_generation_prompt": True}
    plain = rendered(with_tools(CHATML), TALK[:1], **asked)
    assert rendered(with_tools(CHATML), TALK[:1], tool_call_first=True, **asked) == plain + "<tool_call>"


def test_a_template_that_knows_tools_and_none_at_all_stay() -> None:
    assert with_tools("{{ tools }}") == "{{ tools }}"
    assert with_tools("") == ""


def test_the_template_is_read_from_behind_all_kinds_of_fields(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_bool("a", True)
    writer.add_float64("b", 0.5)
    writer.add_array("words", ["one", "two"])
    writer.add_array("scores", [0.5, 1.5])
    writer.add_chat_template(CHATML)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert template_of(path) == CHATML
    data = path.read_bytes()
    for end in range(5, len(data) - 8, 7):
        path.write_bytes(data[:end])
        with pytest.raises(CorruptWeightsError, match=r"m.gguf cannot be read"):
            template_of(path)
    path.write_bytes(b"GGUF" + (1).to_bytes(4, "little") + data[8:])
    with pytest.raises(CorruptWeightsError, match="version"):
        template_of(path)
    writer = gguf.GGUFWriter(path, "bert")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert template_of(path) == ""
