"""A record in one of OpenAI's training formats becomes messages of plain text, or a reason why it cannot.

Chat (``messages``, with ``tools`` and ``tool_calls``), completion (``prompt``, ``completion``) and preference
(``input``, ``preferred_output``, ``non_preferred_output``) rows are read. Tools and calls are written into
the text in the form of ``domain.tool_text``, which models without a template for tools can learn and the
embedded engine asks them in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenmill.domain.tool_text import call_text, functions_text
from tokenmill.line.rows import ROLES


class BrokenRowError(Exception):
    """A record that is no training row; the text is the reason."""


def conversation(values: Mapping[str, Any], system: str) -> tuple[list[dict[str, str]], str, tuple[str, ...]]:
    """Messages, the worse answer of a preference row (else empty), and the columns that were spent on them.

    ``system`` is put before rows that bring no system message. Raises ``BrokenRowError``.
    """
    if "preferred_output" in values:
        return _preference(values, system)
    if "messages" in values:
        messages = checked_messages(values["messages"])
        tools = tools_text(values.get("tools"))
        return _with_system(messages, system, tools), "", ("messages", "tools", "parallel_tool_calls")
    if "prompt" in values and "completion" in values:
        prompt, completion = values["prompt"], values["completion"]
        if not isinstance(prompt, str) or not isinstance(completion, str):
            raise BrokenRowError("'prompt' and 'completion' must be texts")
        return chat(system, prompt, completion), "", ("prompt", "completion")
    raise BrokenRowError("neither 'messages' nor 'prompt' and 'completion', and intake has no templates")


def chat(system: str, prompt: str, completion: str) -> list[dict[str, str]]:
    """One question and its answer."""
    said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return [{"role": "system", "content": system}, *said] if system else said


def _preference(values: Mapping[str, Any], system: str) -> tuple[list[dict[str, str]], str, tuple[str, ...]]:
    given = values.get("input")
    if not isinstance(given, Mapping) or not isinstance(given.get("messages"), list):
        raise BrokenRowError("'input' has no 'messages'")
    sides = []
    for name in ("preferred_output", "non_preferred_output"):
        said = values.get(name)
        if not isinstance(said, list) or len(said) != 1:
            raise BrokenRowError(f"'{name}' is not a list of one assistant message")
        sides.append(checked_messages([*given["messages"], *said]))
    if sides[0][-1]["content"] == sides[1][-1]["content"]:
        raise BrokenRowError("the preferred answer and the other one are equal")
    messages = _with_system(sides[0], system, tools_text(given.get("tools")))
    return messages, sides[1][-1]["content"], ("input", "preferred_output", "non_preferred_output")


def _with_system(messages: list[dict[str, str]], system: str, tools: str) -> list[dict[str, str]]:
    if messages[0]["role"] in ("system", "developer"):
        first, rest = messages[0], messages[1:]
    else:
        first, rest = {"role": "system", "content": system}, messages
    text = "\n\n".join(part for part in (first["content"], tools) if part)
    return [{"role": first["role"], "content": text}, *rest] if text else rest


def checked_messages(messages: Any) -> list[dict[str, str]]:
    """Messages with role and text. Raises ``BrokenRowError`` that names the first bad one."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise BrokenRowError("'messages' is not a list with messages")
    found = []
    for at, message in enumerate(messages):
        where = f"messages[{at}]"
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise BrokenRowError(f"{where} has no role out of {', '.join(ROLES)}")
        role = "tool" if message["role"] == "function" else message["role"]
        text = _content(message.get("content"), where, bool(message.get("tool_calls")))
        text = "\n".join(part for part in (text, *_calls(message.get("tool_calls"), where)) if part)
        if role == "assistant" and not text.strip() and at < len(messages) - 1:
            raise BrokenRowError(f"{where} is an empty turn of the assistant")
        plain = {"role": role, "content": text}
        if message.get("weight") is not None:
            if message["weight"] not in (0, 1):
                raise BrokenRowError(f"{where}.weight is neither 0 nor 1")
            plain |= {"weight": "0"} if message["weight"] == 0 else {}
        found.append(plain)
    if found[-1]["role"] != "assistant":
        raise BrokenRowError("the last message is not the assistant's")
    if found[-1].get("weight") == "0":
        raise BrokenRowError("the last message has weight 0: nothing of the row would be learnt")
    if not any(m["role"] == "user" for m in found[:-1]):
        raise BrokenRowError("there is no user message before the answer")
    return found


def _content(content: Any, where: str, calls: bool) -> str:
    if content is None and calls:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        kinds = [part.get("type") if isinstance(part, Mapping) else None for part in content]
        other = [kind for kind in kinds if kind not in ("text", "refusal")]
        if other:
            raise BrokenRowError(f"{where}.content has a part of type {other[0]!r}; only text is learnt")
        return "".join(str(part.get("text") or part.get("refusal") or "") for part in content)
    raise BrokenRowError(f"{where}.content is not a text")


def _calls(calls: Any, where: str) -> list[str]:
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise BrokenRowError(f"{where}.tool_calls is not a list")
    texts = []
    for at, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise BrokenRowError(f"{where}.tool_calls[{at}] names no function")
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except (TypeError, ValueError) as error:
            raise BrokenRowError(f"{where}.tool_calls[{at}].arguments is no JSON: {error}") from error
        texts.append(call_text(function["name"], arguments))
    return texts


def tools_text(tools: Any) -> str:
    """What the model is told of its functions; empty without any."""
    if not tools:
        return ""
    if not isinstance(tools, list) or not all(
        isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping) for tool in tools
    ):
        raise BrokenRowError("'tools' is not a list of functions")
    return functions_text([tool["function"] for tool in tools])
