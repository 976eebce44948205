"""Answers: what the scripted engine says, and how many whole ones some bytes hold, so that no test waits
for silence.
"""

from __future__ import annotations

import json
import re
from typing import Any

PROMPT_TOKENS = 7
LENGTH = re.compile(rb"\r\ncontent-length: (\d+)")


def whole_answers(data: bytes) -> int:
    """Answers of HTTP/1.1 that are there to their last byte; not those that only a close would end."""
    count = at = 0
    while (end := data.find(b"\r\n\r\n", at)) >= 0:
        head, at = data[at:end].lower(), end + 4
        status = int(head.split(b" ", 2)[1])
        if b"\r\ntransfer-encoding: chunked" in head:
            at = after_chunks(data, at)
        elif length := LENGTH.search(head):
            at += int(length[1])
        elif status >= 200 and status != 204:
            break
        if not 0 < at <= len(data):
            break
        count += status >= 200
    return count


def after_chunks(data: bytes, at: int) -> int:
    """Where a chunked body that begins at ``at`` has ended; 0 when its end is not there."""
    while (line := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:line], 16)
        at = line + 2 + size + 2
        if not size:
            return at
    return 0


def usage(tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": tokens,
        "total_tokens": PROMPT_TOKENS + tokens,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def whole(asked: dict[str, Any], script: dict[str, Any]) -> dict[str, Any]:
    tokens = script.get("tokens", 3)
    message = {"role": "assistant", "content": "t " * tokens + "x" * script.get("pad", 0)}
    choice = {"index": 0, "message": message, "text": "t " * tokens, "finish_reason": "stop"}
    return {
        "id": "c-1",
        "object": "chat.completion",
        "created": 1,
        "model": asked["model"],
        "choices": [choice],
        **({} if script.get("no_usage") else {"usage": usage(tokens)}),
    }


def events(asked: dict[str, Any], script: dict[str, Any]) -> list[bytes]:
    """The events of a stream: role, one per token, finish, usage when asked for, [DONE]."""
    tokens = script.get("tokens", 3)

    def chunk(choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": asked["model"]}
        said = json.dumps({**kind, "choices": choices, **more}, ensure_ascii=False)
        return b"data: " + said.encode() + b"\n\n"

    def choice(delta: dict[str, Any], finish: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": delta, "finish_reason": finish}]

    found = [chunk(choice({"role": "assistant", "content": ""}))]
    if script.get("error_first"):
        found = []
    if "calls" in script:  # parts of tool calls, as an engine would send them
        found += [chunk(choice({"tool_calls": [part]})) for part in script["calls"]]
    running = bool(asked.get("timings_per_token"))
    words = script.get("words") or [f"t{n} " for n in range(tokens)]
    found += [chunk(choice({"content": w}), **so_far(n + 1, running)) for n, w in enumerate(words)]
    if "error_after" in script:
        error = b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'
        return [*found[: script["error_after"]], error, b"data: [DONE]\n\n"]
    found.append(chunk(choice({}, script.get("finish", "stop")), **so_far(tokens, running)))
    if (asked.get("stream_options") or {}).get("include_usage") and not script.get("no_usage"):
        found.append(chunk([], usage=usage(tokens)))
    return found if script.get("no_done") else [*found, b"data: [DONE]\n\n"]


def so_far(tokens: int, running: bool) -> dict[str, Any]:
    """What llama.cpp says in every event when it is asked for timings."""
    return (
        {"timings": {"cache_n": 2, "prompt_n": PROMPT_TOKENS - 2, "predicted_n": tokens}} if running else {}
    )


def embeddings(asked: dict[str, Any]) -> dict[str, Any]:
    vector: Any = [0.5, -1.0]
    if asked.get("encoding_format") == "base64":
        vector = "AAAAPwAAgL8="
    return {
        "object": "list",
        "model": asked["model"],
        "usage": {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS},
        "data": [{"object": "embedding", "index": 0, "embedding": vector}],
    }
