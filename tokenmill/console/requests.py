"""Reads request bodies and query parameters within limits, and writes JSON answers.

Every wrong input is a ``UsageError`` that names the field; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tokenmill.console.problems import body_of, status_of
from tokenmill.domain.codec import parse_json, to_plain
from tokenmill.domain.errors import DataError, TokenmillError, UsageError

BODY_LIMIT = 4 * 2**20

T = TypeVar("T")

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
        found = parse_json(raw)
    except DataError as error:
        raise UsageError(f"the body is {error.problem.message}", expected="a JSON object") from error
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


def flag_of(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}"[:200], expected="true or false")
    return value


def record_of(value: Any, kind: type[T], what: str) -> T:
    """A domain value that somebody sent. Raises ``UsageError`` that names the field that is wrong, missing or
    not known: a caller of another version must not believe that it was heard."""
    try:
        found = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        said, _, at = str(error).partition(" - at ")
        where = at.strip("`").removeprefix("$").removeprefix(".")
        raise UsageError(
            f"{what} cannot be read: {where + ': ' if where else ''}{said[:1].lower()}{said[1:]}",
            expected="fields and types as docs/factory-file.md and the API's answers have them",
        ) from error
    unknown = _unknown(value, to_plain(found))
    if unknown:
        raise UsageError(
            f"{what} has fields that are not known here: {', '.join(unknown[:10])}"[:500],
            fix="Correct their names, or use the version of Tokenmill that this factory runs.",
        )
    return found


def _unknown(sent: Any, known: Any, at: str = "") -> list[str]:
    """Where ``sent`` has keys that ``known``, what was understood of it, has not."""
    if isinstance(sent, dict) and isinstance(known, dict):
        here = [f"{at}{name}" for name in sent if name not in known]
        return here + [
            found
            for name, value in sent.items()
            if name in known
            for found in _unknown(value, known[name], f"{at}{name}.")
        ]
    if isinstance(sent, list | tuple) and isinstance(known, list | tuple):
        pairs = enumerate(zip(sent, known, strict=False))
        return [found for i, (left, right) in pairs for found in _unknown(left, right, f"{at}{i}.")]
    return []


def query_number(request: Request, name: str, default: int, most: int = 2**62) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or int(text) > most:
        raise UsageError(f"{name}={text!r} cannot be used", expected=f"a whole number up to {most}")
    return int(text)
