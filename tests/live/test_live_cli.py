"""``tokenmill`` as a person types it: a real controller and a real gateway, without a model.

Only real processes show that ``up`` outlives its command, that the page and the API answer through the
gateway for an admin key and for nobody else, and that ``down`` leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

pytestmark = pytest.mark.live

FACTORY = """
kind: factory
name: tiny
---
kind: tenant
name: acme
projects: [support]
"""


def _as_from_a_terminal() -> None:
    """Whoever runs the tests in the background has them ignore ctrl-c, and their children with them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Shell:
    """Runs the installed command in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TOKENMILL_")}
        self.environ = {**kept, "TOKENMILL_PORT": "0"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", "from tokenmill.cli import main; main()", *words],
            cwd=self.folder,
            env=self.environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=_as_from_a_terminal,
        )

    def __call__(self, *words: str, code: int = 0) -> str:
        process = self.start(*words)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, f"{words}: {process.returncode}\n{out}\n{err}"
        return out if code == 0 else err

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    (tmp_path / "factory.yaml").write_text(FACTORY)
    shell = Shell(tmp_path)
    yield shell
    shell("down")


def test_from_up_to_down(shell: Shell) -> None:
    started = shell.json("up", "--timeout", "60")
    assert started["ready"]
    secret = started["key"]["secret"]
    assert shell.json("up")["already_running"]
    assert shell.json("up").get("key") is None

    url, admin = started["url"], {"authorization": f"Bearer {secret}"}
    assert httpx.get(f"{url}/api/status").status_code == 401
    assert httpx.get(f"{url}/").status_code == 303
    assert httpx.get(f"{url}/api/status", headers=admin).json()["factory"] == "tiny"
    assert httpx.get(f"{url}/api/status", headers={"x-tokenmill-forwarded": ""}).status_code == 401
    with httpx.Client(base_url=url, follow_redirects=True) as browser:
        assert browser.post("/login", data={"key": "tm-wrong"}, headers={"origin": url}).status_code == 401
        page = browser.post("/login", data={"key": secret}, headers={"origin": url})
        assert page.status_code == 200
        assert "tiny" in page.text
        assert (
            browser.post("/api/down", json={"stop": True}, headers={"origin": "http://evil.test"}).status_code
            == 403
        )

    kinds = {row["kind"] for row in shell.json("ps")}
    assert kinds == {"control", "gateway"}
    said = shell(
        "jobs", "submit", "--wait", "--cpu", "0.1", "--memory", "32MiB", "--", "sh", "-c", "echo hello"
    )
    assert "succeeded" in said
    assert "hello" in shell("logs", said.split()[0])
    pid = started["pid"]
    shell("down")
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert "Nothing runs here." in shell("down")
    assert "is not running" in shell("status", code=4)
    again = shell.json("up", "--timeout", "60")
    assert again["key"] is None
    assert [key["id"] for key in shell.json("keys")] == [started["key"]["id"]]


def test_a_taken_port_is_said_at_once(shell: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        shell.environ["TOKENMILL_PORT"] = str(taken.getsockname()[1])
        assert "TOKENMILL_PORT" in shell("up", code=13)
    shell.environ["TOKENMILL_PORT"] = "0"
    assert not (shell.folder / ".tokenmill" / "run" / "control.json").exists()


def test_in_the_foreground_ctrl_c_stops_it(shell: Shell) -> None:
    process = shell.start("up", "--foreground", "--timeout", "60")
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and "is ready at" not in (line := process.stdout.readline()):  # type: ignore[union-attr]
            assert time.monotonic() < deadline, line
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()
    assert "is not running" in shell("status", code=4)
