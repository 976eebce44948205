"""Tools of a chat request: what is checked before an engine has them, and what llama.cpp does not do itself.

llama.cpp takes ``required`` and a named function as a wish: the model may say anything before its call, and a
small one never comes to it. So such a request goes to it as one for an answer of a JSON schema, which is one
call of a function allowed, or a list of calls, and ``forced`` makes of that answer what the client asked for.
"""

from __future__ import annotations

from typing import Any

from tokenmill.domain.tool_text import CALL_FIRST
from tokenmill.gateway.choices import told_once
from tokenmill.gateway.errors import bad_request

CHOICES = ("none", "auto", "required")
CALLS_MOST = 16
"""Of one answer that is held to calls."""


NONE = {"type": "object", "additionalProperties": False}
"""The parameters of a function that states none, which is one without parameters to OpenAI."""


def check_tools(document: dict[str, Any]) -> None:
    """Raise ``ApiError`` 400 for tools or a choice of one that no engine can mean."""
    tools = document.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise bad_request("'tools' must be a list.", "tools")
    tools = tools or []
    for number, tool in enumerate(tools):
        _check_tool(tool, f"tools[{number}]")
    if document.get("parallel_tool_calls") not in (None, True, False):
        raise bad_request("'parallel_tool_calls' must be true or false.", "parallel_tool_calls")
    choice = document.get("tool_choice")
    if choice is None or choice in ("none", "auto"):
        return
    if not tools:
        raise bad_request("'tool_choice' asks for a call, and there are no 'tools'.", "tool_choice")
    if isinstance(choice, str):
        if choice not in CHOICES:
            raise bad_request(f"'tool_choice' must be {', '.join(CHOICES)} or an object.", "tool_choice")
    elif not isinstance(choice, dict):
        raise bad_request("'tool_choice' must be a string or an object.", "tool_choice")
    elif choice.get("type") == "function":
        check_named(name_of(choice), tools)


def must_call(document: dict[str, Any]) -> bool:
    """Whether the answer has to be a call. The document is checked."""
    choice = document.get("tool_choice")
    if isinstance(choice, dict):
        return bool(choice["type"] == "function" or choice["allowed_tools"]["mode"] == "required")
    return bool(choice == "required")


def shape_changes(document: dict[str, Any]) -> dict[str, Any]:
    """What to change for llama.cpp, so that it can follow the schema of an answer."""
    shape = document.get("response_format")
    if not isinstance(shape, dict) or shape.get("type") != "json_schema":
        return {}
    named = shape["json_schema"]
    return {"response_format": {**shape, "json_schema": {**named, "schema": told_once(named["schema"])}}}


def embedded_changes(document: dict[str, Any]) -> dict[str, Any]:
    """What to change for llama.cpp, so that its answer is of the functions that may be called."""
    choice, tools = document.get("tool_choice"), document.get("tools") or []
    names = _allowed(choice, tools)
    if not must_call(document):
        allowed = [tool for tool in tools if name_of(tool) in names]
        return {"tools": allowed, "tool_choice": "auto"} if isinstance(choice, dict) else {}
    one = isinstance(choice, dict) and choice["type"] == "function"
    several = document.get("parallel_tool_calls") is True and not one
    schema = _schema({n: tool["function"] for n, tool in enumerate(tools) if name_of(tool) in names}, several)
    return {
        "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": {"name": "call", "schema": schema}},
        "chat_template_kwargs": {**(document.get("chat_template_kwargs") or {}), CALL_FIRST: True},
    }


def _schema(functions: dict[int, dict[str, Any]], several: bool) -> dict[str, Any]:
    """One call: a name and the arguments that belong to it, in this order. Or a list of such."""
    calls, parameters = [], {}
    for number, function in functions.items():
        field = f"tools[{number}].function.parameters"
        place = f"#/$defs/{field}"
        parameters[field] = _moved(told_once(function.get("parameters") or NONE), place)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": {"$ref": place}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    if several:
        many = {"type": "array", "items": {"anyOf": calls}, "minItems": 1, "maxItems": CALLS_MOST}
        return {**many, "$defs": parameters}
    return {"anyOf": calls, "$defs": parameters}


def _moved(schema: Any, place: str) -> Any:
    """``schema`` with its references to itself, now that it stands at ``place``."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    target = schema.get("$ref")
    if isinstance(target, str) and target.startswith("#"):
        moved["$ref"] = place + target[1:]
    return moved


def _allowed(choice: Any, tools: list[dict[str, Any]]) -> set[str]:
    if not isinstance(choice, dict):
        return {name_of(tool) for tool in tools}
    listed = [choice] if choice["type"] == "function" else choice["allowed_tools"]["tools"]
    return {name_of(tool) for tool in listed}


def name_of(tool: dict[str, Any]) -> str:
    """The function that a tool, a choice or a call is of; ``""`` for another kind."""
    function = tool.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def _check_tool(tool: Any, where: str) -> None:
    if not isinstance(tool, dict):
        raise bad_request(f"'{where}' must be an object.", where)
    if tool.get("type", "function") != "function":
        return
    if not name_of(tool):
        raise bad_request(f"'{where}.function.name' must be a string.", f"{where}.function.name")
    if not isinstance(tool["function"].get("parameters", {}), dict | None):
        text = f"'{where}.function.parameters' must be a JSON schema, an object."
        raise bad_request(text, f"{where}.function.parameters")


def check_named(name: str, tools: list[dict[str, Any]]) -> None:
    """Raise ``ApiError`` 400 when no tool is called so."""
    if name not in [name_of(tool) for tool in tools]:
        raise bad_request(f"'tool_choice' names '{name[:100]}', which is not in 'tools'.", "tool_choice")
