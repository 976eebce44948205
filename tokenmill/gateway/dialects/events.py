"""Server-sent events of an engine as parsed chunks, however their bytes were split; and events as bytes."""

from __future__ import annotations

from typing import Any

import orjson


class ChunkParser:
    """Takes bytes, gives the JSON objects of whole ``data:`` events; ``[DONE]`` and comments give nothing.

    ``broken`` counts events that cannot be read.
    """

    __slots__ = ("_carry", "broken")

    def __init__(self) -> None:
        self.broken = 0
        self._carry = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The chunks that are complete with ``data``."""
        lines = (self._carry + data).split(b"\n")
        self._carry = lines.pop()
        found = []
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            body = line[5:].strip()
            if not body.startswith(b"{"):
                continue
            try:
                chunk = orjson.loads(body)
            except orjson.JSONDecodeError:
                self.broken += 1
                continue
            if isinstance(chunk, dict):
                found.append(chunk)
        return found


def event(name: str, data: dict[str, Any]) -> bytes:
    """One named event."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data))


def text_of(value: Any) -> str:
    """A text, or nothing for whatever is none."""
    return value if isinstance(value, str) else ""


def first_choice(chunk: dict[str, Any]) -> dict[str, Any]:
    """The only choice of a chunk or answer, or an empty one."""
    choices = chunk.get("choices")
    found = choices[0] if isinstance(choices, list) and choices else None
    return found if isinstance(found, dict) else {}


def reasoning_of(message: dict[str, Any]) -> str:
    """The thoughts in a message or delta, by either of the names that engines give them."""
    return text_of(message.get("reasoning_content")) or text_of(message.get("reasoning"))


def logprobs_of(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """The tokens of a choice or delta with their log probabilities, as far as the engine says them."""
    found = choice.get("logprobs")
    tokens = found.get("content") if isinstance(found, dict) else None
    return [_token(token) for token in tokens if isinstance(token, dict)] if isinstance(tokens, list) else []


def _token(said: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {name: said[name] for name in ("token", "logprob", "bytes") if name in said}
    top = said.get("top_logprobs")
    if isinstance(top, list):
        plain["top_logprobs"] = [_token(other) for other in top if isinstance(other, dict)]
    return plain


def tool_calls_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The tool calls in a message or delta; each has an integer ``index``."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return []
    found = [call for call in calls if isinstance(call, dict)]
    return [{**c, "index": c["index"] if isinstance(c.get("index"), int) else n} for n, c in enumerate(found)]
