"""A client that streams through flips: the real control core decides, the real gateway relays over sockets.

Engines are the scripted ones of ``gateway_rig``; each writes its release into every token, so that an answer
of two releases shows. A replica that the core stops is ended as the floor ends it: when the gateway says
that nothing is open on it (``floor.load.drained``), and not before.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from gateway_rig import SECRET, Engine, write_table

from tokenmill.control.core import step
from tokenmill.control.state import EMPTY, State
from tokenmill.domain import events as ev
from tokenmill.domain.effects import PublishTable, StartReplica, StopReplica
from tokenmill.domain.factory import CanaryPlan, CanaryStep, Deployment, Factory, Model, Node, Project, Tenant
from tokenmill.domain.work import Imported, Key
from tokenmill.floor.load import OutcomeWatch, drained
from tokenmill.gateway.edge import Gateway, clock
from tokenmill.gateway.options import Options
from tokenmill.gateway.server import Server

PLAN = CanaryPlan((CanaryStep(100, 300_000), CanaryStep(500, 300_000)), min_requests=3, latency_milli=0)


@dataclass
class Marked(Engine):
    """Writes ``mark`` as every token; fails everything when ``broken``."""

    mark: str = ""
    broken: bool = False

    async def _answer(self, path: str, fields: Any, body: bytes, writer: Any, reader: Any) -> bool:
        if path.endswith("/completions"):
            asked = json.loads(body)
            script = {"status": 500} if self.broken else {"tokens": 6, "gap_s": 0.02}
            asked["messages"][-1]["content"] = json.dumps(script)
            body = json.dumps(asked).encode()
        return await super()._answer(path, fields, body, _Marking(writer, self.mark), reader)


class _Marking:
    """A writer that puts the mark where the scripted engine writes a token's number."""

    def __init__(self, writer: Any, mark: str) -> None:
        self._writer, self._mark = writer, mark

    def write(self, data: bytes) -> None:
        if b'"content": "t' in data and data.endswith(b"\n\n\r\n"):
            size, _, event = data.partition(b"\r\n")
            del size
            event = event[:-2]
            start = event.index(b'"content": "t') + 12
            end = event.index(b'"', start)
            event = event[:start] + self._mark.encode() + event[end:]
            data = b"%x\r\n%b\r\n" % (len(event), event)
        self._writer.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


