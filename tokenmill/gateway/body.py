"""Reads the JSON body of a model request, checks it before anything is sent, and writes what the engine gets.

The body is parsed once and written anew, so that what was checked is what the engine reads: a key that
occurs twice has one meaning only. Unknown fields pass; prompts are never templated here.
"""

from __future__ import annotations

import zlib
from typing import Any

import orjson

from tokenmill.domain.table import AliasEntry
from tokenmill.domain.value import value
from tokenmill.gateway.embedded import LLAMA_CPP, check_embedded
from tokenmill.gateway.errors import ApiError, bad_request
from tokenmill.gateway.tools import check_tools, embedded_changes, must_call, shape_changes
from tokenmill.policy.route import PEER_PREFIX

CHAT = "chat.completions"
COMPLETIONS = "completions"
EMBEDDINGS = "embeddings"

PATHS = {CHAT: b"/v1/chat/completions", COMPLETIONS: b"/v1/completions", EMBEDDINGS: b"/v1/embeddings"}
INPUT = {CHAT: "messages", COMPLETIONS: "prompt", EMBEDDINGS: "input"}
"""The field of the input."""
HOP = b"x-tokenmill-hop"
"""Set on what goes to a peer, so that a request travels once and never in a circle."""

DEFAULT_OUTPUT = 512
"""Output tokens reserved for a request that states no maximum. Its settlement corrects the reservation."""

COMPLETION_OUTPUT = 16
"""Output tokens of a text completion that states no maximum, as of OpenAI's and vLLM's: models that go on
with a text often come to no end of their own."""

TOKENS_MOST = 2**31 - 1  # what engines count in

CHARS_PER_TOKEN = 4
"""Rule of thumb for English text in byte-pair vocabularies; for reservations and marked estimates."""

FETCHED = ("image_url", "audio_url", "video_url")
"""Fields of a content part in which an engine takes an address."""

NESTED = 200
"""A body with no more brackets than this is not nested too deep for orjson to write, which is at 254."""

VALUES_MOST = 2_000_000
"""Values that a body may have. As text they take two or three bytes each, as objects sixty and more; this is
far above what any context holds. Told by commas and brackets, those within texts too."""

SURELY_FEW = 1024 * 1024
"""Bytes of a body that need not be counted."""

PREFIX_BLOCK = 512  # characters of serialised prompt per affinity block
PREFIX_BLOCKS = 8


@value
class Asked:
    """One checked request. ``document`` belongs to it and is not shared."""

    endpoint: str
    alias: str
    document: dict[str, Any]
    stream: bool
    wants_usage: bool  # the client itself asked for the usage event
    wants_running: bool  # and for counts in every event, as engines offer them
    input_estimate: int
    max_output: int | None  # of all answers together; None: not stated
    answers: int = 1  # choices of each prompt


def parse_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises ``ApiError`` 400, and 415 for what is compressed."""
    if body[:2] == b"\x1f\x8b":
        raise ApiError(
            415, "unsupported_encoding", "Send the body as plain JSON: compressed ones are not read."
        )
    if len(body) > SURELY_FEW and sum(map(body.count, (b",", b"[", b"{"))) > VALUES_MOST:
        raise bad_request(f"The body has more than {VALUES_MOST} values.", code=None)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"We could not parse the JSON body of your request: {error}.", code=None) from None
    if not isinstance(document, dict):
        raise bad_request("The body must be a JSON object.", code=None)
    if body.count(b"[") + body.count(b"{") > NESTED:
        try:  # what is deeper than this could be read and not be written again
            orjson.dumps([[[[[[document]]]]]])
        except TypeError:
            raise bad_request("The body is nested too deep.", code=None) from None
    return document


def read_body(endpoint: str, body: bytes) -> Asked:
    """Parse and check. Raises ``ApiError`` 400 that names the parameter."""
    return asked_of(endpoint, parse_object(body))


def asked_of(endpoint: str, document: dict[str, Any], *, wants_usage: bool = False) -> Asked:
    """Check a document. ``wants_usage`` is for those who need the usage event whatever the client said."""
    alias = document.get("model")
    if not isinstance(alias, str) or not alias:
        raise bad_request("You must provide a model parameter.", "model", "missing_required_parameter")
    stream = _flag(document, "stream") if "stream" in document else False
    options = document.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise bad_request("'stream_options' must be an object.", "stream_options")
    if endpoint == CHAT:
        _check_messages(document)
    elif endpoint == COMPLETIONS:
        _check_prompt(document, "prompt")
    else:
        _check_prompt(document, "input")
        if document.get("encoding_format") not in (None, "float", "base64"):
            raise bad_request("'encoding_format' must be 'float' or 'base64'.", "encoding_format")
    count = (whole_of(document, "n", 1, 128) or 1) if "n" in document else 1
    if endpoint == COMPLETIONS:
        count *= _prompts(document["prompt"])
    limit = (
        whole_of(document, "max_completion_tokens", 1, TOKENS_MOST)
        if "max_completion_tokens" in document
        else None
    )
    if limit is None and "max_tokens" in document:
        limit = whole_of(document, "max_tokens", 1, TOKENS_MOST)
    if limit is None and endpoint == COMPLETIONS:
        limit = document["max_tokens"] = COMPLETION_OUTPUT
    _check_sampling(document)
    return Asked(
        endpoint=endpoint,
        alias=alias,
        document=document,
        stream=stream and endpoint != EMBEDDINGS,
        wants_usage=wants_usage or bool(options and options.get("include_usage")),
        wants_running=bool(options and options.get("continuous_usage_stats"))
        or bool(document.get("timings_per_token")),
        input_estimate=estimate_input(document),
        max_output=None if limit is None else limit * count,
        answers=count,
    )


def check_kind(asked: Asked, entry: AliasEntry) -> None:
    """Raise ``ApiError`` 400 when the model is of the wrong kind for the endpoint.

    What only peers serve is theirs to check: the table does not know its kind.
    """
    if (entry.kind == "embedding") == (asked.endpoint == EMBEDDINGS):
        return
    if entry.targets and all(release.startswith(PEER_PREFIX) for release, _ in entry.targets):
        return
    wanted = "an embedding model" if asked.endpoint == EMBEDDINGS else "a chat model"
    raise bad_request(
        f"The model `{asked.alias}` is of kind {entry.kind}; this endpoint needs {wanted}.", "model"
    )


def check_engine(asked: Asked, entry: AliasEntry) -> None:
    """Raise ``ApiError`` 400 for what the model's engine would not count, or not do and not say so."""
    for endpoint in entry.endpoints:
        if endpoint.engine in LLAMA_CPP:
            break
    else:
        return
    if asked.answers > 1:
        several = asked.endpoint == COMPLETIONS and _prompts(asked.document["prompt"]) > 1
        message = f"The engine of `{asked.alias}` counts one answer a request; send one request for each."
        raise bad_request(message, "prompt" if several else "n", "unsupported_parameter")
    check_embedded(asked.alias, asked.endpoint, asked.document)


