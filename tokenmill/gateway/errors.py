"""OpenAI error objects: one class that carries status and code, and the ways to make one.

All four keys (message, type, param, code) are always there. It also turns an engine's own error into
this shape, so that a client can tell a context overflow by its code and by the classic sentence.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from tokenmill.control.requests import Refuse
from tokenmill.domain.error_object import error_object

_OVERFLOW = re.compile(
    r"exceed_context_size|context_length_exceeded|exceeds the available context|maximum context length"
    r"|context window|longer than the maximum model length|max_model_len|too large to process",
    re.IGNORECASE,
)
_INPUT = re.compile(r"input \((\d+) tokens\)")
"""llama.cpp calls a text to embed that is longer than its batch, some contexts, a fault of the server."""

_BLIND = re.compile(
    r"(?:image|audio) input is not supported|not a multimodal model|does not support image|no multimodal",
    re.IGNORECASE,
)


_SCHEMA = re.compile(r"JSON schema error at .*", re.DOTALL)
"""Behind what llama.cpp says of its templates, which is no help to who wrote the schema."""

_OF_TOOL = re.compile(r"#/\$defs/(tools\[\d+\]\.function\.parameters)")
"""Where the schema of a function stands in that of an answer that has to be a call (``tools``)."""

_FIELD = re.compile(r"Field '(\w+)': (?:\[json\.exception\S+\] )?(.+)", re.DOTALL)
"""How llama.cpp says which field it cannot read."""


class ApiError(Exception):
    """A refusal or failure that is answered with an OpenAI error object.

    ``retry_us`` > 0 becomes Retry-After; ``reasons`` go to the settlement and to ``x-tokenmill-reason``.
    """

    def __init__(
        self,
        status: int,
        code: str | None,
        message: str,
        *,
        param: str | None = None,
        retry_us: int = 0,
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_us = retry_us
        self.reason = reason or message

    @property
    def body(self) -> bytes:
        """The JSON that goes to the client."""
        return orjson.dumps(error_object(self.status, self.code, self.message, self.param))

    @property
    def headers(self) -> bytes:
        """Retry headers, which SDKs obey, and nothing when there is nothing to wait for."""
        if self.code == "insufficient_quota":
            return b"x-should-retry: false\r\n"
        if self.retry_us <= 0:
            return b""
        seconds = -(-self.retry_us // 1_000_000)
        return b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (seconds, -(-self.retry_us // 1000))

    @property
    def event(self) -> bytes:
        """The same as one server-sent event, for a stream that has begun."""
        return b"data: " + self.body + b"\n\n"


def invalid_key() -> ApiError:
    return ApiError(
        401,
        "invalid_api_key",
        "Incorrect API key provided. Send `Authorization: Bearer tm-...` with a key that is not expired; "
        "`tokenmill keys create` makes one.",
    )


def unknown_model(name: str) -> ApiError:
    """Also the answer for a model that exists but is not for this tenant, so that names do not leak."""
    shown = name if len(name) <= 200 else name[:200] + "..."
    return ApiError(
        404,
        "model_not_found",
        f"The model `{shown}` does not exist or you do not have access to it. GET /v1/models lists yours.",
        param="model",
    )


def bad_request(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    return ApiError(400, code, message, param=param)


def context_overflow(limit: int, asked: int, field: str) -> ApiError:
    """The classic sentence; clients match its words when they do not look at the code."""
    had = f" However, your {field} resulted in {asked} tokens." if asked else ""
    return ApiError(
        400,
        "context_length_exceeded",
        f"This model's maximum context length is {limit} tokens.{had} "
        f"Please reduce the length of the {field}.",
        param=field,
    )


def unknown_path(method: str, path: str) -> ApiError:
    return ApiError(404, "unknown_url", f"Unknown request URL: {method} {path[:200]}.")


def not_stored(name: str) -> ApiError:
    """For whoever asks for a Response by its id."""
    message = f"Response '{name[:100]}' is not found: responses are not stored here; keep what you need."
    return ApiError(404, "response_not_found", message, param="id")


def unavailable(message: str, retry_us: int = 1_000_000, code: str = "engine_unavailable") -> ApiError:
    return ApiError(503, code, message, retry_us=retry_us)


def refusal(refused: Refuse) -> ApiError:
    """Control's refusal in OpenAI's terms: a quota that waiting will not help is ``insufficient_quota``."""
    code = refused.code
    if refused.status == 429 and (code == "request_too_large" or refused.retry_after_s > 3600):
        code = "insufficient_quota"
    message = refused.message
    if refused.reasons and refused.status != 429:
        message = f"{message} {'; '.join(refused.reasons)}."
    param = "model" if code == "model_not_found" else None
    return ApiError(refused.status, code, message, param=param, retry_us=refused.retry_after_s * 1_000_000)


def from_engine(status: int, body: bytes, context_tokens: int, field: str = "messages") -> ApiError:
    """Map what an engine answered with an error status. Never passes a bare or HTML body on.

    ``field`` is what the request says of its input.
    """
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        parsed = None
    return from_engine_object(status, parsed, context_tokens, field)


def from_engine_object(status: int, parsed: Any, context_tokens: int, field: str = "messages") -> ApiError:
    """As ``from_engine``, for an error object that is already parsed (also from inside a stream)."""
    inner: Any = parsed.get("error", parsed) if isinstance(parsed, dict) else parsed
    fields: dict[str, Any] = inner if isinstance(inner, dict) else {"message": inner}
    raw = fields.get("message") or fields.get("detail") or ""
    message = (raw if isinstance(raw, str) else orjson.dumps(raw).decode())[:2000]
    if _OVERFLOW.search(f"{fields.get('type', '')} {fields.get('code', '')} {message}"):
        counted = _INPUT.search(message)
        asked = int(counted[1]) if counted is not None else fields.get("n_prompt_tokens")
        limit = fields.get("n_ctx")
        return context_overflow(
            limit if isinstance(limit, int) else context_tokens, asked if isinstance(asked, int) else 0, field
        )
    if _BLIND.search(message):
        sense = "hear audio" if "audio" in message else "see images"
        text = f"This model cannot {sense}. GET /v1/models lists the others."
        return ApiError(400, "unsupported_content", text, param="messages", reason=message)
    if (schema := _SCHEMA.search(message)) is not None:
        found = _OF_TOOL.search(schema[0])
        told = _OF_TOOL.sub(r"\1", schema[0])
        text = f"A JSON schema of the request cannot be used: {told}"
        return ApiError(400, "invalid_value", text, param=found and found[1], reason=message)
    code, param = fields.get("code"), fields.get("param")
    if (named := _FIELD.match(message)) is not None:
        message, param = f"'{named[1]}': {named[2]}.", named[1]
    if status == 422:
        status = 400
    if status in (401, 403):  # the engine refused us, not the client's key
        return ApiError(502, "engine_error", "The engine refused the gateway's request.", reason=message)
    if not message:
        message = f"The engine answered with status {status} and no message."
    return ApiError(
        status,
        code if isinstance(code, str) else ("invalid_value" if status == 400 else "engine_error"),
        message,
        param=param if isinstance(param, str) else None,
        retry_us=1_000_000 if status in (429, 503) else 0,
    )
