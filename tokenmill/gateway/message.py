"""An HTTP request as a value, the phrases of status lines, and what makes a request ambiguous.

Reads no socket.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PHRASES = {
    100: b"Continue",
    200: b"OK",
    201: b"Created",
    202: b"Accepted",
    204: b"No Content",
    302: b"Found",
    303: b"See Other",
    304: b"Not Modified",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    409: b"Conflict",
    413: b"Content Too Large",
    415: b"Unsupported Media Type",
    422: b"Unprocessable Content",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}


@dataclass(slots=True)
class RequestHead:
    """What a request says before its body, but for that one's length. Header names are in lower case.

    It is shared by requests that begin with the same bytes, so nobody changes it; ``sender`` is the gateway's
    own note of whose key it carries.
    """

    method: str
    path: str  # percent-decoded, without the query
    target: bytes  # as it came
    headers: list[tuple[bytes, bytes]]
    fields: dict[bytes, bytes]  # the first value of each
    keep_alive: bool
    chunked_ok: bool  # HTTP/1.1
    sender: Any = field(default=None, compare=False, repr=False)


@dataclass(slots=True)
class HttpRequest:
    """One whole request. What follows ``head`` begins as that says it, and may be changed."""

    head: RequestHead
    path: str
    target: bytes
    body: bytes
    keep_alive: bool
    chunked_ok: bool
    arrived_s: float  # loop time of the last byte
    arrived_us: int

    @property
    def method(self) -> str:
        return self.head.method

    def header(self, name: bytes) -> bytes:
        """The first value of a header, or ``b""``."""
        return self.head.fields.get(name, b"")


def ambiguity(headers: list[tuple[bytes, bytes]]) -> str:
    """Why two parsers could disagree on where this request ends or for whom it is, or ``""``."""
    counts: dict[bytes, int] = {}
    for name, _ in headers:
        counts[name] = counts.get(name, 0) + 1
    if b"transfer-encoding" in counts:
        values = [v.strip().lower() for n, v in headers if n == b"transfer-encoding"]
        if b"content-length" in counts:
            return "Both Content-Length and Transfer-Encoding are present."
        if values != [b"chunked"]:
            return "Transfer-Encoding may only be chunked."
    for name in (b"content-length", b"host", b"authorization", b"x-api-key", b"idempotency-key"):
        if counts.get(name, 0) > 1:
            return f"{name.decode()} is present more than once."
    length = dict(headers).get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 15:
        return "Content-Length is no number."
    return ""
