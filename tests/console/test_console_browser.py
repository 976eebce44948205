"""The page in a real browser: no error, live without a reload, light and dark, wide and narrow.

A parser cannot say whether our own content security policy lets our own script and style in.
"""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from console_bed import Bed

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("default::DeprecationWarning")]

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SHOTS = os.environ.get("TOKENMILL_TEST_SCREENSHOTS", "")


@pytest.fixture
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        if os.environ.get("CI") == "true" or os.environ.get("TOKENMILL_REQUIRE_ALL") == "1":
            pytest.fail("there is no /usr/bin/chromium, and nothing may be skipped here")
        pytest.skip("there is no /usr/bin/chromium")
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def address(served: Bed) -> Iterator[str]:
    """A loopback port in front of the app, as the gateway is."""

    class Relay(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = served.client.get(self.path)
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Relay)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(5)


def furnish(bed: Bed) -> str:
    """Runs of every kind, usage and a curve; returns the run that made the release."""
    bed.floor.reject = True
    bed.run()
    bed.floor.reject = False
    made = bed.client.post("/api/runs", json={"line": "desk", "force": "tune"}).json()["run"]
    bed.until(lambda: bed.runtime.state.runs[made].status.ended)
    bed.floor.held.add("tune")
    bed.client.post("/api/runs", json={"line": "desk", "force": "tune"})
    bed.until(lambda: bed.floor.waiting)
    bed.settle("acme", "support", "desk", 240)
    bed.settle("acme", "research", "smol", 80)
    bed.settle("globex", "web", "smol", 61)
    bed.sample()
    return str(made)


def open_page(browser: Any, url: str, *, scheme: str = "light", width: int = 1280) -> tuple[Any, list[str]]:
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 800}, device_scale_factor=2
    )
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(request.url) if failed(request) else None)
    page.on(
        "request",
        lambda request: complaints.append(request.url) if not request.url.startswith(url[:20]) else None,
    )
    page.goto(url)
    return page, complaints


def failed(request: Any) -> bool:
    """Not when the page was left while it refreshed itself, as it does every two seconds."""
    return bool(request.failure != "net::ERR_ABORTED")


def keep(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def test_the_page_lives_and_complains_of_nothing(browser: Any, served: Bed, address: str) -> None:
    made = furnish(served)
    page, complaints = open_page(browser, address + "/")
    assert page.locator("h1").inner_text() == "first"
    page.get_by_text("Live", exact=True).wait_for(timeout=60_000)
    keep(page, "status-light")
    served.client.post("/api/runs/run-000003/cancel")
    page.locator("#lines").get_by_text("cancelled").first.wait_for(timeout=60_000)
    page.locator("a", has_text=made).first.click()
    assert "Training loss" in page.content()
    keep(page, "run-light")
    assert complaints == []
    page.context.close()


def test_dark_and_narrow(browser: Any, served: Bed, address: str) -> None:
    furnish(served)
    dark, complaints = open_page(browser, address + "/", scheme="dark")
    keep(dark, "status-dark")
    assert dark.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 21, 20)"
    narrow, more = open_page(browser, address + "/", width=390)
    keep(narrow, "status-narrow")
    assert narrow.evaluate("document.documentElement.scrollWidth") <= 390
    assert complaints + more == []
    dark.context.close()
    narrow.context.close()


def test_it_says_when_the_factory_is_away(browser: Any, served: Bed, address: str) -> None:
    page, _ = open_page(browser, address + "/")
    page.route("**/console/fragments/**", lambda route: route.abort())
    page.get_by_text("Not connected").wait_for(timeout=60_000)
    page.context.close()


CONTRAST = """
() => {
  const rgb = t => (t.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = c => { const v = c / 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; };
  const luminance = c => .2126 * light(c[0]) + .7152 * light(c[1]) + .0722 * light(c[2]);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll("main *, header *")) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest("svg") || !e.getClientRects().length) continue;
    const a = luminance(rgb(getComputedStyle(e).color)), b = luminance(ground(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) found.push(e.textContent.trim().slice(0, 30) + " " + ratio.toFixed(2));
  }
  return found;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Any, served: Bed, address: str, scheme: str) -> None:
    """WCAG 2.2 AA asks for 4.5 to 1; the shapes that breathe are decoration beside words."""
    made = furnish(served)
    for path in ("/", f"/console/runs/{made}", "/login"):
        page, _ = open_page(browser, address + path, scheme=scheme)
        assert page.evaluate(CONTRAST) == [], path
        page.context.close()