def output_bound(asked: Asked, entry: AliasEntry) -> int:
    """Output tokens to reserve: what the client states, else a default, never more than the context."""
    if asked.endpoint == EMBEDDINGS:
        return 0
    stated = DEFAULT_OUTPUT * asked.answers if asked.max_output is None else asked.max_output
    if not entry.context_tokens:
        return stated
    return max(0, min(stated, (entry.context_tokens - asked.input_estimate) * asked.answers))


RUNNING_USAGE = frozenset({"vllm", "sglang"})
"""Engines that put their usage so far into every event when asked, so that a cut stream counts exactly."""

RUNNING_TIMINGS = frozenset({"embedded"})
"""llama.cpp, which says the same in its ``timings``."""


def engine_body(asked: Asked, served_model: str, engine: str = "") -> bytes:
    """The bytes for the engine: its model name, ``developer`` as ``system``, usage asked for, no nulls."""
    document = asked.document
    changes: dict[str, Any] = {}
    if served_model and served_model != asked.alias:
        changes["model"] = served_model
    if asked.stream:
        changes["stream_options"] = {**(document.get("stream_options") or {}), "include_usage": True}
        if engine in RUNNING_USAGE:
            changes["stream_options"]["continuous_usage_stats"] = True
        elif engine in RUNNING_TIMINGS:
            changes["timings_per_token"] = True
    elif "stream_options" in document:
        changes["stream_options"] = None
    if engine in LLAMA_CPP and asked.endpoint == CHAT and "response_format" in document:
        changes |= shape_changes(document)
    if _tells_of_tools(asked, engine):
        changes |= embedded_changes(document)
    if asked.endpoint == CHAT and "developer" in [m["role"] for m in document["messages"]]:
        changes["messages"] = [
            {**m, "role": "system"} if m["role"] == "developer" else m for m in document["messages"]
        ]
    if changes or None in document.values():
        # OpenAI's clients send null for what they leave to the server; engines want such fields left out.
        document = {k: v for k, v in {**document, **changes}.items() if v is not None}
    return orjson.dumps(document)


def is_forced(asked: Asked, engine: str) -> bool:
    """Whether ``engine_body`` asks this engine for a call by its form: the answer has to be turned."""
    return _tells_of_tools(asked, engine) and must_call(asked.document)


def _tells_of_tools(asked: Asked, engine: str) -> bool:
    return engine in LLAMA_CPP and asked.endpoint == CHAT and bool(asked.document.get("tools"))


def engine_head(
    endpoint: str,
    authority: bytes,
    length: int,
    *,
    request_id: bytes,
    trace: bytes = b"",
    secret: bytes = b"",
    hop: bool = False,
) -> bytes:
    """The request head for an engine or peer. Of the client's own headers only the trace goes on."""
    lines = b"POST %b HTTP/1.1\r\nhost: %b\r\nx-request-id: %b\r\n" % (PATHS[endpoint], authority, request_id)
    if trace:
        lines += b"traceparent: %b\r\n" % trace
    if secret:
        lines += b"authorization: Bearer %b\r\n" % secret
    if hop:
        lines += HOP + b": 1\r\n"
    return lines + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % length


