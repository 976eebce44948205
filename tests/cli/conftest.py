"""The command line over a simulated controller: no process, no socket, one event loop in a thread."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio.from_thread
import httpx
import pytest
from typer.testing import CliRunner, Result

from tokenmill.cli import client as cli_client
from tokenmill.cli.app import app

sys.path.insert(0, str(Path(__file__).parents[1] / "console"))

from console_bed import Bed


class LoopTransport(httpx.BaseTransport):
    """Sends a blocking client's requests to an ASGI app in another thread's event loop."""

    def __init__(self, bed: Bed) -> None:
        self.inner = httpx.ASGITransport(bed.app)
        assert bed.client.portal is not None
        self.portal: anyio.from_thread.BlockingPortal = bed.client.portal

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def send() -> httpx.Response:
            found = await self.inner.handle_async_request(
                httpx.Request(request.method, request.url, headers=request.headers, content=request.read())
            )
            return httpx.Response(found.status_code, headers=found.headers, content=await found.aread())

        return self.portal.call(send)


class Shell:
    """Runs ``tokenmill`` in a folder and returns what it printed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runner = CliRunner()

    def __call__(self, *words: str, code: int = 0, input: str | None = None) -> Result:  # noqa: A002
        found = self.runner.invoke(app, list(words), input=input, prog_name="tokenmill")
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        assert found.exit_code == code, f"{words}: {found.exit_code}\n{found.stdout}\n{found.stderr}"
        return found

    def json(self, *words: str, code: int = 0) -> Any:
        """What the verb says with --json: one document on stdout and nothing else."""
        end = words.index("--") if "--" in words else len(words)
        return json.loads(self(*words[:end], "--json", *words[end:], code=code).stdout)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A folder without a running factory."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "TOKENMILL_URL",
        "TOKENMILL_API_KEY",
        "TOKENMILL_DATA_DIR",
        "TOKENMILL_LOG_LEVEL",
        "TOKENMILL_PORT",
        "COLUMNS",  # set by the runner of parallel tests
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("TOKENMILL_PORT", "0")
    return Shell(tmp_path)


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    with Bed(tmp_path).opened() as opened:
        opened.apply()
        yield opened


@pytest.fixture
def factory(bed: Bed, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A folder whose factory runs."""
    monkeypatch.setattr(cli_client, "socket_transport", lambda _place: LoopTransport(bed))
    return shell
