"""An Anthropic Messages request as a chat request. What cannot be done is a 400 that names the field."""

from __future__ import annotations

from typing import Any

import orjson

from tokenmill.gateway.errors import ApiError, bad_request

TAKEN = frozenset(
    (
        *(
            "messages",
            "system",
            "max_tokens",
            "stop_sequences",
            "tools",
            "tool_choice",
            "metadata",
            "thinking",
        ),
        *("output_config", "service_tier", "cache_control", "diagnostics", "user_profile_id", "workspace_id"),
        *("betas", "n", "container", "context_management", "mcp_servers", "output_format", "inference_geo"),
        "speed",
    )
)
ABSENT = {
    "mcp_servers": "Call them yourself, as tools.",
    "container": "Nothing is run here; tools are the caller's.",
    "context_management": "Send shorter 'messages' when they have grown too long.",
    "output_format": "It is 'output_config.format' now.",
    "inference_geo": "Where a tenant's requests may be answered is set for the tenant.",
}


def chat_of(document: dict[str, Any]) -> dict[str, Any]:
    """The chat document. Raises ``ApiError`` 400."""
    limit = document.get("max_tokens")
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise bad_request("'max_tokens' must be a whole number of at least 1.", "max_tokens")
    for name, hint in ABSENT.items():
        if document.get(name) not in (None, [], {}, {"edits": []}):
            raise _unsupported(name, hint)
    if document.get("speed") not in (None, "standard"):
        raise _unsupported("speed", "It may be 'standard'.")
    chat = {key: value for key, value in document.items() if key not in TAKEN}
    chat["messages"] = messages_of(document)
    chat["max_tokens"] = limit
    if document.get("stop_sequences"):
        chat["stop"] = document["stop_sequences"]
    if document.get("tools"):
        chat["tools"] = _tools(document["tools"])
    _tool_choice(document.get("tool_choice"), chat)
    _output(document.get("output_config"), chat)
    metadata = document.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("user_id"), str):
        chat["user"] = metadata["user_id"]
    return chat


def _unsupported(param: str, hint: str) -> ApiError:
    return bad_request(f"'{param}' is not supported. {hint}", param, "unsupported_parameter")


