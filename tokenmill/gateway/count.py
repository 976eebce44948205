"""Input tokens of a request whose stream was cut before the engine said how many there were.

Asks the engine: llama.cpp renders the chat template and tokenizes, vLLM does both at once. When it does not
answer in time, the count is an estimate and says so. Used only after a cut, never on the way of a token.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from tokenmill.control.requests import TokenUsage
from tokenmill.domain.table import Endpoint
from tokenmill.gateway.body import CHAT, Asked
from tokenmill.gateway.fetch import fetch
from tokenmill.gateway.pool import Pool
from tokenmill.gateway.upstream import Address, address_of

PATIENCE_S = 2.0


async def count_input(pool: Pool, endpoint: Endpoint, asked: Asked) -> int | None:
    """The prompt's tokens by the engine's own tokenizer, or ``None`` when it cannot tell within 2 s."""
    if endpoint.key_ref:
        return None  # a peer's tokenizer is behind its gateway
    try:
        address = address_of(endpoint.address, endpoint.tls)
        async with asyncio.timeout(PATIENCE_S):
            if asked.endpoint == CHAT:
                model = endpoint.served_model or asked.alias
                return await _count_chat(pool, address, asked.document, model)
            return await _count_prompt(pool, address, asked)
    except (OSError, TimeoutError, ValueError, LookupError, TypeError):
        return None


def with_input(usage: TokenUsage, counted: int | None, estimate: int) -> TokenUsage:
    """Complete what the stream showed by the input: as counted, or as estimated and marked so."""
    return TokenUsage(
        input_tokens=estimate if counted is None else counted,
        output_tokens=usage.output_tokens,
        counted_by="estimate" if counted is None else "stream",
    )


async def _count_chat(pool: Pool, address: Address, document: dict[str, Any], model: str) -> int | None:
    fields = {k: document[k] for k in ("messages", "tools", "chat_template_kwargs") if document.get(k)}
    status, answer = await fetch(pool, address, b"POST", b"/apply-template", orjson.dumps(fields))
    if status == 200:
        prompt = orjson.loads(answer)["prompt"]
        return await _tokenize(pool, address, {"content": prompt, "add_special": True, "parse_special": True})
    return await _tokenize(pool, address, {"model": model, **fields})


async def _count_prompt(pool: Pool, address: Address, asked: Asked) -> int | None:
    prompt = asked.document.get("prompt", asked.document.get("input"))
    texts = prompt if isinstance(prompt, list) else [prompt]
    total = 0
    for text in texts[:256]:
        if isinstance(text, int):
            return len(texts)
        if isinstance(text, list):
            total += len(text)
            continue
        counted = await _tokenize(pool, address, {"content": text, "prompt": text, "add_special": True})
        if counted is None:
            return None
        total += counted
    return total


async def _tokenize(pool: Pool, address: Address, fields: dict[str, Any]) -> int | None:
    status, answer = await fetch(pool, address, b"POST", b"/tokenize", orjson.dumps(fields))
    if status != 200:
        return None
    parsed = orjson.loads(answer)
    count = parsed.get("count")
    return count if isinstance(count, int) else len(parsed["tokens"])
