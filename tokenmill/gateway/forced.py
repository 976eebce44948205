"""An answer that was held to the form of one call (``tools``) becomes that call, whole or as it streams.

The text is ``{"name": "...", "arguments": {...}}``, with blanks as the engine likes. Its arguments go on as
they come; braces at their end are held back, since one is that of the call. Counts stay the engine's.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

import orjson

from tokenmill.gateway.calls import EVENTS

_BEGIN = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')
_ENDS = " \t\r\n}"


class ForcedCall:
    """One answer's call, from its text."""

    __slots__ = ("_id", "_said", "_sent", "_start")

    def __init__(self) -> None:
        self._said = ""
        self._start = 0  # where the arguments begin; 0: not yet
        self._sent = 0  # up to where they were passed on
        self._id = f"call_{secrets.token_hex(12)}"

    def whole(self, body: bytes) -> bytes:
        """An answer that is no stream. One that was cut before its arguments began has no call."""
        try:
            answer = orjson.loads(body)
            choice = answer["choices"][0]
            message = choice["message"]
            text = message["content"]
        except (orjson.JSONDecodeError, LookupError, TypeError):
            return body
        found = self._take(text or "")
        if found:
            found[0]["function"]["arguments"] += self._rest()
            message["tool_calls"] = [{k: v for k, v in found[0].items() if k != "index"}]
        message["content"] = None
        choice["finish_reason"] = self._finish(choice.get("finish_reason"))
        return orjson.dumps(answer)

    def feed(self, events: bytes) -> bytes:
        """Whole events of a stream; those with text are written anew."""
        out, position = [], 0
        for match in EVENTS.finditer(events):
            out.append(self._event(events[position : match.end()]))
            position = match.end()
        out.append(events[position:])
        return b"".join(out)

    def _event(self, event: bytes) -> bytes:
        body = event.strip()
        if not body.startswith(b"data:") or b'"choices"' not in body:
            return event
        try:
            chunk = orjson.loads(body[5:])
            choice = chunk["choices"][0]
            delta = choice["delta"]
        except (orjson.JSONDecodeError, LookupError, TypeError):
            return event
        text = delta.pop("content", None)
        parts = self._take(text) if isinstance(text, str) else []
        if "role" in delta:
            delta["content"] = None
        before = b""
        finish = choice.get("finish_reason")
        if finish is not None:
            if rest := self._rest():
                last = {**choice, "delta": {"tool_calls": [_more(rest)]}, "finish_reason": None}
                before = _event_of({**_bare(chunk), "choices": [last]})
            choice["finish_reason"] = self._finish(finish)
        if parts:
            delta["tool_calls"] = parts
        return before + _event_of(chunk)

    def _take(self, text: str) -> list[dict[str, Any]]:
        """Parts of the call that more text gives."""
        self._said += text
        begins: dict[str, Any] | None = None
        if not self._start:
            found = _BEGIN.match(self._said)
            if found is None or found.end() == len(self._said):
                return []
            self._start = self._sent = found.end()
            function = {"name": orjson.loads(found[1]), "arguments": ""}
            begins = {"index": 0, "id": self._id, "type": "function", "function": function}
        end = max(self._sent, len(self._said.rstrip(_ENDS)))
        piece, self._sent = self._said[self._sent : end], end
        if begins is not None:
            begins["function"]["arguments"] = piece
            return [begins]
        return [_more(piece)] if piece else []

    def _complete(self) -> bool:
        try:
            orjson.loads(self._said)
        except orjson.JSONDecodeError:
            return False
        return bool(self._start)

    def _rest(self) -> str:
        """What was held back of the arguments, less the end of the call."""
        if not self._start:
            return ""
        rest = self._said[self._sent :].rstrip()
        self._sent = len(self._said)
        return rest[:-1].rstrip() if self._complete() else rest

    def _finish(self, reason: Any) -> Any:
        return "tool_calls" if self._complete() else reason


def _more(arguments: str) -> dict[str, Any]:
    return {"index": 0, "function": {"arguments": arguments}}


def _bare(chunk: dict[str, Any]) -> dict[str, Any]:
    """A chunk without counts, which belong to its last."""
    return {key: value for key, value in chunk.items() if key not in ("usage", "timings")}


def _event_of(chunk: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"
