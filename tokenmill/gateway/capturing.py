"""Keeps answers of projects that agreed to it, redacted, as rows that their lines can learn from.

Only whole answers to chat and completion requests are kept: nothing that failed, was cut, broke off or has
pictures in it, and nothing that says ``"store": false``, the API's own way to decline. Redaction and writing
happen beside the event loop; when too much waits for them a row is left out, never delayed or lost to the
client. Kept rows name no person: ``user`` is a digest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import orjson

from tokenmill.control.requests import Index
from tokenmill.domain.factory import Capture
from tokenmill.domain.ledger import Outcome, Settlement
from tokenmill.domain.redact import redacted, redacted_values
from tokenmill.domain.table import KeyEntry
from tokenmill.gateway.body import CHAT, EMBEDDINGS, Asked
from tokenmill.gateway.dialects.events import ChunkParser
from tokenmill.gateway.metrics import Labels, Metrics
from tokenmill.spec.capture_files import ROW_BYTES, CaptureFiles, consent_digest, user_digest

WAITING_MOST = 256
ANSWER_BYTES = 1024 * 1024
WHOLE = frozenset(("stop", "tool_calls"))


class Served(Protocol):
    """The exchange whose answer it is."""

    settlement: Settlement | None
    response_id: str

    @property
    def asked(self) -> Asked: ...


class Captures:
    """What one gateway process keeps. ``counts`` says what became of answers that might have been kept."""

    def __init__(
        self, root: Path, writer: int, loop: asyncio.AbstractEventLoop, counts: dict[Labels, int]
    ) -> None:
        self.root = root
        self.counts = counts
        self.problem = ""
        self._writer = writer
        self._loop = loop
        self._thread = ThreadPoolExecutor(1, "captures")
        self._waiting = 0
        self._files: dict[tuple[str, str], CaptureFiles] = {}  # of the thread

    def keeper(self, index: Index, key: KeyEntry, draw: Callable[[], int]) -> Keeper | None:
        """Who listens to the answer to a request of this key: nobody where nothing was agreed to, or chance
        left it out.
        """
        tenant = index.tenants.get(key.tenant)
        if tenant is None or not tenant.captures:
            return None
        found = next((capture for project, capture in tenant.captures if project == key.project), None)
        if found is None:
            return None
        if draw() >= found.share_milli:
            self.count("not_drawn")
            return None
        return Keeper(self, found)

    def count(self, result: str) -> None:
        Metrics.add(self.counts, (result,))

    def write(self, capture: Capture, settlement: Settlement, asked: Asked, answer: list[bytes]) -> None:
        """Turn an answer into a row and append it, in a thread of our own."""
        if self._waiting >= WAITING_MOST:
            self.count("busy")
            return
        self._waiting += 1
        work = self._loop.run_in_executor(self._thread, self._write, capture, settlement, asked, answer)
        work.add_done_callback(self._written)

    def _write(self, capture: Capture, settlement: Settlement, asked: Asked, answer: list[bytes]) -> str:
        row = row_of(asked, b"".join(answer))
        if isinstance(row, str):
            return row
        user = asked.document.get("safety_identifier") or asked.document.get("user")
        row |= {
            "request": settlement.request,
            "response": settlement.response,
            "alias": settlement.alias,
            "release": settlement.release,
            "at_us": settlement.at_us,
            "user": user_digest(user) if isinstance(user, str) else "",
            "consent": consent_digest(capture.consent),
        }
        if len(orjson.dumps(row)) > ROW_BYTES:
            return "too_long"
        owner = settlement.tenant, settlement.project
        files = self._files.setdefault(owner, CaptureFiles(self.root, *owner))
        if not files.admits(settlement.at_us, capture):
            return "full"
        files.keep(settlement.at_us, self._writer, row)
        return "kept"

    def _written(self, work: asyncio.Future[str]) -> None:
        self._waiting -= 1
        error = work.exception()
        if error is not None and not isinstance(error, OSError | ValueError):
            self._loop.call_exception_handler({"message": "an answer was not kept", "exception": error})
        self.problem = f"answers cannot be kept: {error}" if error is not None else ""
        self.count("failed" if error is not None else work.result())

    def forget(self, now_us: int) -> None:
        """Delete days that are too old, also of projects that agree no more."""
        self._loop.run_in_executor(self._thread, self._forget, now_us)

    def _forget(self, now_us: int) -> None:
        self._files.clear()
        for files in CaptureFiles.all_below(self.root):
            files.forget(now_us)

    def close(self) -> None:
        """Write what waits, and end."""
        self._thread.shutdown()


class Keeper:
    """Listens to one answer as the engine gave it."""

    def __init__(self, captures: Captures, capture: Capture) -> None:
        self._captures = captures
        self._capture = capture
        self._parts: list[bytes] = []
        self._size = 0

    def wants(self, asked: Asked) -> bool:
        """Whether the answer to this request may be kept. One that is not wanted is not to be heard."""
        if asked.alias not in self._capture.aliases or asked.endpoint == EMBEDDINGS:
            return False
        if asked.document.get("store") is False:
            self._captures.count("declined")
            return False
        return True

    def hear(self, data: bytes) -> None:
        """A piece of the answer's body, without framing."""
        self._size += len(data)
        if self._size <= ANSWER_BYTES:
            self._parts.append(data)

    def end(self, served: Served) -> None:
        """The client has all of the answer, and it is settled."""
        settlement = served.settlement
        if settlement is None or settlement.outcome is not Outcome.OK or settlement.status != 200:
            return
        if self._size > ANSWER_BYTES:
            self._captures.count("too_long")
        else:
            self._captures.write(self._capture, settlement, served.asked, self._parts)


