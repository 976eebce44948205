"""Who leads a factory with PostgreSQL when controllers die, stand still, or start where they may not."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from live_bed import FACTORY, LiveFactory

from tokenmill.domain.errors import ResourceError

pytestmark = [pytest.mark.live, pytest.mark.postgres]

BARE = replace(FACTORY, models=(), deployments=())
Until = Callable[..., None]


@pytest.fixture
def made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres_url: str
) -> Iterator[Callable[[str], LiveFactory]]:
    """Makes data directories that share one database."""
    monkeypatch.setenv("TOKENMILL_PORT", "0")
    monkeypatch.setenv("TOKENMILL_DATABASE_URL", postgres_url)
    known: list[LiveFactory] = []

    def make(name: str) -> LiveFactory:
        (tmp_path / name).mkdir()
        known.append(LiveFactory(tmp_path / name))
        return known[-1]

    yield make
    for factory in known:
        factory.show_logs()
        factory.clean_up()


def submit(factory: LiveFactory, script: str) -> str:
    body = {
        "tenant": "acme",
        "project": "default",
        "command": ["/bin/sh", "-c", script],
        "resources": {"cpu_millis": 100, "memory_bytes": 100_000_000},
        "timeout_us": 600_000_000,
    }
    return str(factory.api("POST", "/api/jobs", body)["job"])


def job(factory: LiveFactory, name: str) -> dict[str, Any]:
    found: dict[str, Any] = factory.api("GET", f"/api/jobs/{name}")
    return found


def log_of(factory: LiveFactory) -> str:
    return factory.paths.log("control").read_text()


def check_balanced(factory: LiveFactory) -> None:
    report = factory.api("GET", "/api/ledger/verify")
    assert report["ok"], report["problems"]


def test_a_store_is_led_from_its_own_directory_only(
    made: Callable[[str], LiveFactory], tmp_path: Path, until: Until
) -> None:
    here, there = made("here"), made("there")
    here.up(BARE)
    ran = tmp_path / "ran"
    name = submit(here, f"echo once >> {ran}; while [ ! -e {tmp_path}/go ]; do sleep 0.1; done")
    until(ran.exists)
    here.kill_controller()
    with pytest.raises(ResourceError, match=f"belongs to the data directory of .*{here.paths.root}"):
        there.up(BARE)
    assert "took over" not in log_of(there)
    here.up()
    shutil.copy(here.paths.home, there.paths.home)  # as though the directory were seen from another machine
    with pytest.raises(ResourceError, match="leads this factory"):
        there.up(BARE)
    assert "took over" not in log_of(there), "it never led"
    (tmp_path / "go").touch()
    until(lambda: job(here, name)["status"] == "succeeded")
    assert ran.read_text() == "once\n"
    check_balanced(here)
    here.down()


def test_a_leader_that_stood_still_and_goes_on_does_nothing_twice(
    made: Callable[[str], LiveFactory], tmp_path: Path, until: Until
) -> None:
    """The lock on the directory is gone, as between machines that share a folder without locks."""
    live = made("mill")
    first = live.up(BARE)
    ran = tmp_path / "ran"
    name = submit(live, f"echo once >> {ran}; while [ ! -e {tmp_path}/go ]; do sleep 0.1; done")
    until(ran.exists)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        live.paths.lock.unlink()
        second = live.up()
        assert second.pid != first.pid
        (tmp_path / "go").touch()
        until(lambda: job(live, name)["status"] == "succeeded")
    finally:
        os.kill(first.pid, signal.SIGCONT)
    until(lambda: not first.lives())
    assert "another controller took over" in log_of(live)
    after = submit(live, f"echo again >> {ran}")
    until(lambda: job(live, after)["status"] == "succeeded")
    assert ran.read_text() == "once\nagain\n"
    assert second.lives()
    check_balanced(live)
    live.down()
    assert live.left() == {}
