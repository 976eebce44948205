"""Anthropic's ``/v1/messages``: a chat answer as a message, or as its sequence of events.

Content blocks follow each other and never mix. Input tokens are known when the engine has ended, so the
last ``message_delta`` carries them; as with Anthropic, cached ones are not part of ``input_tokens``.
"""

from __future__ import annotations

import secrets
from typing import Any

import orjson

from tokenmill.control.requests import TokenUsage
from tokenmill.gateway.body import CHAT, Asked, asked_of, parse_object
from tokenmill.gateway.dialects.events import (
    ChunkParser,
    event,
    first_choice,
    reasoning_of,
    text_of,
    tool_calls_of,
)
from tokenmill.gateway.dialects.messages_input import chat_of
from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.meter import usage_of

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}

FIELDS = {".function.parameters": ".input_schema", "'response_format'": "'output_config.format'"}
"""What an error calls a field, and what it is called in this API."""


def error_object(status: int, message: str) -> dict[str, Any]:
    """Anthropic's error object."""
    return {"type": "error", "error": {"type": TYPES.get(status, "api_error"), "message": message}}


def translated_error(status: int, body: bytes) -> bytes:
    """An OpenAI error object in Anthropic's shape."""
    try:
        message = orjson.loads(body)["error"]["message"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        message = "The request failed."
    said = text_of(message)
    for chat, ours in FIELDS.items():
        said = said.replace(chat, ours)
    return orjson.dumps(error_object(status, said))


def usage_object(usage: TokenUsage) -> dict[str, Any]:
    """Usage in Anthropic's words."""
    return {
        "input_tokens": max(0, usage.input_tokens - usage.cached_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
    }


class Messages:
    """One request. See ``bridge.Dialect``."""

    name = "messages"
    endpoint = CHAT

    def __init__(self) -> None:
        self.billed = TokenUsage()
        self.id = f"msg_{secrets.token_hex(12)}"
        self._model = ""
        self._thinks = False
        self._parser = ChunkParser()
        self._usage: TokenUsage | None = None
        self._finish = ""
        self._stop_sequence: str | None = None
        self._index = -1  # of the last block that was opened
        self._open = ""  # kind of the block that grows: text, thinking, or the tool call's index
        self._calls: set[int] = set()
        self._begun = False
        self._over = False
        self._out: list[bytes] = []

    def read(self, body: bytes) -> Asked:
        """Check the body and keep what the answer needs of it."""
        document = parse_object(body)
        asked = asked_of(CHAT, chat_of(document), wants_usage=True)
        self._model = asked.alias
        thinking = document.get("thinking")
        self._thinks = isinstance(thinking, dict) and thinking.get("type") in ("enabled", "adaptive")
        return asked

    # -- not a stream
    def whole(self, body: bytes) -> bytes:
        try:
            answer = orjson.loads(body)
            choice = first_choice(answer)
            message = choice["message"]
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            raise ApiError(502, "engine_error", "The engine's answer is no chat completion.") from None
        self._note_finish(choice)
        content: list[dict[str, Any]] = []
        if self._thinks and reasoning_of(message):
            content.append({"type": "thinking", "thinking": reasoning_of(message), "signature": ""})
        calls = tool_calls_of(message)
        text = text_of(message.get("content"))
        if text or not calls:
            content.append({"type": "text", "text": text})
        content += [_tool_use(call) for call in calls]
        usage = usage_of(answer.get("usage")) or self.billed
        return orjson.dumps(
            {**self._message(), "content": content, **self._stop(), "usage": usage_object(usage)}
        )

    def error(self, status: int, body: bytes) -> bytes:
        return translated_error(status, body)

    # -- a stream
    def feed(self, events: bytes) -> bytes:
        for chunk in self._parser.feed(events):
            if not self._over:
                self._take(chunk)
        return self._flush()

    def end(self) -> bytes:
        if not self._over:
            self._begin()
            if self._index < 0:
                self._start("text", {"type": "text", "text": ""})
            self._close()
            usage = usage_object(self._usage or self.billed)
            self._say("message_delta", delta=self._stop(), usage=usage)
            self._say("message_stop")
            self._over = True
        return self._flush()

    def _take(self, chunk: dict[str, Any]) -> None:
        self._begin()
        if chunk.get("error"):
            found = chunk["error"] if isinstance(chunk["error"], dict) else {}
            self._over = True
            message = text_of(found.get("message")) or "The engine failed."
            self._out.append(event("error", error_object(500, message)))
            return
        usage = usage_of(chunk.get("usage"))
        if usage is not None:
            self._usage = usage
        choice = first_choice(chunk)
        delta = choice.get("delta")
        if isinstance(delta, dict):
            if self._thinks:
                self._grow("thinking", reasoning_of(delta))
            self._grow("text", text_of(delta.get("content")))
            for call in tool_calls_of(delta):
                self._take_call(call)
        self._note_finish(choice)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            message = {**self._message(), "content": [], "stop_reason": None, "stop_sequence": None}
            self._say("message_start", message={**message, "usage": usage_object(TokenUsage())})
            self._say("ping")

    def _grow(self, kind: str, text: str) -> None:
        if not text:
            return
        if self._open != kind:
            empty = {"thinking": "", "signature": ""} if kind == "thinking" else {"text": ""}
            self._start(kind, {"type": kind, **empty})
        self._say("content_block_delta", index=self._index, delta={"type": f"{kind}_delta", kind: text})

    def _take_call(self, call: dict[str, Any]) -> None:
        number, function = call["index"], call.get("function")
        function = function if isinstance(function, dict) else {}
        kind = f"call {number}"
        if self._open != kind:
            if number in self._calls:
                raise ApiError(502, "engine_error", "The engine mixed the arguments of several tool calls.")
            self._calls.add(number)
            name = text_of(call.get("id")) or f"toolu_{secrets.token_hex(12)}"
            block = {"type": "tool_use", "id": name, "name": text_of(function.get("name")), "input": {}}
            self._start(kind, block)
        arguments = text_of(function.get("arguments"))
        if arguments:
            delta = {"type": "input_json_delta", "partial_json": arguments}
            self._say("content_block_delta", index=self._index, delta=delta)

    def _start(self, kind: str, block: dict[str, Any]) -> None:
        self._close()
        self._open = kind
        self._index += 1
        self._say("content_block_start", index=self._index, content_block=block)

    def _close(self) -> None:
        if self._open:
            if self._open == "thinking":
                delta = {"type": "signature_delta", "signature": ""}
                self._say("content_block_delta", index=self._index, delta=delta)
            self._say("content_block_stop", index=self._index)
            self._open = ""

    # -- shared
    def _note_finish(self, choice: dict[str, Any]) -> None:
        self._finish = text_of(choice.get("finish_reason")) or self._finish
        matched = choice.get("stop_reason")  # vLLM tells which text it stopped at
        if isinstance(matched, str):
            self._stop_sequence = matched

    def _message(self) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": self._model}

    def _stop(self) -> dict[str, Any]:
        if self._stop_sequence is not None and self._finish == "stop":
            return {"stop_reason": "stop_sequence", "stop_sequence": self._stop_sequence}
        return {"stop_reason": STOPS.get(self._finish, "end_turn"), "stop_sequence": None}

    def _say(self, kind: str, **fields: Any) -> None:
        self._out.append(event(kind, {"type": kind, **fields}))

    def _flush(self) -> bytes:
        out = b"".join(self._out)
        self._out.clear()
        return out


def _tool_use(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    try:
        arguments = orjson.loads(text_of(function.get("arguments")) or "{}")
    except orjson.JSONDecodeError:
        arguments = {}
    name = text_of(call.get("id")) or f"toolu_{secrets.token_hex(12)}"
    return {
        "type": "tool_use",
        "id": name,
        "name": text_of(function.get("name")),
        "input": arguments if isinstance(arguments, dict) else {},
    }
