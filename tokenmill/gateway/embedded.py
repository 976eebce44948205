"""What llama.cpp, the embedded engine, is not asked: what it would not count, fail at, or read over.

Nothing is sent or changed here. Fields that only it knows pass, but for those that go round a limit or
reach into what all who share an engine share: its slots, adapters and cache.
"""

from __future__ import annotations

from typing import Any

import orjson

from tokenmill.gateway.choices import check_choices
from tokenmill.gateway.errors import ApiError, bad_request
from tokenmill.gateway.tools import check_named, must_call, name_of

LLAMA_CPP = frozenset({"embedded"})
"""Engines whose usage is that of the first of several answers, so that the others would be nobody's."""

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
SHAPES = ("text", "json_object", "json_schema")
LOGPROBS_MOST = 20
"""As many as OpenAI's. llama.cpp gives those of its whole vocabulary when asked: megabytes for each token."""

LEFT_OUT = {
    "chat.completions": ("audio", "web_search_options", "functions", "function_call", "documents"),
    "completions": ("echo", "suffix", "best_of"),
    "embeddings": ("dimensions",),
}
"""What it reads over, by endpoint."""

READ_OVER = (
    *("guided_regex", "guided_choice", "use_beam_search", "length_penalty", "min_tokens", "stop_token_ids"),
    *("bad_words", "allowed_token_ids", "include_stop_str_in_output", "truncate_prompt_tokens"),
    *("prompt_logprobs", "return_token_ids", "chat_template"),
)
"""What vLLM takes and it reads over: clients that come from there would miss it late."""

INSTEAD = {
    "n_predict": "max_tokens",
    "n_cmpl": "n",
    "n_probs": "top_logprobs",
    "functions": "tools",
    "function_call": "tool_choice",
    "guided_json": "response_format",
    "guided_grammar": "grammar",
    "structured_outputs": "response_format",
    "repetition_penalty": "repeat_penalty",
}
"""What is counted and bounded by another name, and the names of others, OpenAI's old ones too."""

NEUTRAL = {"best_of": 1, "repetition_penalty": 1, "length_penalty": 1}
"""Values that ask for what happens anyway, beside none and false."""

WITHHELD = (
    *("id_slot", "lora", "n_cache_reuse"),
    *("verbose", "sse_ping_interval"),
    *("chat_format", "chat_parser", "generation_prompt", "parse_tool_calls", "preserved_tokens"),
    *("grammar_lazy", "grammar_triggers", "reasoning_control", "reasoning_budget_tokens"),
    *("reasoning_budget_start_tag", "reasoning_budget_end_tag", "reasoning_budget_end_tags"),
    "reasoning_budget_message",
)
"""Whatever their value: whose slot and adapter are used, reuse of what others' texts left in the cache, its
settings and prompt in the answer, pings by which a silent engine is known, and what its chat templates tell
it about themselves."""

LOOK_BACK = ("repeat_last_n", "dry_penalty_last_n")
LOOK_BACK_MOST = 1 << 20
"""Tokens. It sets aside some bytes for each, whether there are so many or not."""

REASONING_FORMATS = ("none", "auto", "deepseek", "deepseek-legacy")


def check_embedded(alias: str, endpoint: str, document: dict[str, Any]) -> None:
    """Raise ``ApiError`` 400 that names the field. The document is checked for what all engines need."""
    for name in sorted(document.keys() & {*LEFT_OUT[endpoint], *READ_OVER, *INSTEAD}):
        if document[name] not in (None, False, "", [], NEUTRAL.get(name)):
            hint = f"use '{INSTEAD[name]}'" if name in INSTEAD else "leave it out"
            raise _unsupported(f"The engine of `{alias}` has no '{name}'; {hint}.", name)
    if not document.keys().isdisjoint(WITHHELD):
        _check_withheld(alias, document)
    _check_bounds(document, ("logprobs", "top_logprobs"), LOGPROBS_MOST)
    _check_bounds(document, LOOK_BACK, LOOK_BACK_MOST)
    if document.get("reasoning_format") not in (None, *REASONING_FORMATS):
        text = f"'reasoning_format' must be {', '.join(REASONING_FORMATS)}."
        raise bad_request(text, "reasoning_format")
    if endpoint == "chat.completions":
        _check_chat(alias, document)


