"""Reads request bodies and query parameters within limits, and writes JSON answers.

Every wrong input is a ``UsageError`` that names the field; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tokenmill.console.problems import body_of, status_of
from tokenmill.domain.codec import to_plain
from tokenmill.domain.errors import TokenmillError, UsageError

BODY_LIMIT = 4 * 2**20

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


def answer(value: Any, status: int = 200) -> Response:
    """``value`` (dataclasses allowed) as JSON."""
    return Response(msgspec.json.encode(to_plain(value)), status, media_type="application/json")


def refuse(error: TokenmillError) -> Response:
    return answer(body_of(error), status_of(error))


async def read_bytes(request: Request, limit: int = BODY_LIMIT) -> bytes:
    """The body. Raises ``UsageError`` as soon as more than ``limit`` bytes came."""
    parts, count = [], 0
    async for part in request.stream():
        count += len(part)
        if count > limit:
            raise UsageError("the request body is too large", expected=f"at most {limit} bytes")
        parts.append(part)
    return b"".join(parts)


async def read_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object; an empty body is an empty object."""
    raw = await read_bytes(request)
    if not raw.strip():
        return {}
    try:
        found = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise UsageError(f"the body is not JSON: {error}", expected="a JSON object") from error
    if not isinstance(found, dict):
        raise UsageError("the body is not a JSON object", expected="a JSON object")
    return found


def text_of(body: dict[str, Any], name: str, default: str = "") -> str:
    value = body.get(name, default)
    if not isinstance(value, str) or len(value) > 256:
        raise UsageError(f"{name} is {value!r}"[:200], expected="a text of at most 256 characters")
    return value


def number_of(body: dict[str, Any], name: str, default: int = 0) -> int:
    value = body.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UsageError(f"{name} is {value!r}"[:200], expected="a whole number of zero or more")
    return value


def query_number(request: Request, name: str, default: int, most: int = 2**62) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or int(text) > most:
        raise UsageError(f"{name}={text!r} cannot be used", expected=f"a whole number up to {most}")
    return int(text)
