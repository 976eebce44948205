"""``hf://`` through the hub's own client, against a server here that answers as the hub does.

Only the real client shows which addresses it asks for, and which errors come out of it.
"""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tokenmill.line.job import StationJob
from tokenmill.line.rows import read_rows

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

ROWS = b'{"prompt": "where is it", "completion": "here"}\n' * 3
COMMIT = "a" * 40
API = "/api/datasets/acme/cards"


class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == API:
            self.answer(200, json.dumps({"id": "acme/cards", "sha": COMMIT, "siblings": []}).encode())
        elif path == f"{API}/tree/main":
            entry = {"type": "file", "path": "rows.jsonl", "size": len(ROWS), "oid": COMMIT}
            self.answer(200, json.dumps([entry]).encode())
        elif path == "/datasets/acme/cards/resolve/main/rows.jsonl":
            self.answer(200, ROWS)
        else:
            self.answer(404, b"{}")

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.send_header("x-repo-commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def hub() -> Iterator[str]:
    pytest.importorskip("huggingface_hub")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(5)


def run(job: StationJob, endpoint: str) -> dict[str, Any]:
    """The station as the floor starts it; the hub's client reads its address once, when it is loaded."""
    env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    subprocess.run(
        [sys.executable, "-m", "tokenmill.line", str(job.directory)],
        env={**env, "HF_ENDPOINT": endpoint, "HF_HOME": str(job.directory / "hub"), "NO_PROXY": "127.0.0.1"},
        timeout=100,
        check=False,
    )
    ended = [job.directory / name for name in ("result.json", "error.json")]
    found: dict[str, Any] = json.loads(next(path for path in ended if path.exists()).read_bytes())
    return found


def test_a_data_set_of_the_hub_is_read(job_of: Callable[..., StationJob], hub: str) -> None:
    job = job_of("intake", {"path": "hf://datasets/acme/cards/rows.jsonl"})
    result = run(job, hub)
    assert result["metrics"]["rows"] == 3
    assert len(list(read_rows(job.artifacts.path(result["outputs"]["rows"])))) == 3


@pytest.mark.parametrize(
    ("path", "endpoint"), [("acme/absent/rows.jsonl", ""), ("acme/cards/rows.jsonl", "http://127.0.0.1:9")]
)
def test_what_cannot_be_had_is_a_clear_error(
    job_of: Callable[..., StationJob], hub: str, path: str, endpoint: str
) -> None:
    error = run(job_of("intake", {"path": f"hf://datasets/{path}"}), endpoint or hub)
    assert "the data cannot be read" in json.dumps(error)
    assert "Traceback" not in json.dumps(error)
    assert path in json.dumps(error)
