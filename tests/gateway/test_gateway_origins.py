"""Pages of other origins (CORS): what a browser is told, over real sockets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gateway_rig import SECRET, Rig, chat, post, raw, rig, run

from tokenmill.domain.errors import UsageError
from tokenmill.floor.edge import Edge
from tokenmill.gateway.client import ClientConnection
from tokenmill.gateway.options import parse
from tokenmill.gateway.routes import ENDPOINTS
from tokenmill.spec.paths import Paths
from tokenmill.spec.settings import Settings, load_settings

pytestmark = pytest.mark.live

APP, EVIL = "https://app.example.org", "https://evil.example.org"
LISTED = {"allowed_origins": (APP, "http://localhost:3000")}
NAMES = "authorization,content-type,x-stainless-lang"


async def told(r: Rig, request: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer; a header that comes twice fails."""
    top, _, _ = (await raw(r, request)).partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    names = [line.split(": ", 1)[0] for line in lines]
    assert len(names) == len(set(names)), names
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines)


def options(path: str, origin: str, names: str = NAMES) -> bytes:
    return (
        f"OPTIONS {path} HTTP/1.1\r\nhost: x\r\norigin: {origin}\r\naccess-control-request-method: POST\r\n"
        f"access-control-request-headers: {names}\r\nconnection: close\r\n\r\n"
    ).encode()


def asks(origin: str, secret: str = SECRET, path: str = "/v1/chat/completions", **more: Any) -> bytes:
    return post(chat({"tokens": 1}, **more), path, f"origin: {origin}\r\nconnection: close\r\n", secret)


def shared(headers: dict[str, str]) -> list[str]:
    return [name for name in headers if name.startswith("access-control-")]


def test_without_a_list_nothing_is_shared_and_the_plain_code_runs(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            assert type(r.gateway.client()) is ClientConnection
            status, headers = await told(r, options("/v1/chat/completions", APP))
            assert (status, shared(headers)) == (401, [])
            status, headers = await told(r, asks(APP))
            assert (status, shared(headers), "vary" in headers) == (200, [], False)

    run(work)


def test_a_listed_origin_may_ask_and_read_answers_streams_and_errors(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path, **LISTED) as r:
            for path in sorted(f"/v1{path}" for path in ENDPOINTS if not path.startswith("/v2")):
                status, headers = await told(r, options(path, APP))
                assert (status, headers["access-control-allow-origin"]) == (200, APP), path
                assert headers["access-control-allow-headers"] == NAMES
                assert "POST" in headers["access-control-allow-methods"]
            assert r.engines[0].requests == []
            for request, expected in (
                (asks(APP), 200),
                (asks(APP, stream=True), 200),
                (asks(APP, path="/v1/messages", max_tokens=9), 200),
                (asks(APP, "tm-none"), 401),
                (asks(APP, model="none"), 404),
                (asks(APP, path="/v1/batches"), 503),
                (asks(APP, path="/v1/none"), 404),
                (asks(APP).replace(b"content-length: ", b"content-length: 99999999"), 413),
            ):
                status, headers = await told(r, request)
                assert (status, headers.get("access-control-allow-origin")) == (expected, APP), request[:60]
                assert headers["access-control-expose-headers"] == "*"
                assert headers["vary"] == "origin"
                assert "access-control-allow-credentials" not in headers

    run(work)


@pytest.mark.parametrize("origin", [EVIL, "null", APP + ".evil.org", APP + ":8443", "http://app.example.org"])
def test_another_origin_gets_nothing_that_a_browser_would_hand_to_its_page(
    tmp_path: Path, origin: str
) -> None:
    async def work() -> None:
        async with rig(tmp_path, **LISTED) as r:
            status, headers = await told(r, options("/v1/chat/completions", origin))
            assert (status, shared(headers)) == (403, [])
            status, headers = await told(r, asks(origin))
            assert (status, shared(headers), headers["vary"]) == (200, [], "origin")

    run(work)


def test_any_origin_only_where_it_is_said_and_never_the_console_or_metrics(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path, allowed_origins=("*",)) as r:
            status, headers = await told(r, options("/v1/models", EVIL))
            assert (status, headers["access-control-allow-origin"]) == (200, "*")
            assert "access-control-allow-credentials" not in headers
            assert (await told(r, asks(EVIL)))[1]["access-control-allow-origin"] == "*"
            for path in ("/metrics", "/", "/login", "/console/", "/api/keys", "/healthz"):
                get = f"GET {path} HTTP/1.1\r\norigin: {EVIL}\r\nconnection: close\r\n\r\n".encode()
                for request in (get, options(path, EVIL)):
                    status, headers = await told(r, request)
                    assert shared(headers) == [], (path, status)
            assert (await told(r, options("/v1/models", EVIL, "x" * 3000)))[0] == 400
            plain = options("/v1/models", EVIL).replace(b"access-control-request-method", b"x-other")
            assert (await told(r, plain))[0] == 401, "no browser's question is a request like others"

    run(work)


def test_the_setting_reaches_the_gateway_and_is_checked(tmp_path: Path) -> None:
    text = f" {APP.upper()}, http://[::1]:3000,chrome-extension://abc "
    settings = load_settings({"TOKENMILL_ALLOWED_ORIGINS": text})
    argv = Edge(None, Paths(tmp_path), settings)._order(0, 1).argv[3:]  # type: ignore[arg-type]
    assert parse(argv).allowed_origins == (APP, "http://[::1]:3000", "chrome-extension://abc")
    plain = Edge(None, Paths(tmp_path), Settings())._order(0, 1).argv[3:]  # type: ignore[arg-type]
    assert "--allowed-origins" not in plain
    assert parse(plain).allowed_origins == ()
    for wrong in (
        "app.example.org",
        "https://a.org/path",
        "https://*.a.org",
        "https://a.org\r\nx: y",
        "null",
    ):
        with pytest.raises(UsageError, match="is not an origin"):
            load_settings({"TOKENMILL_ALLOWED_ORIGINS": wrong})
