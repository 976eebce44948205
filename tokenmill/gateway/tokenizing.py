"""``/tokenize``, ``/detokenize``, Anthropic's and OpenAI's counts of an input: asked of a model's replica.

Nothing is generated, so nothing is settled; how many run at once is bounded. The shapes of the first two are
vLLM's. The engine's own tokenizer and chat template answer, llama.cpp's or vLLM's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from tokenmill.domain.table import AliasEntry, Endpoint, KeyEntry
from tokenmill.gateway.body import parse_object
from tokenmill.gateway.client import ClientConnection
from tokenmill.gateway.dialects.messages import translated_error
from tokenmill.gateway.dialects.messages_input import messages_of, tools_of
from tokenmill.gateway.dialects.responses_input import chat_of
from tokenmill.gateway.edge import Gateway
from tokenmill.gateway.errors import ApiError, bad_request, unavailable, unknown_model
from tokenmill.gateway.fetch import fetch
from tokenmill.gateway.message import HttpRequest
from tokenmill.gateway.upstream import Address, address_of
from tokenmill.policy.reside import reside
from tokenmill.policy.route import PEER_PREFIX

AT_ONCE = 64
PATIENCE_S = 30.0
TOKENS_MOST = 1_000_000


class Tokenizing:
    """Responder of one such request. ``answer`` does the work; ``anthropic`` says whose error shape it is."""

    def __init__(
        self,
        gateway: Gateway,
        connection: ClientConnection,
        http: HttpRequest,
        key: KeyEntry,
        request_id: str,
        answer: Answer,
        *,
        anthropic: bool = False,
    ) -> None:
        self.gateway = gateway
        self.key = key
        self._connection: ClientConnection | None = connection
        self._http = http
        self._headers = b"x-request-id: %b\r\n" % request_id.encode()
        if anthropic:
            self._headers += b"request-id: %b\r\n" % request_id.encode()
        self._answer = answer
        self._anthropic = anthropic
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self.gateway.tokenizing += 1
        self._task = self.gateway.spawn(self._run())

    async def _run(self) -> None:
        try:
            if self.gateway.tokenizing > AT_ONCE:
                raise unavailable("Too many texts are being tokenized.", code="overloaded")
            async with asyncio.timeout(PATIENCE_S):
                found = await self._answer(self, parse_object(self._http.body))
            status, body, more = 200, orjson.dumps(found), b""
        except ApiError as error:
            status, body, more = error.status, error.body, error.headers
        except (OSError, TimeoutError, ValueError, LookupError, TypeError) as problem:
            failed = ApiError(502, "engine_error", f"The engine did not tokenize: {problem or 'no answer'}.")
            status, body, more = failed.status, failed.body, b""
        finally:
            self.gateway.tokenizing -= 1
        if status >= 400 and self._anthropic:
            body = translated_error(status, body)
        if self._connection is not None:
            self._connection.respond(self._http, status, body, headers=self._headers + more)

    def model(self, document: dict[str, Any]) -> tuple[AliasEntry, Endpoint]:
        """The alias that is named and a replica of it. Raises ``ApiError``."""
        name = document.get("model")
        if not isinstance(name, str) or not name:
            raise bad_request("You must provide a model parameter.", "model", "missing_required_parameter")
        serving, now_us = self.gateway.serving, self.gateway.clock()
        entry = serving.visible(name, self.key.tenant)
        if entry is None:
            raise unknown_model(name)
        tenant = serving.index.tenants.get(self.key.tenant)
        allowed, _ = reside(entry.endpoints, tenant.jurisdictions if tenant else ())
        for endpoint in allowed:
            seen = self.gateway.memory.endpoints.get(endpoint.replica)
            well = seen is None or seen.cooling_until_us <= now_us
            if well and not endpoint.draining and not endpoint.release.startswith(PEER_PREFIX):
                return entry, endpoint
        raise unavailable(f"No replica of {name!r} can answer.", code="model_not_ready")

    async def ask(self, endpoint: Endpoint, path: bytes, fields: dict[str, Any]) -> tuple[int, Any]:
        """One small request to the engine. Raises ``OSError`` and ``ValueError``."""
        address: Address = address_of(endpoint.address, endpoint.tls)
        status, body = await fetch(self.gateway.pool, address, b"POST", path, orjson.dumps(fields))
        return status, orjson.loads(body) if status == 200 else None

    def client_gone(self) -> None:
        self._connection = None
        if self._task is not None:
            self._task.cancel()

    def pause(self) -> None:
        """The answer is one piece."""

    def resume(self) -> None:
        """See ``pause``."""


Answer = Callable[[Tokenizing, dict[str, Any]], Awaitable[dict[str, Any]]]


async def tokenize(work: Tokenizing, document: dict[str, Any]) -> dict[str, Any]:
    """``{count, max_model_len, tokens}`` of a ``prompt``, or of ``messages`` in the model's template."""
    entry, endpoint = work.model(document)
    prompt = document.get("prompt", document.get("content"))
    messages = document.get("messages")
    if messages is None and not isinstance(prompt, str):
        raise bad_request("Give 'prompt', a text, or 'messages'.", "prompt", "missing_required_parameter")
    if messages is not None:
        tokens = await _tokens_of_chat(work, entry, endpoint, messages, document.get("tools") or [])
    else:
        special = document.get("add_special_tokens", True)
        if not isinstance(special, bool):
            raise bad_request("'add_special_tokens' must be true or false.", "add_special_tokens")
        tokens = await _tokens(work, entry, endpoint, str(prompt), special=special)
    return {"count": len(tokens), "max_model_len": entry.context_tokens, "tokens": tokens}


