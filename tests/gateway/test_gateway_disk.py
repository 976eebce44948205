"""A disk that takes nothing any more: what is open ends well, what is new is refused, nothing dies of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from gateway_rig import SECRET, Engine, chat, run, table_of, write_table
from process_rig import gateway, port_of

from tokenmill.domain.factory import Quota
from tokenmill.domain.table import TenantEntry
from tokenmill.domain.value import replace
from tokenmill.gateway.alone import OwnMeters
from tokenmill.gateway.shared import SharedFile, SharedMeters
from tokenmill.policy.admit import Meter


@contextlib.contextmanager
def no_writes() -> Iterator[None]:
    """No file of this process takes a byte, as on a disk that became read-only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("alone", [True, False])
def test_meters_that_no_disk_takes_are_kept_in_the_process(tmp_path: Path, alone: bool) -> None:
    def meter(day: int) -> Meter:
        return Meter(day=day)

    file = SharedFile(tmp_path / "meters", 0, 1 if alone else 2)
    meters = OwnMeters(file, "meter ", lambda flush: flush()) if alone else SharedMeters(file, "meter ")
    meters.set("old", meter(1))
    with no_writes():
        meters.set("old", meter(2))
        meters.set("new", meter(3))
        file.compact([])
        assert (meters.get("old"), meters.get("new")) == (meter(2), meter(3))
    other = SharedMeters(SharedFile(tmp_path / "meters", 1, 2), "meter ")
    assert (other.get("old"), other.get("new")) == (meter(1), None)
    meters.set("old", meter(4))
    meters.set("new", meter(5))
    assert (other.get("old"), other.get("new")) == (meter(4), meter(5))


@pytest.fixture
def failing_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which the kernel can be told to make read-only at once, open files or not."""
    image, folder = tmp_path / "disk", tmp_path / "mounted"
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("to mount a disk takes root and mkfs.ext4")
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(48 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    if subprocess.run(["mount", "-o", "loop,errors=remount-ro", image, folder], check=False).returncode:
        pytest.skip("this machine mounts no loop device")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_becomes_read_only_ends_no_stream(failing_disk: Path) -> None:
    folder = failing_disk
    ask, key = "/v1/chat/completions", {"authorization": f"Bearer {SECRET}"}

    async def work() -> None:
        engine = Engine()
        await engine.start()
        table = table_of([engine])
        limited = TenantEntry("acme", Quota(requests_per_minute=600), (), (("p", Quota()),))
        write_table(folder, replace(table, tenants=(limited, *table.tenants[1:])))
        log = folder.with_name("log")
        process = gateway(folder, log)
        url = f"http://127.0.0.1:{await port_of(folder, process)}"
        async with httpx.AsyncClient(base_url=url, headers=key, timeout=20) as client:
            assert (await client.post(ask, json=chat())).status_code == 200
            body = chat({"tokens": 60, "gap_s": 0.05}, stream=True)
            async with client.stream("POST", ask, json=body) as answer:
                said = answer.aiter_bytes()
                await anext(said)
                subprocess.run(["mount", "-o", "remount,abort", folder], check=True)
                refused = [await client.post(ask, json=chat()) for _ in range(3)]
                assert [(a.status_code, a.json()["error"]["code"]) for a in refused] == [
                    (503, "spool_unwritable")
                ] * 3
                rest = b"".join([piece async for piece in said])
            assert rest.endswith(b"data: [DONE]\n\n")
            why = (await client.get("/readyz")).json()["reasons"]
            assert any("Read-only file system" in reason for reason in why)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0
        again = gateway(folder, log)
        assert await asyncio.to_thread(again.wait, 20) == 13
        await engine.stop()
        text = log.read_text()
        assert "Traceback" not in text
        assert text.count("g.json cannot be written: Read-only file system") == 1
        assert "settlements could not be written" in text
        assert "make the disk writable" in text

    run(work)
