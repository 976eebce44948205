"""How the tenant's API reads parameters and answers: OpenAI's error objects, lists and limits.

Raises ``ApiRefusedError`` for everything that is the client's to mend; a ``TokenmillError`` of the house
becomes the same shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tokenmill.console.problems import status_of
from tokenmill.domain.codec import parse_json
from tokenmill.domain.error_object import error_object
from tokenmill.domain.errors import DataError, TokenmillError

METADATA_MOST = (16, 64, 512)  # pairs, characters of a key, of a value


class ApiRefusedError(Exception):
    """A request that is answered with an error object."""

    def __init__(self, status: int, code: str | None, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param


def bad(message: str, param: str | None = None, code: str = "invalid_value") -> ApiRefusedError:
    return ApiRefusedError(400, code, message, param)


def missing(kind: str, name: str) -> ApiRefusedError:
    """Also the answer for what belongs to somebody else."""
    return ApiRefusedError(404, f"{kind}_not_found", f"No such {kind}: '{name[:100]}'.", "id")


def answer(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def refuse(error: ApiRefusedError) -> Response:
    return answer(error_object(error.status, error.code, error.message, error.param), error.status)


def refuse_house(error: TokenmillError) -> Response:
    """An error of the house. What a store or disk says is for the operator, who finds it in the log."""
    status = status_of(error)
    if status >= 500:
        shown = error_object(
            503, "unavailable", "The factory cannot do this now. Ask again; its operator has the reason."
        )
        return Response(msgspec.json.encode(shown), 503, {"retry-after": "5"}, media_type="application/json")
    return answer(error_object(status, error.kind, str(error)), status)


def query_count(request: Request, name: str, default: int, most: int) -> int:
    """A whole number from 1 to ``most`` in the query."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= most:
        raise bad(f"'{name}' must be a whole number from 1 to {most}.", name)
    return int(text)


def listing(rows: Sequence[dict[str, Any]], limit: int) -> Response:
    """A page. ``rows`` holds one more than ``limit`` when there is a next page."""
    shown = list(rows[:limit])
    return answer(
        {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(rows) > limit,
        }
    )


async def read_json(request: Request, limit: int = 1024 * 1024) -> dict[str, Any]:
    """The body as a JSON object of at most ``limit`` bytes."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise ApiRefusedError(413, None, f"The body exceeds {limit} bytes.")
        parts.append(part)
    try:
        found = parse_json(b"".join(parts))
    except DataError as error:
        raise bad(f"We could not parse the JSON body of your request: {error.problem.message}.") from None
    if not isinstance(found, dict):
        raise bad("The body must be a JSON object.")
    return found


def seconds(at_us: int) -> int | None:
    """Unix seconds, or nothing for a moment that has not come."""
    return at_us // 1_000_000 if at_us else None


def metadata_of(wanted: object) -> Mapping[str, str]:
    """The names and texts that a client keeps with an object."""
    pairs, key_most, value_most = METADATA_MOST
    if wanted is None:
        return {}
    if (
        not isinstance(wanted, dict)
        or len(wanted) > pairs
        or any(not isinstance(v, str) or len(v) > value_most or len(k) > key_most for k, v in wanted.items())
    ):
        raise bad(
            f"'metadata' must be at most {pairs} texts of at most {value_most} characters under names of at "
            f"most {key_most}.",
            "metadata",
        )
    return wanted