def prefix_blocks(asked: Asked, tenant: str) -> tuple[int, ...]:
    """Hashes of the prompt's leading blocks, each over all up to its end, for prefix affinity."""
    key = "messages" if asked.endpoint == CHAT else "prompt"
    text = orjson.dumps(asked.document.get(key))[: PREFIX_BLOCK * PREFIX_BLOCKS]
    value = zlib.crc32(f"{tenant}/{asked.alias}".encode())
    blocks = []
    for start in range(0, len(text) - PREFIX_BLOCK + 1, PREFIX_BLOCK):
        value = zlib.crc32(text[start : start + PREFIX_BLOCK], value)
        blocks.append(value)
    return tuple(blocks)


def estimate_input(document: dict[str, Any]) -> int:
    """Input tokens by characters, or exactly for token ids."""
    prompt = document.get("messages") or document.get("prompt") or document.get("input")
    return _estimate(prompt) if prompt else 0


def _estimate(value: Any) -> int:
    if isinstance(value, str):
        return -(-len(value) // CHARS_PER_TOKEN)
    if isinstance(value, list):
        if value and isinstance(value[0], int):
            return len(value)
        return sum([_estimate(item) for item in value])
    if isinstance(value, dict):
        # A message costs its text and some four tokens of template around it; images count by their engine.
        if "role" in value:
            return 4 + _estimate(value.get("content"))
        return _estimate(value.get("text"))
    return 0


def _check_messages(document: dict[str, Any]) -> None:
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request("'messages' must be a list with at least one message.", "messages")
    for position, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise bad_request("Every message must be an object with a 'role'.", f"messages[{position}]")
        content = message.get("content")
        if isinstance(content, list):
            _check_parts(content, f"messages[{position}].content")
        elif content is not None and not isinstance(content, str):
            where = f"messages[{position}].content"
            raise bad_request(f"'{where}' must be a string or a list of parts.", where)
    if document.get("tools") is not None or document.get("tool_choice") is not None:
        check_tools(document)


def _check_parts(parts: list[Any], where: str) -> None:
    """Images and sounds come in the request: an engine that fetched addresses would do so from inside the
    factory. The field tells, not the type: engines read a part without one by its field.
    """
    for number, part in enumerate(parts):
        if not isinstance(part, dict):
            raise bad_request("Every content part must be an object.", f"{where}[{number}]")
        if part.get("type") == "text" and not isinstance(part.get("text"), str):
            raise bad_request("A part of type 'text' must have a 'text'.", f"{where}[{number}].text")
        for name in FETCHED:
            if name in part or part.get("type") == name:
                _check_address(part.get(name), f"{where}[{number}].{name}")


def _check_address(said: Any, where: str) -> None:
    url = said.get("url") if isinstance(said, dict) else said
    if not isinstance(url, str) or not url.startswith("data:"):
        message = f"'{where}' must be a data URL, such as data:image/png;base64,...; nothing is fetched."
        raise bad_request(message, where)


def _check_prompt(document: dict[str, Any], name: str) -> None:
    value = document.get(name)
    if isinstance(value, str) and value:
        return
    if isinstance(value, list) and value:
        kinds = {type(item) for item in value}
        if kinds <= {str} or kinds <= {int} or kinds <= {list}:
            return
    raise bad_request(f"'{name}' must be a string, a list of strings, or a list of token ids.", name)


def _prompts(value: Any) -> int:
    """How many prompts a ``prompt`` that was checked is."""
    return 1 if isinstance(value, str) or isinstance(value[0], int) else len(value)


def _check_sampling(document: dict[str, Any]) -> None:
    if "temperature" in document:
        _number(document, "temperature", 0.0, 2.0)
    if "top_p" in document:
        _number(document, "top_p", 0.0, 1.0)
    stop = document.get("stop")
    texts = stop if isinstance(stop, list) else [] if stop is None else [stop]
    if not all(isinstance(text, str) for text in texts):
        raise bad_request("'stop' must be a string or a list of strings.", "stop")
    if "" in texts:  # every text holds it, so that answers would end before their first word
        raise bad_request("'stop' must not hold an empty string.", "stop")


def _flag(document: dict[str, Any], name: str) -> bool:
    value = document.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise bad_request(f"'{name}' must be true or false.", name)


def whole_of(document: dict[str, Any], name: str, low: int, high: int) -> int | None:
    """A whole number of the request, ``None`` when it says none. Raises ``ApiError`` 400."""
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise bad_request(f"'{name}' must be a whole number from {low} to {high}.", name)
    return int(value)


def _number(document: dict[str, Any], name: str, low: float, high: float) -> None:
    value = document.get(name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise bad_request(f"'{name}' must be a number from {low:g} to {high:g}.", name)
