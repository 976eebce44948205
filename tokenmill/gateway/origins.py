"""Pages of other origins that may call the gateway from a browser (CORS), where the operator lists them.

Only what takes a key is shared: the API below ``/v1``, never the console, the admin API or metrics. Nothing
is allowed with cookies: there is no ``access-control-allow-credentials``. Used only when there is a list.
"""

from __future__ import annotations

import re

from tokenmill.gateway.client import ClientConnection
from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.message import HttpRequest

ANY = "*"
SHARED = ("/v1/", "/v2/")
METHODS = b"GET, HEAD, POST, DELETE"
KEEP_S = 600
"""A browser asks again after so long whether it may."""

_NAMES = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z, -]{0,2048}")


class SharingConnection(ClientConnection):
    """A connection whose answers say that the asking page may read them."""

    def head(self, request: HttpRequest, status: int, headers: bytes, length: int | None) -> bytes:
        more = allowance(self.edge.options.allowed_origins, request.path, request.header(b"origin"))
        return super().head(request, status, headers + more, length)

    def refusal_headers(self) -> bytes:
        path = self._target.partition(b"?")[0].decode("latin-1")
        return allowance(self.edge.options.allowed_origins, path, dict(self._headers).get(b"origin", b""))


def allowance(allowed: tuple[str, ...], path: str, origin: bytes) -> bytes:
    """Header lines that let a page of ``origin`` read the answer; ``b""`` for a path that is not shared."""
    if not path.startswith(SHARED):
        return b""
    if ANY in allowed:
        return b"access-control-allow-origin: *\r\naccess-control-expose-headers: *\r\n"
    if origin.decode("latin-1") not in allowed:
        return b"vary: origin\r\n"
    return b"vary: origin\r\naccess-control-allow-origin: %b\r\naccess-control-expose-headers: *\r\n" % origin


def preflight(allowed: tuple[str, ...], request: HttpRequest) -> bytes | None:
    """What to answer, beside the allowance, to a browser that asks whether a page may call; ``None`` when
    this is no such question. Raises ``ApiError`` 403 for a page that may not.

    The headers that it names are allowed as they are: SDKs in browsers send a dozen of their own.
    """
    origin = request.header(b"origin")
    asked = request.header(b"access-control-request-method")
    if request.method != "OPTIONS" or not (origin and asked) or not request.path.startswith(SHARED):
        return None
    if b"allow-origin" not in allowance(allowed, request.path, origin):
        shown = origin[:200].decode("latin-1")
        raise ApiError(403, "origin_not_allowed", f"Pages of {shown} may not call this gateway.")
    names = request.header(b"access-control-request-headers")
    if not _NAMES.fullmatch(names):
        raise ApiError(400, None, "Access-Control-Request-Headers is no list of header names.")
    lines = b"access-control-allow-methods: %b\r\naccess-control-max-age: %d\r\n" % (METHODS, KEEP_S)
    return lines + (b"access-control-allow-headers: %b\r\n" % names if names else b"")
