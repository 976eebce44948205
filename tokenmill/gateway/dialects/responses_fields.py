"""Fields of a Responses request that chat has no place for: what is refused, and what is only checked.

Nothing is left out without a word: a field is translated (``responses_input``), refused here by its name, or
one of those that ask for nothing that could be missed, such as ``store`` and ``safety_identifier``, of which
``docs/api.md`` says so.
"""

from __future__ import annotations

from typing import Any

from tokenmill.gateway.body import whole_of
from tokenmill.gateway.errors import ApiError, bad_request

STATE = "Responses are not stored here; send the whole conversation in 'input'."
ABSENT = {
    "previous_response_id": STATE,
    "conversation": STATE,
    "prompt": STATE,
    "background": "Use /v1/batches for work that nobody waits for.",
    "background_options": "Use /v1/batches for work that nobody waits for.",
    "context_management": "Send a shorter 'input' when it has grown too long.",
    "moderation": "Leave it out; nothing is moderated here.",
    "access_programs": "Leave it out.",
    "image": "Leave it out.",
    "messages": "Send them as 'input'.",
}
TIERS = ("auto", "default", "flex", "scale", "priority", "fast", "ultrafast")
ONE_OF: dict[str, tuple[str, ...]] = {
    "service_tier": TIERS,
    "prompt_cache_retention": ("in_memory", "in-memory", "24h"),
}
KINDS: dict[type, tuple[str, tuple[str, ...]]] = {
    str: ("a text", ("instructions", "user", "safety_identifier", "prompt_cache_key")),
    bool: ("true or false", ("store", "parallel_tool_calls")),
    dict: ("an object", ("reasoning", "stream_options", "prompt_cache_options", "metadata")),
    list: ("a list of texts", ("include",)),
}
LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = (
    LOGPROBS,
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)
TOP_MOST = 20
PAIRS_MOST, NAME_MOST, VALUE_MOST = 16, 64, 512
"""Of metadata, as OpenAI bounds it."""


def unsupported(param: str, hint: str) -> ApiError:
    return bad_request(f"'{param}' is not supported. {hint}", param, "unsupported_parameter")


def check_fields(document: dict[str, Any]) -> None:
    """Raise ``ApiError`` 400 that names the first field that cannot be meant."""
    for name, hint in ABSENT.items():
        if document.get(name) not in (None, False, [], {}):
            raise unsupported(name, hint)
    if document.get("n") not in (None, 1):
        raise unsupported("n", "A response is one answer; send one request for each.")
    if document.get("truncation") not in (None, "disabled"):
        raise unsupported("truncation", "It may be 'disabled': what is too long is refused, never cut.")
    _check_kinds(document)
    _check_reasoning(document.get("reasoning") or {})
    if (document.get("prompt_cache_options") or {}).get("prewarm"):
        raise unsupported("prompt_cache_options.prewarm", "What was asked before is in the cache already.")
    _check_metadata(document.get("metadata") or {})
    for number, said in enumerate(document.get("include") or ()):
        if said not in INCLUDABLE:
            where = f"include[{number}]"
            raise bad_request(f"'{where}' must be one of {', '.join(INCLUDABLE)}.", where)


def wants_logprobs(document: dict[str, Any]) -> bool:
    return bool(document.get("top_logprobs")) or LOGPROBS in (document.get("include") or ())


def _check_kinds(document: dict[str, Any]) -> None:
    for kind, (described, names) in KINDS.items():
        for name in names:
            said = document.get(name)
            if said is not None and not isinstance(said, kind):
                raise bad_request(f"'{name}' must be {described}.", name)
    for name, values in ONE_OF.items():
        if document.get(name) not in (None, *values):
            raise bad_request(f"'{name}' must be one of {', '.join(values)}.", name)
    whole_of(document, "max_tool_calls", 1, 2**31 - 1)
    whole_of(document, "top_logprobs", 0, TOP_MOST)


def _check_reasoning(reasoning: dict[str, Any]) -> None:
    if not isinstance(reasoning.get("effort"), str | None):
        raise bad_request("'reasoning.effort' must be a text.", "reasoning.effort")
    if reasoning.get("mode") not in (None, "standard"):
        raise unsupported("reasoning.mode", "It may be 'standard'.")
    if reasoning.get("context") not in (None, "auto", "current_turn"):
        raise unsupported("reasoning.context", "Thoughts of earlier turns are not said again.")


def _check_metadata(metadata: dict[str, Any]) -> None:
    bounds = f"at most {PAIRS_MOST} texts of {VALUE_MOST} characters, named by at most {NAME_MOST}"
    if len(metadata) > PAIRS_MOST:
        raise bad_request(f"'metadata' must have {bounds}.", "metadata")
    for name, value in metadata.items():
        if len(name) > NAME_MOST or not isinstance(value, str) or len(value) > VALUE_MOST:
            raise bad_request(f"'metadata' must have {bounds}.", f"metadata.{name[:NAME_MOST]}")
