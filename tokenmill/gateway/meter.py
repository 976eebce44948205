"""Counts tokens from what passes by: the engine's own usage object, or, for a cut stream, its deltas.

``find_usage`` looks at the last and first bytes of a body without parsing all of it; ``EventStream`` follows
server-sent events whatever way their bytes were split. A raw ``"usage"`` can only be a key or a whole string
value, since a quote inside a JSON string is escaped. Nothing here touches a socket.
"""

from __future__ import annotations

import re
from json import JSONDecodeError, JSONDecoder
from typing import Any

import orjson

from tokenmill.control.requests import TokenUsage
from tokenmill.domain.errors import TokenmillError
from tokenmill.gateway.calls import EVENTS, Calls
from tokenmill.gateway.forced import ForcedCall
from tokenmill.gateway.pattern import Pattern

EVENT_BYTES = 1024 * 1024
EDGE_BYTES = 64 * 1024

_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
_DELTA = re.compile(
    rb'"(?:(?:content|text|reasoning_content|reasoning|arguments)" ?: ?"[^"]|tool_calls"\s*:\s*\[\s*\{)'
)
_BRACE, _QUOTE = b'{"'
_PREDICTED = re.compile(rb'"predicted_n" ?: ?(\d+)')
_PROMPT = re.compile(rb'"prompt_n" ?: ?(\d+)')
_CACHED = re.compile(rb'"cache_n" ?: ?(\d+)')
_FINISH = re.compile(rb'"finish_reason" ?: ?"')
_ID = re.compile(rb'"id"\s*:\s*"((?:chatcmpl|cmpl|embd|resp|msg)[-_][A-Za-z0-9_.-]{1,100})"')
_SAYS_USAGE = re.compile(rb'"usage"(?! ?: ?null)')
_OUTPUT = re.compile(rb'"choices"\s*:\s*\[\s*\{')
# The engine's counts so far, which the gateway asked for: an object of numbers and of at most one level more.
_SO_FAR = re.compile(rb',\s?"(?:usage|timings)"\s?:\s?\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}')
_decoder = JSONDecoder()


class BrokenStreamError(TokenmillError):
    """An engine sent something that is no event stream."""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def usage_of(found: Any) -> TokenUsage | None:
    """A ``TokenUsage`` of an OpenAI usage object, or ``None`` when it is none."""
    if not isinstance(found, dict) or not isinstance(found.get("prompt_tokens"), int):
        return None
    prompt = found.get("prompt_tokens_details")
    completion = found.get("completion_tokens_details")
    return TokenUsage(
        input_tokens=_count(found["prompt_tokens"]),
        cached_tokens=_count(prompt.get("cached_tokens")) if isinstance(prompt, dict) else 0,
        output_tokens=_count(found.get("completion_tokens")),
        reasoning_tokens=_count(completion.get("reasoning_tokens")) if isinstance(completion, dict) else 0,
        counted_by="engine",
    )


def find_id(data: bytes) -> str:
    """What an answer calls itself (``chatcmpl-...``), looked for at both ends of it; "" when it says nothing.

    Only the forms that engines use: a tool call has an ``id`` too.
    """
    found = _ID.search(data, 0, EDGE_BYTES) or _ID.search(data, max(0, len(data) - EDGE_BYTES))
    return found[1].decode("ascii") if found else ""


def find_usage(data: bytes) -> TokenUsage | None:
    """The usage object in (a part of) a JSON body. Looks at ``EDGE_BYTES`` at both ends, the end first."""
    if len(data) <= EDGE_BYTES and data[:1] == b"{":
        try:
            whole = orjson.loads(data)
        except orjson.JSONDecodeError:
            pass  # a part of one
        else:
            return usage_of(whole.get("usage"))
    edges = [data[-EDGE_BYTES:], data[:EDGE_BYTES]] if len(data) > EDGE_BYTES else [data]
    for edge in edges:
        for match in reversed(list(_USAGE.finditer(edge))):
            text = edge[match.end() : match.end() + 4096].decode("utf-8", "replace")
            try:
                found, _ = _decoder.raw_decode(text)
            except JSONDecodeError:
                continue
            usage = usage_of(found)
            if usage is not None:
                return usage
    return None


