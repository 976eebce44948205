"""Batch inference for evaluation: the embedded engine in this process, asked over loopback.

Uses the same server and the same requests as serving does, so that what is evaluated is what will be served.
It neither judges answers nor keeps them.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tokenmill.domain.errors import EngineError
from tokenmill.engine.embedded import EmbeddedOptions, address_of, open_server

ALIAS = "evaluated"
# llama.cpp's server promises to keep the connection after a stream, and then closes it.
CLOSE = {"connection": "close"}


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer with the engine's own token counts; times in seconds, seen by the client."""

    text: str
    input_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float  # mean time per output token after the first; 0.0 for one token
    finish_reason: str  # stop or length


def complete_all(
    weights: Path,
    prompts: Sequence[Sequence[Mapping[str, str]]],
    *,
    lora: Path | None = None,
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    slots: int = 8,
    context_tokens: int = 2048,
    threads: int = 0,
    timeout_s: float = 300.0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Completion]:
    """Answer every prompt, ``slots`` at a time, with the GGUF ``weights`` and an optional GGUF ``lora``.

    A prompt is a list of ``{"role", "content"}`` messages. Answers come in the order of ``prompts``;
    ``report(done, total)`` is called after each. Greedy when ``temperature`` is 0. ``timeout_s`` is for one
    answer.
    Raises ``CorruptWeightsError`` when weights do not load, ``EngineError`` when the engine fails a request.
    """
    if not prompts:
        return []
    server = open_server(
        EmbeddedOptions(weights, ALIAS, lora, slots=slots, context_tokens=context_tokens, threads=threads)
    )
    body = {
        "model": ALIAS,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    try:
        return asyncio.run(_complete_all(address_of(server), body, prompts, slots, timeout_s, report))
    except* EngineError as failed:
        raise failed.exceptions[0] from None
    finally:
        del server


async def _complete_all(
    address: str,
    body: Mapping[str, Any],
    prompts: Sequence[Sequence[Mapping[str, str]]],
    slots: int,
    timeout_s: float,
    report: Callable[[int, int], None],
) -> list[Completion]:
    answers: dict[int, Completion] = {}
    waiting = iter(enumerate(prompts))

    async def worker(client: httpx.AsyncClient) -> None:
        for index, prompt in waiting:
            answers[index] = await _complete(client, {**body, "messages": list(prompt)}, index)
            report(len(answers), len(prompts))

    limits = httpx.Limits(max_connections=slots, max_keepalive_connections=0)
    async with (
        httpx.AsyncClient(base_url=address, timeout=timeout_s, limits=limits, trust_env=False) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(min(slots, len(prompts))):
            group.create_task(worker(client))
    return [answers[index] for index in range(len(prompts))]


async def _complete(client: httpx.AsyncClient, body: Mapping[str, Any], index: int) -> Completion:
    texts: list[str] = []
    reason = ""
    usage: dict[str, int] = {}
    first_s = 0.0
    began_s = last_s = time.monotonic()
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body, headers=CLOSE) as answer:
            if answer.status_code != 200:
                detail = (await answer.aread()).decode("utf-8", "replace")[:500]
                raise EngineError(f"the engine refused prompt {index}: {answer.status_code} {detail}")
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise EngineError(f"the engine failed at prompt {index}: {chunk['error']}")
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    reason = choice["finish_reason"] or reason
                    if choice["delta"].get("content"):
                        last_s = time.monotonic()
                        first_s = first_s or last_s
                        texts.append(choice["delta"]["content"])
    except httpx.HTTPError as error:
        raise EngineError(
            f"the engine broke off at prompt {index}: {type(error).__name__} {error}"
        ) from error
    tokens = int(usage.get("completion_tokens", 0))
    ttft_s = (first_s or time.monotonic()) - began_s
    tpot_s = (last_s - first_s) / (tokens - 1) if tokens > 1 and first_s else 0.0
    return Completion("".join(texts), int(usage.get("prompt_tokens", 0)), tokens, ttft_s, tpot_s, reason)
