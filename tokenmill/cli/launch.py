"""Starts the controller's process and waits for it, showing what is being waited for.

Starting itself is ``floor.controller``'s; here a person sees imports and engines come up.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import psutil
from rich.console import Console
from rich.markup import escape

from tokenmill.cli.client import Client
from tokenmill.cli.options import Place
from tokenmill.cli.output import stderr
from tokenmill.console.reading import read_log
from tokenmill.console.text import duration, number, size
from tokenmill.domain.errors import EngineError, NotFoundError, ResourceError, TokenmillError
from tokenmill.floor.controller import start_controller

POLL_S = 0.25
LOG_LINES = 12


def start(place: Place, *, detached: bool) -> int:
    """Start the controller and return its pid. Detached, it has its own session and outlives this command."""
    if detached:
        return start_controller(place.paths, place.settings, place.file)
    argv = (sys.executable, "-m", "tokenmill.compose", "control")
    place.paths.logs.mkdir(parents=True, exist_ok=True)
    with place.paths.log("control").open("ab") as log:
        child = subprocess.Popen(
            (*argv, "--dir", str(place.paths.root), "--factory", str(place.file)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=place.file.parent,
        )
    child.returncode = 0  # it is waited for by pid
    return child.pid


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_up(client: Client, pid: int, until: float) -> dict[str, Any]:
    """Return the first status of a controller that leads. Raises ``ResourceError`` when it ended instead."""
    while True:
        if not lives(pid):
            raise _ended(client.place)
        try:
            found: dict[str, Any] = client.get("/api/status")
        except (NotFoundError, ResourceError):
            if time.monotonic() > until:
                raise ResourceError(
                    "the controller does not answer",
                    expected="an answer on its socket",
                    fix="tokenmill logs control",
                ) from None
            time.sleep(POLL_S)
        else:
            return found


def wait_until_ready(client: Client, pid: int, until: float) -> dict[str, Any]:
    """Show what is being waited for until the factory is ready. Raises ``EngineError`` at the deadline."""
    shown, started = "", time.monotonic()
    with _Line(stderr()) as line:
        while True:
            if not lives(pid):
                raise _ended(client.place)
            found: dict[str, Any] = client.get("/api/status")
            if found["ready"]:
                return found
            waiting = "; ".join(waiting_for(found)) or "the controller"
            if waiting != shown:
                line.say(waiting)
                shown = waiting
            line.tick(waiting, time.monotonic() - started)
            if time.monotonic() > until:
                raise EngineError(
                    "the factory is not ready yet: " + waiting,
                    expected="every deployment of a model with one ready replica",
                    fix="tokenmill status; tokenmill logs control. It goes on trying until tokenmill down.",
                )
            time.sleep(POLL_S)


def waiting_for(shown: dict[str, Any]) -> list[str]:
    """One phrase per thing that is not there yet."""
    found = []
    for item in shown["imports"]:
        if item["status"] == "importing":
            found.append(f"importing weights of {item['model']}{_amount(item['progress'])}")
        elif item["error"]:
            found.append(f"weights of {item['model']}: {item['error']}")
    for deployment in shown["deployments"]:
        if not deployment["model"] or deployment["ready_replicas"]:
            continue
        for replica in deployment["replicas"]:
            if replica["status"] == "starting":
                found.append(f"engine of {deployment['name']} is starting")
            elif replica["reason"]:
                found.append(f"{deployment['name']}: {replica['reason']}")
    if not found:
        found = list(shown["reasons"])
    return list(dict.fromkeys(found))


def _amount(progress: dict[str, Any]) -> str:
    done, total, unit = progress.get("done"), progress.get("total"), progress.get("unit", "")
    if not total:
        return ""
    if unit == "bytes":
        return f" ({size(done or 0)} of {size(total)})"
    return f" ({number(done or 0)} of {number(total)} {unit})"


def _ended(place: Place) -> TokenmillError:
    """What the controller said last if that was an error, else the end of its log."""
    try:
        lines = str(read_log(place.paths, "control", LOG_LINES, None)["text"]).splitlines()
    except TokenmillError:
        lines = []
    said = [entry for line in lines if (entry := _entry(line))]
    if said and said[-1].get("level") == "error":
        return ResourceError(f"the controller ended: {said[-1]['message']}", fix="tokenmill logs control")
    tail = "\n".join(f"    {line}" for line in lines)
    return ResourceError(f"the controller ended; the end of its log:\n{tail}", fix="tokenmill doctor")


def _entry(line: str) -> dict[str, Any]:
    """One structured line of a log; empty for what is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and "message" in found else {}


class _Line:
    """One line that changes on a terminal; a new line per change elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.status = console.status("") if console.is_terminal else None

    def __enter__(self) -> _Line:
        if self.status:
            self.status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.status:
            self.status.stop()

    def say(self, text: str) -> None:
        if not self.status:
            self.console.print(f"waiting: {escape(text)}")

    def tick(self, text: str, seconds: float) -> None:
        if self.status:
            self.status.update(f"{escape(text)} [dim]{duration(seconds * 1e6)}[/dim]")