def estimate_output(data: bytes) -> TokenUsage:
    """Output of a whole answer without a usage object: a token for every four characters of its texts."""
    try:
        parsed = orjson.loads(data)
        texts = [c.get("text") or (c.get("message") or {}).get("content") or "" for c in parsed["choices"]]
        count = sum(-(-len(text) // 4) for text in texts)
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        count = 0
    return TokenUsage(output_tokens=count, counted_by="estimate")


def _last_of(pattern: re.Pattern[bytes], data: bytes) -> re.Match[bytes] | None:
    """The last match: several events may have come at once."""
    found = None
    for found in pattern.finditer(data):  # noqa: B007
        pass
    return found


def _running(data: bytes) -> bool:
    """Whether its usage stands beside output in every event, and is read when the stream is cut."""
    return len(_OUTPUT.findall(data)) >= data.count(b"data:") and _FINISH.search(data) is None


def _first_special(data: bytes) -> int:
    """Where the first word stands that an event with usage, an error or the end has; -1: nowhere.

    Some engines write ``"usage":null`` in every event.
    """
    found = [data.find(b"[DONE]"), data.find(b'"error"')]
    if b'"usage"' in data and (usage := _SAYS_USAGE.search(data)) is not None and not _running(data):
        found.append(usage.start())
    return min((at for at in found if at >= 0), default=-1)


def _boundary(data: bytes | bytearray, start: int, stop: int | None = None) -> int:
    """End of the last whole event in ``data[start:stop]``, or 0. An empty line, LF or CRLF, ends one."""
    plain = data.rfind(b"\n\n", start, stop)
    crlf = data.rfind(b"\r\n\r\n", start, stop)
    return max(plain + 2 if plain >= 0 else 0, crlf + 4 if crlf >= 0 else 0)


class EventStream:
    """Follows one answer of server-sent events.

    ``feed`` takes payload as it comes and returns the whole events to pass on, byte for byte, less what the
    client did not ask for: the one usage event (``hide_usage``), and counts beside output (``hide_running``).
    ``done`` is set before ``[DONE]`` is returned, so that the caller can settle first. After an ``error``
    nothing more is returned.
    """

    __slots__ = (
        "_calls", "_carry", "_forced", "_last", "deltas", "done", "error", "finished", "hide_running",
        "hide_usage", "pattern", "usage",
    )  # fmt: skip

    def __init__(
        self, hide_usage: bool, hide_running: bool = False, forced: ForcedCall | None = None
    ) -> None:
        self.hide_usage = hide_usage
        self.hide_running = hide_running
        self.pattern: Pattern | None = None  # learns when there is one
        self.usage: TokenUsage | None = None
        self.deltas = 0  # events, or parts of one, that carry output
        self.done = False
        self.finished = False  # a finish_reason was seen
        self.error: Any = None
        self._calls: Calls | None = None
        self._forced = forced
        self._carry = bytearray()
        self._last = b""

    def feed(self, payload: bytes) -> bytes:
        """Take the next bytes; raises ``BrokenStreamError`` for an event longer than ``EVENT_BYTES``."""
        if self._carry or not payload.endswith(b"\n\n"):
            payload = self._whole_events(payload)
            if not payload:
                return b""
        if self._forced is not None:
            payload = self._forced.feed(payload)
        found = [match.end() for match in _DELTA.finditer(payload)]
        self._last = payload
        plain = True
        if len(found) != 1 or payload[found[0] - 1] == _BRACE:
            found, payload, plain = self._calls_in(found, payload)
        self.deltas += len(found)
        if not self.finished and payload.count(b'"finish_reason":null') < payload.count(b'"finish_reason"'):
            self.finished = _FINISH.search(payload) is not None
        special = _first_special(payload)
        if special >= 0:
            return self._look(payload, special)
        if self.hide_running and (b'"usage"' in payload or b'"timings"' in payload):
            return _SO_FAR.sub(b"", payload)
        if plain and len(found) == 1 and self.pattern is not None and not self.finished:
            self.pattern.learn(payload, found[0] - 1)
        return payload

    def skim(self, data: bytes) -> int:
        """How many leading bytes of ``data``, raw from a chunk's start on, may go on as they are.

        They are whole chunks of one event each with output and nothing else, and are counted.
        """
        pattern = self.pattern
        if pattern is None or self._carry:
            return 0
        if pattern.is_one(data):
            self.deltas += 1
            return len(data)
        taken, count = pattern.leading(data)
        self.deltas += count
        return taken

    def rest(self) -> bytes:
        """What is left at the end of the body: an event without its empty line."""
        rest = bytes(self._carry)
        self._carry.clear()
        return self.feed(rest + b"\n\n") if rest.strip() else b""

    def counted(self) -> TokenUsage:
        """What is known of a stream that was cut: the engine's running count, else the deltas seen."""
        if self.usage is not None:
            return self.usage
        if b'"usage"' in self._last and (running := find_usage(self._last)) is not None:
            return running
        predicted = _last_of(_PREDICTED, self._last)
        if predicted is None:
            return TokenUsage(output_tokens=self.deltas, counted_by="stream")
        # llama.cpp's timings carry the engine's own counts.
        prompt, cached = _last_of(_PROMPT, self._last), _last_of(_CACHED, self._last)
        hits = int(cached[1]) if cached else 0
        given = (int(prompt[1]) if prompt else 0) + hits
        return TokenUsage(given, hits, int(predicted[1]), 0, "engine")

    def _calls_in(self, found: list[int], payload: bytes) -> tuple[list[int], bytes, bool]:
        """The pieces of output only; ``payload`` with its calls as clients expect them; if more may go on.

        ``_DELTA`` finds both at once, since a search of its own would cost every event more.
        """
        output = [at for at in found if payload[at - 1] != _BRACE or payload[at - 2] == _QUOTE]
        if len(output) == len(found):
            return found, payload, True
        if self._calls is None:
            self._calls = Calls()
        mended = self._calls.mend(payload)
        plain = mended == payload and not self._calls.first
        if not plain and self.pattern is not None:
            self.pattern.forget()
        return output, mended, plain

    def _whole_events(self, payload: bytes) -> bytes:
        carry = self._carry
        start = max(0, len(carry) - 3)
        carry += payload
        end = _boundary(carry, start)
        if end == 0:
            if len(carry) > EVENT_BYTES:
                raise BrokenStreamError(f"the engine sent an event of more than {EVENT_BYTES} bytes")
            return b""
        whole = bytes(carry[:end])
        del carry[:end]
        return whole

    def _look(self, payload: bytes, special: int) -> bytes:
        """The slow path: one by one, from the first event on that carries usage, an error or the end."""
        position = _boundary(payload, 0, special)
        kept = [self._shown(payload[:position])]
        for match in EVENTS.finditer(payload, position):
            event = payload[position : match.end()]
            position = match.end()
            shown = self._pass(event)
            if shown:
                kept.append(self._shown(shown))
            if self.error is not None:
                return b"".join(kept)
        kept.append(payload[position:])
        return b"".join(kept)

    def _shown(self, event: bytes) -> bytes:
        """``event`` without counts beside its output, unless the client asked for those."""
        return _SO_FAR.sub(b"", event) if self.hide_running and _OUTPUT.search(event) else event

    def _pass(self, event: bytes) -> bytes:
        """Note what one event says; return what the client shall see of it."""
        body = event.strip()
        if not body.startswith(b"data:"):
            return event
        body = body[5:].strip()
        if body == b"[DONE]":
            self.done = True
            return event
        if _FINISH.search(body):
            self.finished = True
        if b'"usage"' not in body and b'"error"' not in body:
            return event
        try:
            chunk = orjson.loads(body)
        except orjson.JSONDecodeError:
            return event
        if not isinstance(chunk, dict):
            return event
        if chunk.get("error"):
            self.error = chunk
            self.pattern = None
            return b""
        return self._usage_event(event, chunk)

    def _usage_event(self, event: bytes, chunk: dict[str, Any]) -> bytes:
        usage = usage_of(chunk.get("usage"))
        if usage is None:
            return event
        self.usage = usage
        if chunk.get("choices"):
            return event
        if self.hide_usage:
            return b""
        # Clients read ``choices`` of every event; some engines leave it out of this one.
        return event if "choices" in chunk else b"data: " + orjson.dumps({**chunk, "choices": []}) + b"\n\n"
