"""A page of another origin in a real browser: only it can say whether our headers are what it wants."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import SECRET, chat, rig, run

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("default::DeprecationWarning")]

CHROMIUM = Path("/usr/bin/chromium")
CALL = """async ([url, secret, body]) => {
    try {
        const headers = {"authorization": `Bearer ${secret}`, "content-type": "application/json"};
        headers["x-stainless-lang"] = "js";
        const answer = await fetch(url + "/v1/chat/completions", {method: "POST", headers, body});
        return [answer.status, answer.headers.get("x-request-id"), await answer.text()];
    } catch (error) { return [0, "", String(error)]; }
}"""


@contextlib.contextmanager
def page_server() -> Iterator[str]:
    """The origin of an empty page."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "0")
            self.send_header("content-type", "text/html")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def called(origin: str, url: str, bodies: list[str]) -> list[tuple[int, str, str]]:
    """What a page of ``origin`` gets for each body, and for a wrong key."""
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        page.goto(origin)
        asked = [(SECRET, body) for body in bodies] + [("tm-none", bodies[0])]
        found = [tuple(page.evaluate(CALL, [url, secret, body])) for secret, body in asked]
        browser.close()
    return found


@pytest.mark.parametrize("listed", [True, False])
def test_a_page_calls_only_where_its_origin_is_listed(tmp_path: Path, listed: bool) -> None:
    if not CHROMIUM.exists():
        if os.environ.get("CI") == "true" or os.environ.get("TOKENMILL_REQUIRE_ALL") == "1":
            pytest.fail("there is no /usr/bin/chromium, and nothing may be skipped here")
        pytest.skip("there is no /usr/bin/chromium")
    bodies = [json.dumps(chat({"tokens": 2}, stream=stream)) for stream in (False, True)]

    async def work() -> None:
        with page_server() as origin:
            allowed = (origin,) if listed else ("https://app.example.org",)
            async with rig(tmp_path, allowed_origins=allowed) as r:
                whole, stream, denied = await asyncio.to_thread(called, origin, r.url, bodies)
                if not listed:
                    assert [whole[0], stream[0], denied[0]] == [0, 0, 0]
                    assert "Failed to fetch" in whole[2]
                    assert r.engines[0].requests == [], "the browser asked first, and went no further"
                    return
                assert whole[0] == stream[0] == 200
                assert whole[1].startswith("req-")
                assert "data: [DONE]" in stream[2]
                assert (denied[0], json.loads(denied[2])["error"]["code"]) == (401, "invalid_api_key")

    run(work)
