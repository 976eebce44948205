"""``/v1/responses``: a chat answer as a Response object, or as its sequence of events.

Ids are the same in the stream and in the final object, and ``sequence_number`` grows by one. Usage is in
every terminal event, also when the answer is incomplete or failed. Nothing is stored, and ``store`` says so.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

import orjson

from tokenmill.control.requests import TokenUsage
from tokenmill.gateway.body import CHAT, Asked, asked_of, parse_object
from tokenmill.gateway.dialects.events import (
    ChunkParser,
    event,
    first_choice,
    logprobs_of,
    reasoning_of,
    text_of,
    tool_calls_of,
)
from tokenmill.gateway.dialects.responses_input import chat_of
from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.meter import usage_of

ECHOED = (
    "instructions", "max_output_tokens", "max_tool_calls", "metadata", "prompt_cache_key",
    "safety_identifier", "temperature", "top_p", "top_logprobs", "user",
)  # fmt: skip
REASONING, MESSAGE, CALL = "reasoning", "message", "function_call"
_PREFIX = {REASONING: "rs", MESSAGE: "msg", CALL: "fc"}


def usage_object(usage: TokenUsage) -> dict[str, Any]:
    """Usage in the words of Responses."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


class Item:
    """One output item while it grows."""

    def __init__(self, kind: str, index: int) -> None:
        self.kind = kind
        self.index = index
        self.id = f"{_PREFIX[kind]}_{secrets.token_hex(16)}"
        self.text = ""
        self.logprobs: list[dict[str, Any]] = []
        self.call_id = ""
        self.name = ""
        self.status = "in_progress"

    def shown(self) -> dict[str, Any]:
        """The item as the API shows it."""
        plain: dict[str, Any] = {"id": self.id, "type": self.kind, "status": self.status}
        if self.kind == CALL:
            return {**plain, "call_id": self.call_id, "name": self.name, "arguments": self.text}
        content = [self.part()] if self.status != "in_progress" else []
        if self.kind == REASONING:
            return {**plain, "summary": [], "content": content}
        return {**plain, "role": "assistant", "content": content}

    def part(self) -> dict[str, Any]:
        """The one content part of a message or of reasoning."""
        if self.kind == REASONING:
            return {"type": "reasoning_text", "text": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs}