def row_of(asked: Asked, answer: bytes) -> dict[str, Any] | str:
    """A row in OpenAI's chat fine-tuning format, or in one word why there is none."""
    messages = _said(asked)
    if messages is None:
        return "no_text"
    message, finish = _streamed(answer) if asked.stream else _whole(answer)
    if finish not in WHOLE:
        return "cut"
    if not (message.get("content") or message.get("tool_calls")):
        return "no_text"
    replaced = 0
    for said in (*messages, message):
        said["content"], found = redacted(said.get("content") or "")
        replaced += found.total()
    row: dict[str, Any] = {"messages": [*messages, {"role": "assistant", **message}]}
    if asked.endpoint == CHAT and asked.document.get("tools"):
        row["tools"], found = redacted_values(asked.document["tools"])
        replaced += found.total()
    return row | {"redacted": replaced}


def _said(asked: Asked) -> list[dict[str, Any]] | None:
    """The request's messages as text, or ``None`` when they are more than text."""
    if asked.endpoint != CHAT:
        prompt = asked.document.get("prompt")
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else None
    said: list[dict[str, Any]] = []
    for message in asked.document["messages"]:
        content = message.get("content")
        if isinstance(content, list):
            if any(part.get("type") != "text" for part in content):
                return None
            content = "".join(str(part.get("text", "")) for part in content)
        kept = {"role": message["role"], "content": content}
        if message.get("tool_calls"):
            kept["tool_calls"] = _calls(message["tool_calls"])
        if message.get("tool_call_id"):
            kept["tool_call_id"] = message["tool_call_id"]
        said.append(kept)
    return said


def _whole(answer: bytes) -> tuple[dict[str, Any], str]:
    document = orjson.loads(answer)
    choice = document["choices"][0]
    message = choice.get("message") or {"content": choice.get("text")}
    return _assistant(message.get("content"), message.get("tool_calls") or []), choice["finish_reason"]


def _streamed(answer: bytes) -> tuple[dict[str, Any], str]:
    """The first choice of a stream, put together from its deltas."""
    text: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    finish = ""
    for choice in _choices(answer):
        delta = choice.get("delta") or {"content": choice.get("text")}
        text.append(delta.get("content") or "")
        for part in delta.get("tool_calls") or []:
            call = calls.setdefault(part.get("index", 0), {"function": {"name": "", "arguments": ""}})
            call["id"] = part.get("id") or call.get("id", "")
            for name in ("name", "arguments"):
                call["function"][name] += (part.get("function") or {}).get(name) or ""
        finish = choice.get("finish_reason") or finish
    return _assistant("".join(text), [calls[number] for number in sorted(calls)]), finish


def _choices(answer: bytes) -> Iterable[dict[str, Any]]:
    """The first choice of each chunk. Raises ``ValueError`` when a chunk cannot be read."""
    parser = ChunkParser()
    chunks = parser.feed(answer + b"\n")
    if parser.broken:
        raise ValueError(f"{parser.broken} chunks of the stream cannot be read")
    for chunk in chunks:
        for choice in chunk.get("choices") or []:
            if choice.get("index", 0) == 0:
                yield choice


def _assistant(content: str | None, calls: list[dict[str, Any]]) -> dict[str, Any]:
    return {"content": content or "", **({"tool_calls": _calls(calls)} if calls else {})}


def _calls(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tool calls in the form of a row. Arguments are redacted as the data that they are, not as text."""
    kept = []
    for call in calls:
        asked = call.get("function") or {}
        arguments = str(asked.get("arguments") or "")
        try:
            arguments = orjson.dumps(redacted_values(orjson.loads(arguments))[0]).decode()
        except orjson.JSONDecodeError:
            arguments = redacted(arguments)[0]
        function = {"name": str(asked.get("name") or ""), "arguments": arguments}
        kept.append({"id": str(call.get("id") or ""), "type": "function", "function": function})
    return kept
