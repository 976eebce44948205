"""Functions and their calls as text, in the form of Hermes, for models whose template has no place for them.

Training writes rows so and the embedded engine asks so: a model hears at work what it heard when it learnt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

INTRODUCTION = "You can call these functions. Answer a call with <tool_call>{...}</tool_call>."
BEGIN, END = "<tool_call>", "</tool_call>"

CALL_FIRST = "tool_call_first"
"""What a template is told when the answer has to be a call: it writes ``BEGIN`` for the model."""


def functions_text(functions: list[Mapping[str, Any]]) -> str:
    """What a model is told of these functions: of each name, description and parameters, in this order."""
    lines = [
        _json(
            {
                "name": function.get("name"),
                "description": function.get("description") or "",
                "parameters": function.get("parameters") or {},
            }
        )
        for function in functions
    ]
    return "\n".join([INTRODUCTION, "<tools>", *lines, "</tools>"])


def call_text(name: str, arguments: Any) -> str:
    """A call as a model writes it. ``arguments`` are parsed."""
    return f"{BEGIN}{_json({'name': name, 'arguments': arguments})}{END}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