class Responses:
    """One request. See ``bridge.Dialect``."""

    name = "responses"
    endpoint = CHAT

    def __init__(self) -> None:
        self.billed = TokenUsage()  # what the exchange settled, once it has
        self.id = f"resp_{secrets.token_hex(24)}"
        self._created = int(time.time())
        self._asked: dict[str, Any] = {}
        self._parser = ChunkParser()
        self._items: list[Item] = []
        self._calls: dict[int, Item] = {}
        self._current: Item | None = None  # message or reasoning that still grows
        self._usage: TokenUsage | None = None
        self._finish = ""
        self._sequence = 0
        self._begun = False
        self._over = False
        self._out: list[bytes] = []

    def read(self, body: bytes) -> Asked:
        """Check the body and keep what the answer repeats of it."""
        document = parse_object(body)
        asked = asked_of(CHAT, chat_of(document), wants_usage=True)
        self._asked = document
        return asked

    # -- not a stream
    def whole(self, body: bytes) -> bytes:
        try:
            answer = orjson.loads(body)
            choice = first_choice(answer)
            message = choice["message"]
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            raise ApiError(502, "engine_error", "The engine's answer is no chat completion.") from None
        self._usage = usage_of(answer.get("usage"))
        self._finish = text_of(choice.get("finish_reason"))
        for kind, text in ((REASONING, reasoning_of(message)), (MESSAGE, text_of(message.get("content")))):
            if text:
                item = self._item(kind)
                item.text, item.logprobs = text, logprobs_of(choice) if kind == MESSAGE else []
        for call in tool_calls_of(message):
            self._grow_call(self._item(CALL), call)
        if not self._items:
            self._item(MESSAGE)
        status, details = self._end_status()
        for item in self._items:
            item.status = "completed"
        self._items[-1].status = status
        return orjson.dumps(self._response(status, details))

    def error(self, status: int, body: bytes) -> bytes:
        """The error, of the field as this API calls it."""
        found = orjson.loads(body)
        error, param = found["error"], text_of(found["error"].get("param"))
        named = "input" if param.startswith("messages") else param.replace(".function.", ".")
        if named != param:
            error |= {"param": named, "message": error["message"].replace(param, named)}
        return orjson.dumps(found)

    # -- a stream
    def feed(self, events: bytes) -> bytes:
        for chunk in self._parser.feed(events):
            if not self._over:
                self._take(chunk)
        return self._flush()

    def end(self) -> bytes:
        if not self._over:
            self._begin()
            self._close_all()
            status, details = self._end_status()
            self._say(f"response.{status}", response=self._response(status, details))
            self._over = True
        return self._flush()

    def _take(self, chunk: dict[str, Any]) -> None:
        self._begin()
        if chunk.get("error"):
            self._fail(chunk["error"])
            return
        usage = usage_of(chunk.get("usage"))
        if usage is not None:
            self._usage = usage
        choice = first_choice(chunk)
        delta = choice.get("delta")
        if isinstance(delta, dict):
            self._grow(REASONING, reasoning_of(delta))
            self._grow(MESSAGE, text_of(delta.get("content")), logprobs_of(choice))
            for call in tool_calls_of(delta):
                self._take_call(call)
        self._finish = text_of(choice.get("finish_reason")) or self._finish

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            shown = self._response("in_progress", None)
            self._say("response.created", response=shown)
            self._say("response.in_progress", response=shown)

    def _grow(self, kind: str, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> None:
        if not text:
            return
        item = self._current
        if item is None or item.kind != kind:
            self._close(item)
            item = self._current = self._item(kind)
            self._say("response.output_item.added", output_index=item.index, item=item.shown())
            self._say("response.content_part.added", **self._place(item), part=item.part())
        item.text += text
        item.logprobs.extend(logprobs)
        what = "output_text" if kind == MESSAGE else "reasoning_text"
        more: dict[str, Any] = {"logprobs": list(logprobs)} if kind == MESSAGE else {}
        self._say(f"response.{what}.delta", **self._place(item), delta=text, **more)

    def _take_call(self, call: dict[str, Any]) -> None:
        item = self._calls.get(call["index"])
        if item is None:
            self._close(self._current)
            item = self._calls[call["index"]] = self._item(CALL)
            self._grow_call(item, {**call, "function": {**_function(call), "arguments": ""}})
            self._say("response.output_item.added", output_index=item.index, item=item.shown())
        more = self._grow_call(item, call)
        if more:
            self._say(
                "response.function_call_arguments.delta",
                item_id=item.id,
                output_index=item.index,
                delta=more,
            )

    def _grow_call(self, item: Item, call: dict[str, Any]) -> str:
        """Add a call's delta to its item; return the arguments that came."""
        function = _function(call)
        item.call_id = item.call_id or text_of(call.get("id")) or f"call_{secrets.token_hex(12)}"
        item.name = item.name or text_of(function.get("name"))
        more = text_of(function.get("arguments"))
        item.text += more
        return more

    def _close(self, item: Item | None, status: str = "completed") -> None:
        if item is None:
            return
        item.status = status
        if item is self._current:
            self._current = None
        if item.kind == CALL:
            place = {"item_id": item.id, "output_index": item.index}
            self._say("response.function_call_arguments.done", **place, name=item.name, arguments=item.text)
        else:
            what = "output_text" if item.kind == MESSAGE else "reasoning_text"
            more: dict[str, Any] = {"logprobs": item.logprobs} if item.kind == MESSAGE else {}
            self._say(f"response.{what}.done", **self._place(item), text=item.text, **more)
            self._say("response.content_part.done", **self._place(item), part=item.part())
        self._say("response.output_item.done", output_index=item.index, item=item.shown())

    def _close_all(self) -> None:
        if not self._items:
            self._grow_empty()
        growing = [item for item in self._items if item.status == "in_progress"]
        for item in growing:
            self._close(item, self._end_status()[0] if item is growing[-1] else "completed")

    def _grow_empty(self) -> None:
        """An answer without a word is still a message."""
        item = self._current = self._item(MESSAGE)
        self._say("response.output_item.added", output_index=item.index, item=item.shown())
        self._say("response.content_part.added", **self._place(item), part=item.part())

    def _fail(self, error: Any) -> None:
        found = error if isinstance(error, dict) else {}
        self._over = True
        for item in self._items:
            item.status = "incomplete" if item.status == "in_progress" else item.status
        shown = self._response("failed", None)
        code = "rate_limit_exceeded" if found.get("code") == "rate_limit_exceeded" else "server_error"
        shown["error"] = {"code": code, "message": text_of(found.get("message")) or "The engine failed."}
        self._say("response.failed", response=shown)

    # -- shared
    def _item(self, kind: str) -> Item:
        item = Item(kind, len(self._items))
        self._items.append(item)
        return item

    def _place(self, item: Item) -> dict[str, Any]:
        return {"item_id": item.id, "output_index": item.index, "content_index": 0}

    def _end_status(self) -> tuple[str, dict[str, Any] | None]:
        if self._finish == "length":
            return "incomplete", {"reason": "max_output_tokens"}
        if self._finish == "content_filter":
            return "incomplete", {"reason": "content_filter"}
        return "completed", None

    def _response(self, status: str, details: dict[str, Any] | None) -> dict[str, Any]:
        asked = self._asked
        ended = status != "in_progress"
        usage = self._usage or self.billed
        text = asked.get("text") if isinstance(asked.get("text"), dict) else {}
        reasoning = asked.get("reasoning") if isinstance(asked.get("reasoning"), dict) else {}
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": None,
            "incomplete_details": details,
            "model": asked.get("model"),
            "output": [item.shown() for item in self._items] if ended else [],
            "parallel_tool_calls": asked.get("parallel_tool_calls", True),
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None, **(reasoning or {})},
            "service_tier": "default",
            "store": False,
            "text": {"format": {"type": "text"}, **(text or {})},
            "tool_choice": asked.get("tool_choice") or "auto",
            "tools": asked.get("tools") or [],
            "truncation": "disabled",
            "usage": usage_object(usage) if ended else None,
            **{name: asked.get(name) for name in ECHOED},
        }

    def _say(self, kind: str, **fields: Any) -> None:
        self._out.append(event(kind, {"type": kind, "sequence_number": self._sequence, **fields}))
        self._sequence += 1

    def _flush(self) -> bytes:
        out = b"".join(self._out)
        self._out.clear()
        return out


def _function(call: dict[str, Any]) -> dict[str, Any]:
    found = call.get("function")
    return found if isinstance(found, dict) else {}
