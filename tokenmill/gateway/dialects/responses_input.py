"""A Responses request as a chat request.

What cannot be done is a 400 that names the field (``responses_fields``). Fields that are not known here pass
to the engine.
"""

from __future__ import annotations

from typing import Any

from tokenmill.gateway.body import TOKENS_MOST, whole_of
from tokenmill.gateway.dialects.responses_fields import ABSENT, check_fields, unsupported, wants_logprobs
from tokenmill.gateway.errors import bad_request

# What chat does not know, or calls by another name.
TAKEN = frozenset(
    (
        *("input", "instructions", "max_output_tokens", "tools", "tool_choice", "text", "reasoning"),
        *("store", "metadata", "include", "truncation", "service_tier", "safety_identifier", "n"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "max_tool_calls"),
        *("stream_options", "top_logprobs", *ABSENT),
    )
)
FUNCTION = frozenset(("name", "description", "parameters", "strict"))


def chat_of(document: dict[str, Any]) -> dict[str, Any]:
    """The chat document. Raises ``ApiError`` 400."""
    check_fields(document)
    chat = {key: value for key, value in document.items() if key not in TAKEN}
    messages = _messages(document.get("input"))
    instructions = document.get("instructions")
    if instructions is not None:
        messages.insert(0, {"role": "system", "content": instructions})
    chat["messages"] = _one_system(messages)
    limit = whole_of(document, "max_output_tokens", 1, TOKENS_MOST)
    if limit is not None:
        chat["max_completion_tokens"] = limit
    if document.get("tools"):
        chat["tools"] = _tools(document["tools"])
    if document.get("tool_choice") is not None:
        chat["tool_choice"] = _tool_choice(document["tool_choice"])
    if wants_logprobs(document):
        chat["logprobs"], chat["top_logprobs"] = True, document.get("top_logprobs") or 0
    _text(document, chat)
    if (effort := (document.get("reasoning") or {}).get("effort")) is not None:
        chat["reasoning_effort"] = effort
    return chat


def _messages(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, str) and value:
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise bad_request("'input' must be a text or a list of items.", "input", "missing_required_parameter")
    messages: list[dict[str, Any]] = []
    for number, item in enumerate(value):
        where = f"input[{number}]"
        if not isinstance(item, dict):
            raise bad_request(f"'{where}' must be an object.", where)
        _add_item(messages, item, where)
    if not messages:
        raise bad_request("'input' has no message.", "input")
    _check_called(value)
    return messages


def _check_called(items: list[dict[str, Any]]) -> None:
    """An output without its call is one that no template can place."""
    called = {item["call_id"] for item in items if item.get("type") == "function_call"}
    for number, item in enumerate(items):
        if item.get("type") == "function_call_output" and item["call_id"] not in called:
            text = f"No tool call found for function call output with call_id {item['call_id'][:100]}."
            raise bad_request(text, f"input[{number}].call_id")


def _add_item(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        if role not in ("user", "assistant", "system", "developer"):
            raise bad_request(
                f"'{where}.role' must be user, assistant, system or developer.", f"{where}.role"
            )
        messages.append({"role": role, "content": _content(item.get("content"), f"{where}.content")})
    elif kind == "function_call":
        call = {
            "id": item.get("call_id"),
            "type": "function",
            "function": {"name": item.get("name"), "arguments": item.get("arguments") or "{}"},
        }
        if not isinstance(call["id"], str) or not isinstance(item.get("name"), str):
            raise bad_request(f"'{where}' must have a call_id and a name.", where)
        if not isinstance(item.get("arguments"), str | None):
            raise bad_request(f"'{where}.arguments' must be a JSON object as text.", f"{where}.arguments")
        if messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).append(call)
        else:
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind == "function_call_output":
        if not isinstance(item.get("call_id"), str):
            raise bad_request(f"'{where}' must have a call_id.", f"{where}.call_id")
        content = _content(item.get("output"), f"{where}.output")
        messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
    elif kind != "reasoning":  # thoughts of an earlier turn are not said again
        raise unsupported(f"{where}.type", f"Items of type {str(kind)[:50]!r} are not known here.")


def _content(value: Any, where: str) -> Any:
    """Texts alone become one text, which every chat template takes; with an image they stay a list."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise bad_request(f"'{where}' must be a text or a list of parts.", where)
    parts = [_part(part, f"{where}[{number}]") for number, part in enumerate(value)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_text", "output_text", "text") and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return {"type": "text", "text": part["refusal"]}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        image = {"url": part["image_url"], **({"detail": part["detail"]} if part.get("detail") else {})}
        return {"type": "image_url", "image_url": image}
    hint = "Parts may be input_text, output_text, refusal and input_image with an image_url, a data URL."
    raise unsupported(where, hint)


def _one_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join system messages that follow each other at the beginning: many templates take only one there."""
    leading: list[str] = []
    for message in messages:
        if message["role"] not in ("system", "developer") or not isinstance(message["content"], str):
            break
        leading.append(message["content"])
    if len(leading) < 2:
        return messages
    return [{"role": "system", "content": "\n\n".join(leading)}, *messages[len(leading) :]]


def _tools(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise bad_request("'tools' must be a list.", "tools")
    tools = []
    for number, tool in enumerate(value):
        where = f"tools[{number}]"
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise unsupported(where, "Only tools of type 'function' are; the caller runs them.")
        if not isinstance(tool.get("name"), str):
            raise bad_request(f"'{where}.name' must be a text.", f"{where}.name")
        for name in tool.keys() - FUNCTION - {"type"}:
            if tool[name] and tool[name] != ["direct"]:  # where it may be called from
                raise unsupported(f"{where}.{name}", "Leave it out.")
        function = {k: v for k, v in tool.items() if k in FUNCTION and v is not None}
        tools.append({"type": "function", "function": function})
    return tools


def _tool_choice(value: Any) -> Any:
    if value in ("auto", "none", "required"):
        return value
    if isinstance(value, dict) and value.get("type") == "function" and isinstance(value.get("name"), str):
        return {"type": "function", "function": {"name": value["name"]}}
    if isinstance(value, dict) and value.get("type") == "allowed_tools":
        listed = value.get("tools")
        if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):
            raise bad_request("'tool_choice.tools' must be a list of tools.", "tool_choice.tools")
        tools = [{"type": tool.get("type"), "function": {"name": tool.get("name")}} for tool in listed]
        return {"type": "allowed_tools", "allowed_tools": {"mode": value.get("mode"), "tools": tools}}
    raise unsupported("tool_choice", "It may be auto, none, required, one function or allowed_tools.")


def _text(document: dict[str, Any], chat: dict[str, Any]) -> None:
    text = document.get("text")
    if text is None:
        return
    if not isinstance(text, dict):
        raise bad_request("'text' must be an object.", "text")
    if text.get("verbosity") is not None:
        chat["verbosity"] = text["verbosity"]
    found = text.get("format")
    if found is None:
        return
    kind = found.get("type") if isinstance(found, dict) else None
    if kind == "json_object":
        chat["response_format"] = {"type": "json_object"}
    elif kind == "json_schema":
        if not isinstance(found.get("schema"), dict):
            raise bad_request("'text.format.schema' must be a JSON schema, an object.", "text.format.schema")
        schema = {k: v for k, v in found.items() if k != "type"}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif kind != "text":
        raise bad_request("'text.format.type' must be text, json_object or json_schema.", "text.format.type")