def _output(config: Any, chat: dict[str, Any]) -> None:
    """The effort of an answer and the schema that it has to fit."""
    if config is None:
        return
    if not isinstance(config, dict):
        raise bad_request("'output_config' must be an object.", "output_config")
    for name in sorted(config.keys() - {"effort", "format"}):
        raise _unsupported(f"output_config.{name[:100]}", "It may have an 'effort' and a 'format'.")
    if config.get("effort") is not None:
        chat["reasoning_effort"] = config["effort"]
    shape = config.get("format")
    if shape is None:
        return
    schema = shape.get("schema") if isinstance(shape, dict) else None
    if not isinstance(schema, dict) or shape.get("type") != "json_schema":
        text = "'output_config.format' must be of type json_schema, with a 'schema'."
        raise bad_request(text, "output_config.format")
    chat["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def messages_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """System and messages in chat's form; also what ``count_tokens`` counts."""
    found: list[dict[str, Any]] = []
    system = document.get("system")
    if system:
        found.append({"role": "system", "content": _texts(system, "system")})
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request("'messages' must be a list with at least one message.", "messages")
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role == "user":
            found += _user(message.get("content"), where)
        elif role == "assistant":
            found.append(_assistant(message.get("content"), where))
        elif role == "system":
            found.append({"role": "system", "content": _texts(message.get("content"), where)})
        else:
            raise bad_request(f"'{where}.role' must be user or assistant.", f"{where}.role")
    return found


def tools_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The tools in chat's form."""
    return _tools(document["tools"]) if document.get("tools") else []


def _blocks(content: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise bad_request(f"'{where}.content' must be a text or a list of blocks.", f"{where}.content")
    return content


def _texts(content: Any, where: str) -> str:
    """The text blocks of ``content``, which may hold nothing else."""
    texts = []
    for block in _blocks(content, where):
        if block.get("type") != "text" or not isinstance(block.get("text"), str):
            raise bad_request(f"'{where}' may only hold text blocks.", where)
        texts.append(block["text"])
    return "\n\n".join(texts)


def _user(content: Any, where: str) -> list[dict[str, Any]]:
    """Results of tools first, each a message of its own, then what the user says."""
    found: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for block in _blocks(content, where):
        if block.get("type") == "tool_result":
            found.append(_tool_result(block, where))
        else:
            parts.append(_part(block, where))
    if parts:
        if all(part["type"] == "text" for part in parts):
            found.append({"role": "user", "content": "\n\n".join(part["text"] for part in parts)})
        else:
            found.append({"role": "user", "content": parts})
    if not found:
        raise bad_request(f"'{where}.content' is empty.", f"{where}.content")
    return found


def _part(block: dict[str, Any], where: str) -> dict[str, Any]:
    kind, source = block.get("type"), block.get("source")
    if kind == "text" and isinstance(block.get("text"), str):
        return {"type": "text", "text": block["text"]}
    if isinstance(source, dict):
        data, media = source.get("data"), source.get("media_type")
        if kind == "image" and source.get("type") == "base64" and isinstance(data, str):
            return {"type": "image_url", "image_url": {"url": f"data:{media};base64,{data}"}}
        if kind == "image" and source.get("type") == "url" and isinstance(source.get("url"), str):
            return {"type": "image_url", "image_url": {"url": source["url"]}}
        if kind == "document" and source.get("type") == "text" and isinstance(data, str):
            return {"type": "text", "text": data}
    message = f"'{where}' holds a block of type {str(kind)[:50]!r}; text, image and text documents are known."
    raise bad_request(message, where, "unsupported_parameter")


def _tool_result(block: dict[str, Any], where: str) -> dict[str, Any]:
    name, content = block.get("tool_use_id"), block.get("content")
    if not isinstance(name, str):
        raise bad_request(f"'{where}' has a tool_result without tool_use_id.", where)
    parts = [_part(b, where) for b in _blocks(content, where)] if content is not None else []
    text: Any = "\n".join(part["text"] for part in parts if part["type"] == "text")
    if any(part["type"] != "text" for part in parts):
        text = parts
    elif block.get("is_error"):
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": name, "content": text}


def _assistant(content: Any, where: str) -> dict[str, Any]:
    texts, calls = [], []
    for block in _blocks(content, where):
        kind = block.get("type")
        if kind == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
        elif kind == "tool_use" and isinstance(block.get("id"), str) and isinstance(block.get("name"), str):
            arguments = orjson.dumps(block.get("input") or {}).decode()
            function = {"name": block["name"], "arguments": arguments}
            calls.append({"id": block["id"], "type": "function", "function": function})
        elif kind not in ("thinking", "redacted_thinking"):  # thoughts are not said again
            raise bad_request(f"'{where}' holds a block that is not known: {str(kind)[:50]!r}.", where)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) or None}
    if calls:
        message["tool_calls"] = calls
    elif not texts:
        message["content"] = ""
    return message


def _tools(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise bad_request("'tools' must be a list.", "tools")
    tools = []
    for number, tool in enumerate(value):
        where = f"tools[{number}]"
        schema = tool.get("input_schema") if isinstance(tool, dict) else None
        if not isinstance(schema, dict) or not isinstance(tool.get("name"), str):
            message = f"'{where}' must have a name and an input_schema; tools of the server are not offered."
            raise bad_request(message, where, "unsupported_parameter")
        function = {"name": tool["name"], "parameters": schema}
        if isinstance(tool.get("description"), str):
            function["description"] = tool["description"]
        tools.append({"type": "function", "function": function})
    return tools


def _tool_choice(value: Any, chat: dict[str, Any]) -> None:
    if value is None:
        return
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "tool" and isinstance(value.get("name"), str):
        chat["tool_choice"] = {"type": "function", "function": {"name": value["name"]}}
    elif kind in ("auto", "any", "none"):
        chat["tool_choice"] = "required" if kind == "any" else kind
    else:
        raise bad_request("'tool_choice.type' must be auto, any, tool or none.", "tool_choice")
    if value.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False
