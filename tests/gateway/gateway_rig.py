"""A scripted engine on a real socket, and the real gateway in front of it, both in the test's event loop.

The engine does what the last user message says: ``{"tokens": 5, "die_after": 2, ...}``. It counts what it
produced per request id, so that a test can hold settlements against it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from answers import PROMPT_TOKENS, embeddings, events, whole, whole_answers

from tokenmill.domain.factory import Quota
from tokenmill.domain.table import AliasEntry, Endpoint, KeyEntry, Table, TenantEntry
from tokenmill.gateway.edge import Gateway
from tokenmill.gateway.options import Options
from tokenmill.gateway.server import Server

SECRET = "tm-" + "a" * 40
OTHER = "tm-" + "b" * 40
METRICS = """llamacpp:prompt_tokens_total {input}
llamacpp:prompt_tokens_cached_total 0
llamacpp:tokens_predicted_total {output}
"""


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine on uvloop, as the gateway does."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(work(), 40))


def run_beside(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """The same on asyncio's own loop, for what is beside a gateway process that is killed.

    uvloop 0.23.0 sometimes waits for ever, when it is closed, for a connection that was reset so.
    """
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(asyncio.wait_for(work(), 40))


def key(secret: str, name: str = "key-1", tenant: str = "acme", **more: Any) -> KeyEntry:
    return KeyEntry(
        name,
        hashlib.sha256(secret.encode()).hexdigest(),
        tenant,
        more.pop("project", "p"),
        "inference",
        **more,
    )


@dataclass
class Engine:
    """The scripted engine. ``produced`` maps a request id to the tokens that were written for it."""

    port: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    produced: dict[str, int] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    aborted: int = 0
    connections: int = 0
    tokenizes: bool = True
    counted: dict[str, int] = field(default_factory=lambda: {"input": 0, "output": 0})
    die_next: int = 0  # requests that it takes, works on, and dies of
    health: int = 200
    server: asyncio.Server | None = None
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self, port: int = 0) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None
        for writer in list(self.writers):
            writer.transport.abort()
        await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        # uvloop says RuntimeError when the peer of a transport has gone in the meantime.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, RuntimeError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode().split("\r\n")
                fields = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
                body = await reader.readexactly(int(fields.get("content-length", "0")))
                self.heads.append(head)
                if not await self._answer(lines[0].split()[1], fields, body, writer, reader):
                    break
        self.writers.discard(writer)
        writer.close()

    async def _answer(
        self,
        path: str,
        fields: dict[str, str],
        body: bytes,
        writer: asyncio.StreamWriter,
        reader: asyncio.StreamReader,
    ) -> bool:
        if path == "/health":
            return await reply(writer, self.health, {"status": "ok"})
        if path == "/metrics":
            return await reply(writer, 200, METRICS.format(**self.counted))
        if path in ("/apply-template", "/tokenize"):
            if not self.tokenizes:
                return await reply(writer, 404, {"error": "no"})
            return await reply(writer, 200, {"prompt": "x", "tokens": list(range(PROMPT_TOKENS))})
        asked = json.loads(body)
        self.requests.append(asked)
        script = script_of(asked)
        request = fields.get("x-request-id", "")
        if "status" in script:
            return await reply(writer, script["status"], script.get("body", {"error": {"message": "broken"}}))
        self.counted["input"] += PROMPT_TOKENS
        if self.die_next or script.get("die_now"):
            self.die_next = max(0, self.die_next - 1)
            writer.transport.abort()
            return False
        await worked(script.get("first_s", 0), reader)
        if path.endswith("/embeddings"):
            return await reply(writer, 200, embeddings(asked))
        if not asked.get("stream"):
            self.produced[request] = script.get("tokens", 3)
            self.counted["output"] += self.produced[request]
            done = await reply(writer, 200, whole(asked, script))
            self.finished.add(request)
            return done
        return await self._stream(asked, script, request, writer, reader)

    async def _stream(
        self,
        asked: dict[str, Any],
        script: dict[str, Any],
        request: str,
        writer: asyncio.StreamWriter,
        reader: asyncio.StreamReader,
    ) -> bool:
        sse = "text/event-stream"
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {sse}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        split = script.get("split", 0)
        try:
            for number, event in enumerate(events(asked, script)):
                if script.get("die_after") == number:
                    await writer.drain()
                    await asyncio.sleep(0.02)
                    writer.transport.abort()
                    return False
                if b'"content": "t' in event or b'"text": "t' in event:
                    self.produced[request] = self.produced.get(request, 0) + 1
                    self.counted["output"] += 1
                data = b"%x\r\n%b\r\n" % (len(event), event)
                for start in range(0, len(data), split or len(data)):
                    writer.write(data[start : start + (split or len(data))])
                    await writer.drain()
                    if split:
                        await asyncio.sleep(0)
                await worked(script.get("gap_s", 0), reader)
                if reader.at_eof():
                    raise ConnectionResetError
            writer.write(b"0\r\n\r\n")
            await writer.drain()
            self.finished.add(request)
        except (ConnectionError, RuntimeError):
            self.aborted += 1
            return False
        return True


async def worked(seconds: float, reader: asyncio.StreamReader) -> None:
    """So long, or until the gateway has hung up; others get their turn in any case."""
    while True:
        await asyncio.sleep(max(0.0, min(seconds, 0.02)))
        seconds -= 0.02
        if seconds <= 0 or reader.at_eof():
            return


def script_of(asked: dict[str, Any]) -> dict[str, Any]:
    """The script in the last message or prompt; an ordinary text is the empty script."""
    text = (
        asked["messages"][-1]["content"] if "messages" in asked else asked.get("prompt", asked.get("input"))
    )
    try:
        found = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


async def reply(writer: asyncio.StreamWriter, status: int, body: Any) -> bool:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    writer.write(b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n" % status)
    writer.write(b"content-length: %d\r\n\r\n%b" % (len(data), data))
    await writer.drain()
    return True


@dataclass
class Rig:
    """A gateway, its engines and its files."""

    folder: Path
    engines: list[Engine]
    server: Server
    gateway: Gateway
    table: Table

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"

    def publish(self, **changes: Any) -> None:
        """Write a newer table, as the controller does."""
        self.table = replace(self.table, version=self.table.version + 1, **changes)
        write_table(self.folder, self.table)
        self.gateway.poll_table()

    def lines(self, kind: str = "settle") -> list[dict[str, Any]]:
        """Spool lines of one kind, over all files in order."""
        files = sorted(self.folder.glob("spool/gateway-*.jsonl"), key=lambda p: int(p.stem.split("-")[-1]))
        every = [json.loads(line) for path in files for line in path.read_bytes().splitlines()]
        return [line for line in every if line["t"] == kind]

    async def settled(self, count: int) -> list[dict[str, Any]]:
        """Wait until ``count`` settlements are written."""
        for _ in range(2000):
            if len(self.lines()) >= count:
                break
            await asyncio.sleep(0.01)
        found = self.lines()
        assert len(found) == count, found
        return found


def write_table(folder: Path, table: Table) -> None:
    temporary = folder / "table.json.new"
    temporary.write_bytes(msgspec.json.encode(table))
    temporary.rename(folder / "table.json")


def table_of(engines: list[Engine], **alias: Any) -> Table:
    """One tenant with two keys' worth of access, aliases ``m``, ``org/m:1``, ``embed`` and a private one."""
    endpoints = tuple(
        Endpoint(f"r-{n}", "rel-1", f"127.0.0.1:{e.port}", "DE", 64) for n, e in enumerate(engines)
    )
    fields = {"targets": (("rel-1", 1000),), "endpoints": endpoints, "created_s": 1, "owner": "acme"}
    chat = AliasEntry(name="m", kind="chat", context_tokens=4096, tenants=(), **{**fields, **alias})
    return Table(
        1,
        "f",
        (key(SECRET), key(OTHER, "key-2", "other")),
        (
            TenantEntry("acme", Quota(), (), (("p", Quota()),)),
            TenantEntry("other", Quota(), ("US",), (("p", Quota()),)),
        ),
        (
            chat,
            replace(chat, name="org/m:1"),
            replace(chat, name="embed", kind="embedding"),
            replace(chat, name="private", tenants=("other",)),
        ),
    )


