"""Two real gateway processes on loopback: one forwards to the other what it cannot serve and may send."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from tokenmill.domain.factory import Quota
from tokenmill.domain.table import AliasEntry, Endpoint, KeyEntry, Table, TenantEntry

pytestmark = pytest.mark.live

HERE, THERE, BOUND = "tm-" + "h" * 40, "tm-" + "t" * 40, "tm-" + "b" * 40


def key(name: str, secret: str, tenant: str) -> KeyEntry:
    return KeyEntry(name, hashlib.sha256(secret.encode()).hexdigest(), tenant, "p", "inference")


def tenant(name: str, *jurisdictions: str) -> TenantEntry:
    return TenantEntry(name, Quota(), jurisdictions, (("p", Quota()),))


def peer_at(port: int, jurisdiction: str = "US") -> Endpoint:
    name = "peer:there"
    return Endpoint(
        name, name, f"127.0.0.1:{port}", jurisdiction, 64, key_ref="secret://env/PEER_KEY", served_model="m"
    )


def alias(*endpoints: Endpoint) -> AliasEntry:
    return AliasEntry("m", "chat", 4096, (("rel-1", 1000),), endpoints, (), 1, "f")


@contextlib.contextmanager
def gateway(folder: Path, table: Table) -> Iterator[int]:
    """A gateway process that serves ``table``; gives its port."""
    folder.mkdir(exist_ok=True)
    publish(folder, table)
    names = {"table": "table.json", "spool": "gateway-0.jsonl", "control": "c.sock", "state": "state.json"}
    files = [part for name, file in names.items() for part in (f"--{name}", str(folder / file))]
    command = [sys.executable, "-m", "tokenmill.gateway", *files, "--port", "0"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stderr=log, env={"PEER_KEY": THERE, "PATH": "/usr/bin:/bin"})
    try:
        while not (folder / "state.json").exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
                raise AssertionError((folder / "log").read_text())
        yield json.loads((folder / "state.json").read_text())["port"]
    finally:
        process.terminate()
        assert process.wait(30) == 0


def publish(folder: Path, table: Table) -> None:
    (folder / "new").write_bytes(msgspec.json.encode(table))
    (folder / "new").rename(folder / "table.json")


async def published(folder: Path, table: Table) -> None:
    """Publish it, and wait until the gateway there says that it knows it."""
    publish(folder, table)
    while json.loads((folder / "state.json").read_text())["table_version"] != table.version:
        await asyncio.sleep(0.02)


async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Streams two tokens and usage for every request."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            delta = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}
            usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
            events = [*(json.dumps(e) for e in (delta, delta, usage)), "[DONE]"]
            body = "".join(f"data: {e}\n\n" for e in events).encode()
            start = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            writer.write(start + b"content-length: %d\r\n\r\n%b" % (len(body), body))
    writer.close()


def settlements(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(x) for x in (folder / "gateway-0.jsonl").read_bytes().splitlines()]
    return [x for x in lines if x["t"] == "settle"]


async def ask(port: int, secret: str) -> str:
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key=secret, max_retries=0
    ) as client:
        messages: Any = [{"role": "user", "content": "hi"}]
        stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
        return "".join([c.choices[0].delta.content or "" async for c in stream])


def test_a_peer_answers_what_we_cannot_and_may_send(tmp_path: Path) -> None:
    async def work() -> None:
        server = await asyncio.start_server(engine, "127.0.0.1", 0)
        own = Endpoint("r-1", "rel-1", f"127.0.0.1:{server.sockets[0].getsockname()[1]}", "US", 4)
        there = Table(1, "there", (key("k", THERE, "here"),), (tenant("here"),), (alias(own),))
        with gateway(tmp_path / "there", there) as there_port:
            keys = (key("k1", HERE, "free"), key("k2", BOUND, "bound"))
            here = Table(
                1, "here", keys, (tenant("free"), tenant("bound", "DE")), (alias(peer_at(there_port)),)
            )
            with gateway(tmp_path / "here", here) as here_port:
                assert await ask(here_port, HERE) == "xx"
                with pytest.raises(openai.PermissionDeniedError) as abroad:
                    await ask(here_port, BOUND)
                assert abroad.value.code == "residency_refused"
                first, second = settlements(tmp_path / "here")
                assert (first["outcome"], first["replica"]) == ("ok", "peer:there")
                assert (first["input_tokens"], first["output_tokens"]) == (3, 2)
                assert second["outcome"] == "refused"
                assert [x["outcome"] for x in settlements(tmp_path / "there")] == ["ok"]
                # A circle: the peer now names us as its peer. A request travels once and then is refused.
                circle = replace(there, version=2, aliases=(alias(peer_at(here_port)),))
                await published(tmp_path / "there", circle)
                with pytest.raises(openai.APIStatusError) as refused:
                    await ask(here_port, HERE)
                assert refused.value.status_code in (502, 503)
                assert len(settlements(tmp_path / "here")) == 3
                # A peer that comes back to offering nothing leaves the directory's table.
                await published(tmp_path / "there", replace(there, version=3, aliases=()))
                with pytest.raises(openai.APIStatusError):
                    await ask(here_port, HERE)
        server.close()

    asyncio.run(asyncio.wait_for(work(), 60))
