"""The gateway as a process of its own, for tests that kill it or measure its memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path


def gateway(folder: Path, logged: Path | None = None) -> subprocess.Popen[bytes]:
    names = {"table": "table.json", "spool": "spool/gateway-0.jsonl", "control": "c.sock", "state": "g.json"}
    files = [part for name, file in names.items() for part in (f"--{name}", str(folder / file))]
    with open(logged or folder / "log", "ab") as log:
        argv = [sys.executable, "-m", "tokenmill.gateway", *files, "--port", "0"]
        return subprocess.Popen(argv, stderr=log)


async def port_of(folder: Path, process: subprocess.Popen[bytes]) -> int:
    for _ in range(600):
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((folder / "g.json").read_text())
            if found["pid"] == process.pid:
                return int(found["port"])
        assert process.poll() is None, (folder / "log").read_text()
        await asyncio.sleep(0.05)
    raise AssertionError("the gateway did not start")


def memory_of(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Bytes that it holds now, and the most that it ever held."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    now, most = (re.search(rf"{name}:\s+(\d+) kB", text) for name in ("VmRSS", "VmHWM"))
    assert now
    assert most
    return int(now[1]) * 1024, int(most[1]) * 1024