async def detokenize(work: Tokenizing, document: dict[str, Any]) -> dict[str, Any]:
    """``{prompt}`` of ``tokens``."""
    entry, endpoint = work.model(document)
    tokens = document.get("tokens")
    if not isinstance(tokens, list) or len(tokens) > TOKENS_MOST:
        raise bad_request("'tokens' must be a list of token ids.", "tokens")
    if not all(isinstance(t, int) and not isinstance(t, bool) and 0 <= t < 2**31 for t in tokens):
        raise bad_request("Every token must be a whole number.", "tokens")
    fields = {"model": endpoint.served_model or entry.name, "tokens": tokens}
    status, found = await work.ask(endpoint, b"/detokenize", fields)
    if status in (400, 500):  # llama.cpp looks a token up in its vocabulary, and fails
        raise bad_request("The engine does not know these tokens.", "tokens")
    if status != 200:
        raise ApiError(502, "engine_error", f"The engine answered /detokenize with status {status}.")
    return {"prompt": found.get("content", found.get("prompt", ""))}


async def count_tokens(work: Tokenizing, document: dict[str, Any]) -> dict[str, Any]:
    """Anthropic's ``{input_tokens}`` of what ``/v1/messages`` would send."""
    entry, endpoint = work.model(document)
    tokens = await _tokens_of_chat(work, entry, endpoint, messages_of(document), tools_of(document))
    return {"input_tokens": len(tokens)}


async def input_tokens(work: Tokenizing, document: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's count of what ``/v1/responses`` would send."""
    chat = chat_of(document)
    entry, endpoint = work.model(document)
    tokens = await _tokens_of_chat(work, entry, endpoint, chat["messages"], chat.get("tools") or [])
    return {"object": "response.input_tokens", "input_tokens": len(tokens)}


async def _tokens_of_chat(
    work: Tokenizing, entry: AliasEntry, endpoint: Endpoint, messages: Any, tools: list[Any]
) -> list[int]:
    if entry.kind != "chat":
        raise bad_request(f"The model `{entry.name}` is of kind {entry.kind} and knows no messages.", "model")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages) or not messages:
        raise bad_request("'messages' must be a list with at least one message.", "messages")
    plain = [{**m, "role": "system"} if m.get("role") == "developer" else m for m in messages]
    fields: dict[str, Any] = {"messages": plain, **({"tools": tools} if tools else {})}
    status, found = await work.ask(endpoint, b"/apply-template", fields)
    if status == 200:
        return await _tokens(work, entry, endpoint, found["prompt"], special=True)
    if status != 404:
        raise bad_request("The model's chat template does not take these messages.", "messages")
    status, found = await work.ask(
        endpoint, b"/tokenize", {"model": endpoint.served_model or entry.name, **fields}
    )
    return _list(status, found)


async def _tokens(
    work: Tokenizing, entry: AliasEntry, endpoint: Endpoint, text: str, *, special: bool
) -> list[int]:
    fields = {
        "model": endpoint.served_model or entry.name,
        "content": text,
        "prompt": text,  # llama.cpp's word and vLLM's
        "add_special": special,
        "add_special_tokens": special,
        "parse_special": True,
    }
    return _list(*await work.ask(endpoint, b"/tokenize", fields))


def _list(status: int, found: Any) -> list[int]:
    if status != 200:
        raise ApiError(502, "engine_error", f"The engine answered /tokenize with status {status}.")
    tokens: list[int] = found["tokens"]
    return tokens