def _check_withheld(alias: str, document: dict[str, Any]) -> None:
    for name in WITHHELD:
        if document.get(name) is not None:
            text = f"'{name}' of the engine of `{alias}` is not a tenant's to set; leave it out."
            raise _unsupported(text, name)


def _check_bounds(document: dict[str, Any], names: tuple[str, ...], most: int) -> None:
    for name in names:
        said = document.get(name)
        if isinstance(said, int | float) and not 0 <= said <= most:
            raise bad_request(f"'{name}' must be from 0 to {most}.", name)


def _check_chat(alias: str, document: dict[str, Any]) -> None:
    for position, message in enumerate(document["messages"]):
        if message["role"] not in ROLES:
            where = f"messages[{position}].role"
            raise bad_request(f"'{where}' must be one of {', '.join(sorted(ROLES))}.", where)
        if message.get("tool_calls"):
            _check_calls(message["tool_calls"], f"messages[{position}].tool_calls")
    if document.get("modalities") not in (None, [], ["text"]):
        raise _unsupported(f"The engine of `{alias}` answers in text only.", "modalities")
    if document.get("response_format") is not None:
        _check_shape(document["response_format"])
    if document.get("tools"):
        _check_tools(alias, document, document["tools"])


def _check_tools(alias: str, document: dict[str, Any], tools: list[dict[str, Any]]) -> None:
    for number, tool in enumerate(tools):
        if tool.get("type") != "function":
            text = f"The engine of `{alias}` knows tools of type 'function' only."
            raise bad_request(text, f"tools[{number}].type", "unsupported_parameter")
        check_choices(tool["function"].get("parameters"), f"tools[{number}].function.parameters")
    choice, shape = document.get("tool_choice"), document.get("response_format")
    if isinstance(choice, dict) and choice.get("type") != "function":
        _check_allowed(alias, choice, tools)
    shaped = isinstance(shape, dict) and shape.get("type") not in (None, "text")
    if shaped and choice != "none" and not must_call(document):
        text = (
            f"The engine of `{alias}` answers in a 'response_format' or calls tools, not as it likes. "
            "Leave one out, or set 'tool_choice' to 'none' or 'required'."
        )
        raise bad_request(text, "response_format", "unsupported_parameter")


def _check_allowed(alias: str, choice: dict[str, Any], tools: list[dict[str, Any]]) -> None:
    allowed = choice.get("allowed_tools") if choice.get("type") == "allowed_tools" else None
    if not isinstance(allowed, dict) or allowed.get("mode") not in ("auto", "required"):
        text = f"The engine of `{alias}` knows a 'tool_choice' of type 'function' or 'allowed_tools'."
        raise bad_request(text, "tool_choice", "unsupported_parameter")
    listed = allowed.get("tools")
    if not isinstance(listed, list) or not listed or not all(isinstance(tool, dict) for tool in listed):
        raise bad_request("'tool_choice.allowed_tools.tools' must be a list of tools.", "tool_choice")
    for tool in listed:
        check_named(name_of(tool), tools)


def _check_calls(calls: Any, where: str) -> None:
    """Calls of earlier turns, which the template writes again."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) and name_of(call) for call in calls):
        raise bad_request(f"'{where}' must be a list of calls, each with a function's name.", where)
    for number, call in enumerate(calls):
        given = call["function"].get("arguments")
        try:
            fine = isinstance(given, dict) or isinstance(orjson.loads(given), dict)
        except (orjson.JSONDecodeError, TypeError):
            fine = False
        if not fine:
            place = f"{where}[{number}].function.arguments"
            text = f"'{place}' must be a JSON object as text; was the answer that it is from cut off?"
            raise bad_request(text, place)


def _check_shape(shape: Any) -> None:
    kind = shape.get("type") if isinstance(shape, dict) else None
    if kind not in SHAPES:
        text = f"'response_format' must be an object of type {', '.join(SHAPES)}."
        raise bad_request(text, "response_format")
    if kind == "json_schema":
        named, where = shape.get("json_schema"), "response_format.json_schema"
        if not (isinstance(named, dict) and isinstance(named.get("schema"), dict)):
            raise bad_request(f"'{where}' must be an object with a 'schema'.", where)
        check_choices(named["schema"], f"{where}.schema")


def _unsupported(message: str, param: str) -> ApiError:
    return bad_request(message, param, "unsupported_parameter")
