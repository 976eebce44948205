"""The gateway under test: the real process with all that it does turned on.

A thousand keys, a tenant and a project with quotas of every kind (too high to refuse), eight replicas to
choose from with prefix affinity, settlements to a spool on disk, metrics.
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tokenmill.domain.factory import Quota
from tokenmill.domain.table import AliasEntry, Endpoint, KeyEntry, Table, TenantEntry
from wire.programs import answers, process

SECRET = "tm-" + "b" * 40
REPLICAS = 8
MOST = 1_000_000_000
QUOTA = Quota(
    requests_per_minute=MOST,
    tokens_per_minute=1000 * MOST,
    tokens_per_day=1000 * MOST,
    concurrent_requests=MOST,
)


def table(engine: int) -> bytes:
    """A table whose replicas are all the engine at this port."""
    secrets = [SECRET, *(f"tm-{number}" for number in range(999))]
    keys = [
        KeyEntry(f"k-{n}", hashlib.sha256(s.encode()).hexdigest(), "t", "p", "inference")
        for n, s in enumerate(secrets)
    ]
    endpoints = [Endpoint(f"r-{n}", "rel", f"127.0.0.1:{engine}", "", 64) for n in range(REPLICAS)]
    alias = AliasEntry("m", "chat", 4096, (("rel", 1000),), tuple(endpoints), (), 1, "t")
    tenant = TenantEntry("t", QUOTA, (), (("p", QUOTA),))
    return msgspec.json.encode(Table(1, "f", tuple(keys), (tenant,), (alias,)))


def command(folder: Path, engine: int, port: int, index: int = 0, processes: int = 1) -> list[str]:
    """What starts one gateway process; its files go into ``folder``."""
    (folder / "table.json").write_bytes(table(engine))
    names = {
        "table": "table.json",
        "spool": f"gateway.{index}-0.jsonl",
        "control": "c.sock",
        "state": f"gateway.{index}.json",
    }
    files = [part for name, file in names.items() for part in (f"--{name}", str(folder / file))]
    share = ("--index", str(index), "--processes", str(processes))
    return [sys.executable, "-m", "tokenmill.gateway", *files, "--port", str(port), *share]


@contextlib.contextmanager
def gateway(folder: Path, engine: int, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """One gateway, not pinned, until the end of the block."""
    with process(command(folder, engine, port), log=folder / "gateway.log") as child:
        if not answers(port, alive=child):
            raise SystemExit(f"the gateway does not answer: {(folder / 'gateway.log').read_text()[-500:]}")
        yield child
