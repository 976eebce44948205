"""An answer that was held to the form of a call (``tools``) becomes that call, whole or as it streams.

The text is ``{"name": "...", "arguments": {...}}``, or a list of such, with blanks as the engine likes.
Arguments go on as they come; only blanks at their end are held back. Counts stay the engine's.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

import orjson

from tokenmill.gateway.calls import EVENTS

_BEGIN = re.compile(r'[\s\[,}]*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\S)')
"""From the end of one call's arguments to where those of the next begin."""


class ForcedCall:
    """One answer's calls, from its text."""

    __slots__ = ("_count", "_depth", "_escaped", "_open", "_quoted", "_said", "_scanned", "_sent")

    def __init__(self) -> None:
        self._said = ""
        self._sent = 0  # up to where it was passed on
        self._count = 0  # calls that have begun
        self._open = False  # the last of them is in its arguments
        self._scanned = 0  # up to where these were read,
        self._depth = 0  # within so many brackets,
        self._quoted = self._escaped = False  # and within a text

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
            message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in found]
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
        choice["finish_reason"] = self._finish(choice.get("finish_reason"))
        if parts:
            delta["tool_calls"] = parts
        return b"data: " + orjson.dumps(chunk) + b"\n\n"

    def _take(self, text: str) -> list[dict[str, Any]]:
        """Parts of the calls that more text gives, one at most of each call."""
        self._said += text
        parts: list[dict[str, Any]] = []
        while True:
            if not self._open:
                found = _BEGIN.match(self._said, self._sent)
                if found is None:
                    return parts
                parts.append(self._begin(orjson.loads(found[1]), found.end()))
            end, over = self._read()
            piece, self._sent = self._said[self._sent : end], end
            if piece and parts:
                parts[-1]["function"]["arguments"] += piece
            elif piece:
                parts.append({"index": self._count - 1, "function": {"arguments": piece}})
            if not over:
                return parts
            self._open = False

    def _begin(self, name: str, at: int) -> dict[str, Any]:
        self._open, self._depth = True, 0
        self._sent = self._scanned = at
        self._count += 1
        call_id = f"call_{secrets.token_hex(12)}"
        function = {"name": name, "arguments": ""}
        return {"index": self._count - 1, "id": call_id, "type": "function", "function": function}

    def _read(self) -> tuple[int, bool]:
        """Up to where the arguments of the open call are known, and whether they are over."""
        said = self._said
        for at in range(self._scanned, len(said)):
            sign = said[at]
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped, self._quoted = sign == "\\", sign != '"'
            elif sign == '"':
                self._quoted = True
            elif sign in "{[":
                self._depth += 1
            elif sign in "}]":
                if not self._depth:  # the end of the call itself
                    return max(self._sent, len(said[:at].rstrip())), True
                self._depth -= 1
        self._scanned = len(said)
        return max(self._sent, len(said.rstrip())), False

    def _finish(self, reason: Any) -> Any:
        if reason is None or not self._count:
            return reason
        try:
            orjson.loads(self._said)
        except orjson.JSONDecodeError:
            return reason
        return "tool_calls"