@contextlib.asynccontextmanager
async def rig(folder: Path, engines: int = 1, **options: Any) -> AsyncIterator[Rig]:
    """Start ``engines`` engines and a gateway; stop all at the end."""
    fleet = [Engine() for _ in range(engines)]
    for engine in fleet:
        await engine.start()
    table = table_of(fleet)
    write_table(folder, table)
    chosen = Options(
        table=folder / "table.json",
        spool=folder / "spool" / "gateway-0.jsonl",
        control=folder / "control.sock",
        state=folder / "gateway.json",
        **{"port": 0, "drain_s": 2.0, "free_bytes": 0, **options},
    )
    server = Server(chosen)
    gateway = await server.start()
    try:
        yield Rig(folder, fleet, server, gateway, table)
    finally:
        await server.stop()
        for engine in fleet:
            await engine.stop()


async def raw(rig: Rig, data: bytes, answers: int = 1, *, leave_at: bytes = b"") -> bytes:
    """Send bytes as they are; return what comes until the gateway closes or ``answers`` are there whole.

    A client that leaves does so once ``leave_at`` has come.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.gateway.port)
    writer.write(data)
    got = b""
    with contextlib.suppress(ConnectionError):
        while (leave_at not in got) if leave_at else (whole_answers(got) < answers):
            if not (piece := await reader.read(65536)):
                break
            got += piece
    writer.close()
    return got


def post(body: Any, path: str = "/v1/chat/completions", headers: str = "", secret: str = SECRET) -> bytes:
    """A whole request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\n{headers}"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


def chat(script: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """The body of a chat request that carries a script for the engine."""
    content = json.dumps(script or {})
    return {"model": "m", "messages": [{"role": "user", "content": content}], **more}
