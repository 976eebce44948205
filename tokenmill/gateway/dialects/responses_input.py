"""A Responses request as a chat request.

What the engine cannot do is a 400 that names the field: stored state, built-in tools, background work. Fields
that are not known here pass to the engine.
"""

from __future__ import annotations

from typing import Any

from tokenmill.gateway.body import TOKENS_MOST, whole_of
from tokenmill.gateway.errors import ApiError, bad_request

# What chat does not know, or calls by another name.
TAKEN = frozenset(
    (
        *("input", "instructions", "max_output_tokens", "tools", "tool_choice", "text", "reasoning"),
        *("store", "metadata", "include", "truncation", "background", "previous_response_id", "conversation"),
        *("prompt", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
        *("max_tool_calls", "stream_options", "top_logprobs", "context_management", "n"),
    )
)


def chat_of(document: dict[str, Any]) -> dict[str, Any]:
    """The chat document. Raises ``ApiError`` 400."""
    _refuse_state(document)
    chat = {key: value for key, value in document.items() if key not in TAKEN}
    messages = _messages(document.get("input"))
    instructions = document.get("instructions")
    if instructions is not None:
        if not isinstance(instructions, str):
            raise bad_request("'instructions' must be a text.", "instructions")
        messages.insert(0, {"role": "system", "content": instructions})
    chat["messages"] = _one_system(messages)
    limit = whole_of(document, "max_output_tokens", 1, TOKENS_MOST)
    if limit is not None:
        chat["max_completion_tokens"] = limit
    if document.get("tools"):
        chat["tools"] = _tools(document["tools"])
    if document.get("tool_choice") is not None:
        chat["tool_choice"] = _tool_choice(document["tool_choice"])
    if document.get("top_logprobs"):
        chat["logprobs"], chat["top_logprobs"] = True, document["top_logprobs"]
    _text(document, chat)
    effort = document["reasoning"].get("effort") if isinstance(document.get("reasoning"), dict) else None
    if effort is not None:
        chat["reasoning_effort"] = effort
    return chat


def _refuse_state(document: dict[str, Any]) -> None:
    for name in ("previous_response_id", "conversation", "prompt"):
        if document.get(name) is not None:
            raise unsupported(name, "Responses are not stored here; send the whole conversation in 'input'.")
    if document.get("background"):
        raise unsupported("background", "Use /v1/batches for work that nobody waits for.")


def unsupported(param: str, hint: str) -> ApiError:
    return bad_request(f"'{param}' is not supported. {hint}", param, "unsupported_parameter")


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
    return messages


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
    raise unsupported(
        where, "Parts may be input_text, output_text, refusal and input_image with an image_url."
    )


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
        function = {k: v for k, v in tool.items() if k != "type" and v is not None}
        tools.append({"type": "function", "function": function})
    return tools


def _tool_choice(value: Any) -> Any:
    if value in ("auto", "none", "required"):
        return value
    if isinstance(value, dict) and value.get("type") == "function" and isinstance(value.get("name"), str):
        return {"type": "function", "function": {"name": value["name"]}}
    raise unsupported("tool_choice", "It may be auto, none, required or one function.")


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
        schema = {k: v for k, v in found.items() if k != "type"}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif kind != "text":
        raise bad_request("'text.format.type' must be text, json_object or json_schema.", "text.format.type")