@dataclass
class Flip:
    """One factory of one alias, ``chat``. ``answers`` are (release marks, complete, status) by request."""

    folder: Path
    gateway: Gateway
    state: State = EMPTY
    engines: dict[str, Marked] = field(default_factory=dict)
    stopping: set[asyncio.Task[None]] = field(default_factory=set)
    answers: list[tuple[frozenset[str], bool, int]] = field(default_factory=list)
    published_s: float = 0.0  # from the last event to the table on disk
    broken: bool = False

    async def tell(self, event: ev.Event) -> None:
        began = time.perf_counter()
        self.state, effects = step(self.state, event)
        for effect in effects:
            if isinstance(effect, PublishTable):
                write_table(self.folder, effect.table)
                self.published_s = time.perf_counter() - began
            elif isinstance(effect, StartReplica):
                await self._start(effect)
            elif isinstance(effect, StopReplica):
                task = asyncio.create_task(self._stop(effect, self.state.table_version))
                self.stopping.add(task)
                task.add_done_callback(self.stopping.discard)

    async def _start(self, effect: StartReplica) -> None:
        engine = Marked(mark=effect.release.id, broken=self.broken)
        self.engines[effect.replica] = engine
        await engine.start()

        async def ready() -> None:
            await self.tell(ev.ReplicaStarted(clock(), effect.replica, f"127.0.0.1:{engine.port}"))
            await self.tell(ev.ReplicaReady(clock(), effect.replica))

        task = asyncio.create_task(ready())
        self.stopping.add(task)
        task.add_done_callback(self.stopping.discard)

    async def _stop(self, effect: StopReplica, version: int) -> None:
        while not drained(self.folder, effect.replica, version, clock()):
            await asyncio.sleep(0.05)
        await self.engines[effect.replica].stop()
        await self.tell(ev.ReplicaExited(clock(), effect.replica, "stopped"))

    async def watch(self) -> None:
        """What the runtime does: the gateway's counts become reports, and time passes."""
        seen = OutcomeWatch(self.folder)
        while True:
            for event in seen.look(clock()):
                await self.tell(event)
            await self.tell(ev.Tick(clock()))
            await asyncio.sleep(0.05)

    async def make(self, model: str) -> None:
        """A factory file that wants ``model`` served; its weights are there at once."""
        chat = Deployment("chat", model=model, slots=64, canary=PLAN)
        tenants = (Tenant("acme", (Project("p"),)),)
        made = Factory(
            "flip", tenants=tenants, models=(Model(model, f"package:{model}"),), deployments=(chat,)
        )
        await self.tell(ev.SpecApplied(clock(), self.state.version, made))
        await self.tell(ev.ModelImported(clock(), Imported(model, f"sha256:{model}", 1, "gguf")))

    def serves(self, release: str) -> bool:
        targets = self.state.aliases["chat"].targets
        return [(t.release, t.weight_milli) for t in targets] == [(release, 1000)]

    async def until(self, condition: Any, seconds: float = 30.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)

    async def stream(self, client: httpx.AsyncClient) -> None:
        """One streamed request; what came is kept."""
        body = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "{}"}]}
        marks: set[str] = set()
        done = False
        status = 0
        try:
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                status = answer.status_code
                async for line in answer.aiter_lines():
                    done = done or line == "data: [DONE]"
                    if line.startswith("data: {"):
                        chunk = json.loads(line[6:])
                        if "error" in chunk:
                            status = 599
                        marks |= {c["delta"].get("content") or "" for c in chunk.get("choices", ())}
        except httpx.HTTPError:
            status = status or 598
        self.answers.append((frozenset(marks - {""}), done, status))

    def wrong(self) -> list[tuple[frozenset[str], bool, int]]:
        """Answers with an error, without an end, or of more than one release."""
        return [a for a in self.answers if a[2] != 200 or not a[1] or len(a[0]) != 1]


async def load(flip: Flip, per_s: float, stop: asyncio.Event) -> None:
    """Streams at a steady rate, whatever the answers do, until ``stop``; then waits for what is open."""
    auth = {"authorization": f"Bearer {SECRET}"}
    limits = httpx.Limits(max_connections=200)
    url = f"http://127.0.0.1:{flip.gateway.port}"
    async with (
        httpx.AsyncClient(base_url=url, headers=auth, timeout=30, limits=limits) as client,
        asyncio.TaskGroup() as group,
    ):
        began, sent = time.monotonic(), 0
        while not stop.is_set():
            group.create_task(flip.stream(client))
            sent += 1
            await asyncio.sleep(max(0.0, began + sent / per_s - time.monotonic()))


@asynccontextmanager
async def flipping(folder: Path) -> AsyncIterator[Flip]:
    """A gateway, a core with one node and one key, and the watch between them."""
    options = Options(
        table=folder / "table.json",
        spool=folder / "spool" / "gateway-0.jsonl",
        control=folder / "control.sock",
        state=folder / "gateway.json",
        port=0,
        drain_s=2.0,
        free_bytes=0,
    )
    server = Server(options)
    gateway = await server.start()
    flip = Flip(folder, gateway)
    await flip.tell(ev.ControllerStarted(clock(), 1))
    await flip.tell(ev.NodeJoined(clock(), Node("n0", "", cpu_millis=64_000, memory_bytes=1 << 40)))
    await flip.make("old")
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    await flip.tell(ev.KeyCreated(clock(), Key("key-1", digest, "acme", "p")))
    watching = asyncio.create_task(flip.watch())
    try:
        await flip.until(lambda: flip.serves("import-old"))
        await flip.until(lambda: gateway.serving.version >= flip.state.table_version)
        yield flip
    finally:
        watching.cancel()
        await asyncio.gather(watching, *flip.stopping, return_exceptions=True)
        await server.stop()
        for engine in flip.engines.values():
            await engine.stop()
