"""Who may use the admin API: whoever reaches the unix socket, or an admin key from outside.

The socket's directory belongs to the factory's user, so a direct caller is trusted. What the gateway forwards
carries ``x-tokenmill-forwarded`` (the gateway strips it from clients first) and needs an admin key, as bearer
token or as the session that ``/login`` gives for one. Sessions live in memory and die with the controller.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenmill.console.context import ApiContext
from tokenmill.console.problems import body_of
from tokenmill.domain.errors import ResourceError
from tokenmill.domain.work import Key

FORWARDED = "x-tokenmill-forwarded"
COOKIE = "tokenmill_session"
OPEN_PATHS = ("/login", "/console/style.css", "/console/icon.svg")
TENANT_TREE = "/v1/"
SESSION_US = 12 * 3600 * 1_000_000
MAX_SESSIONS = 256
LOGIN_TRIES = 10
LOGIN_WINDOW_US = 60_000_000


@dataclass(slots=True)
class Sessions:
    """Logged-in browsers by the digest of their cookie, oldest out first, and the recent failed logins."""

    now_us: Callable[[], int]
    live: OrderedDict[str, tuple[str, int]] = field(default_factory=OrderedDict)
    failures: deque[int] = field(default_factory=lambda: deque(maxlen=LOGIN_TRIES))

    def open(self, key_id: str) -> str:
        """Return the new cookie's value."""
        value = secrets.token_urlsafe(32)
        self.live[_digest(value)] = (key_id, self.now_us() + SESSION_US)
        while len(self.live) > MAX_SESSIONS:
            self.live.popitem(last=False)
        return value

    def key_of(self, cookie: str) -> str:
        key_id, until_us = self.live.get(_digest(cookie), ("", 0))
        return key_id if until_us > self.now_us() else ""

    def close(self, cookie: str) -> None:
        self.live.pop(_digest(cookie), None)

    def failed(self) -> None:
        self.failures.append(self.now_us())

    def wait_us(self) -> int:
        """How long logins are closed after too many failures; 0 when they are open."""
        if len(self.failures) < LOGIN_TRIES:
            return 0
        return max(0, self.failures[0] + LOGIN_WINDOW_US - self.now_us())


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def live_key(context: ApiContext, secret: str) -> Key | None:
    """The live key that ``secret`` opens. Every key is compared, in constant time each."""
    digest, now_us, found = _digest(secret), context.now_us(), None
    for key in context.state.keys.values():
        if hmac.compare_digest(key.digest, digest) and not key.disabled and not 0 < key.expires_us <= now_us:
            found = key
    return found


def admin_key(context: ApiContext, secret: str) -> Key | None:
    """The live admin key that ``secret`` opens."""
    key = live_key(context, secret)
    return key if key is not None and key.scope == "admin" else None


def usable(key: Key, now_us: int) -> bool:
    return key.scope == "admin" and not key.disabled and not 0 < key.expires_us <= now_us


def guard(app: ASGIApp, context: ApiContext, sessions: Sessions) -> ASGIApp:
    """Let a request through, with ``scope["state"]["by"]`` set to who asks, or answer 401 or 403."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(TENANT_TREE):
            await app(scope, receive, send)  # the tenant's API asks for a key of its own kind
            return
        headers = Headers(scope=scope)
        by, refusal = _who(context, sessions, scope, headers)
        if refusal is not None:
            await refusal(scope, receive, _secured(send))
            return
        if not context.runtime.ready.is_set() and scope["path"] not in OPEN_PATHS:
            # Until the journal is replayed the state is not the factory's, and nothing may be decided on it.
            await _STARTING(scope, receive, _secured(send))
            return
        scope.setdefault("state", {})["by"] = by
        await app(scope, receive, _secured(send))

    return guarded


def _who(
    context: ApiContext, sessions: Sessions, scope: Scope, headers: Headers
) -> tuple[str, Response | None]:
    if FORWARDED not in headers:
        return "operator", None
    path = scope["path"]
    if scope["method"] not in ("GET", "HEAD") and not same_origin(headers):
        return "", _refusal(403, "the request comes from another site", "Use the console's own pages.")
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret:
        key = admin_key(context, secret.strip())
        if key is not None:
            return key.id, None
        return "", _refusal(401, "this is not a live admin key", "Make one: tokenmill keys create --admin")
    cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
    key_id = sessions.key_of(cookie) if cookie else ""
    held = context.state.keys.get(key_id)
    if held is not None and usable(held, context.now_us()):
        return held.id, None
    if path in OPEN_PATHS:
        return "", None
    if path.startswith(("/api/", "/console/fragments")):
        return "", _refusal(
            401, "an admin key is needed", "Send it as 'Authorization: Bearer tm-...', or sign in at /login."
        )
    return "", RedirectResponse(f"/login?next={quote(path)}", status_code=303)


def same_origin(headers: Headers) -> bool:
    """Whether a browser's ``Origin`` is the address that it asked. No browser leaves it out on a POST."""
    origin = headers.get("origin", "")
    if not origin:
        return headers.get("sec-fetch-site", "none") in ("none", "same-origin")
    return urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


def _refusal(status: int, message: str, fix: str) -> Response:
    kind = "refused" if status == 403 else "unauthorized"
    body = {"kind": kind, "message": message, "expected": "", "fix": fix, "where": "", "reasons": []}
    headers = {"www-authenticate": 'Bearer realm="tokenmill"'} if status == 401 else {}
    return JSONResponse(
        {"error": {**body, "exit_code": 6, "problems": [], "problem_count": 0}}, status, headers
    )


_STARTING = JSONResponse(
    body_of(ResourceError("the controller is starting", fix="Try again in a second.")),
    503,
    {"retry-after": "1", "refresh": "1"},
)


def nonce_of(request: Request) -> str:
    """The random word that this page's own script carries; any other script is refused by the browser."""
    return str(request.scope["state"].setdefault("nonce", secrets.token_urlsafe(16)))


def _secured(send: Send) -> Send:
    """Headers that every answer carries. A page with a script sets its own, stricter-by-nonce policy."""

    async def secured(message: Message) -> None:
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message["headers"]}
            extra = [
                (b"x-content-type-options", b"nosniff"),
                (b"x-frame-options", b"DENY"),
                (b"referrer-policy", b"same-origin"),
                (b"cross-origin-opener-policy", b"same-origin"),
                (b"cache-control", b"no-store"),
                (b"content-security-policy", POLICY.encode()),
            ]
            message["headers"] = [*message["headers"], *((n, v) for n, v in extra if n not in names)]
        await send(message)

    return secured


POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)


def page_policy(nonce: str) -> str:
    return f"{POLICY}; script-src 'nonce-{nonce}'"


def login(context: ApiContext, sessions: Sessions, secret: str) -> str:
    """The session cookie's value for an admin key; empty when it is not one."""
    key = admin_key(context, secret.strip())
    if key is None:
        sessions.failed()
        return ""
    return sessions.open(key.id)
