"""The gateway as a client sees it: its URL, a key to use, and one streamed answer with its times.

The key is TOKENMILL_API_KEY, or one that is made through the unix socket and kept in the data directory with
mode 0600, for the person who runs the factory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec

from tokenmill.cli.client import Client
from tokenmill.cli.options import Place
from tokenmill.domain.errors import EngineError, NotFoundError, RefusedError, ResourceError
from tokenmill.floor.load import gateway_url

KEY_FILE = "cli-key.json"


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go. ``url`` is without ``/v1``."""

    url: str
    key: str


def find_target(place: Place, *, tenant: str = "", project: str = "") -> Target:
    """The gateway and a key. While the controller is away the gateway goes on, and so does a key made before.
    Raises ``NotFoundError`` when the gateway is not up."""
    if place.settings.url:
        return Target(place.settings.url.removesuffix("/v1").rstrip("/"), place.settings.api_key)
    with Client(place) as client:
        try:
            shown = client.get("/api/status")
        except NotFoundError:
            url = gateway_url(place.paths.run, time.time_ns() // 1000)
            key = place.settings.api_key or str(_kept(place).get(f"{tenant}/{project}", {}).get("secret", ""))
            if not url or not key:
                raise
            return Target(url, key)
        if not shown["url"]:
            raise NotFoundError("the gateway is not up", fix="tokenmill status; tokenmill logs gateway")
        key = place.settings.api_key or _kept_key(client, place, tenant, project)
    return Target(shown["url"], key)


def _kept(place: Place) -> dict[str, dict[str, str]]:
    """The keys that were made for this person, by tenant and project."""
    try:
        kept = msgspec.json.decode((place.paths.root / KEY_FILE).read_bytes(), type=dict[str, dict[str, str]])
    except (OSError, msgspec.DecodeError):
        return {}
    return kept


def _kept_key(client: Client, place: Place, tenant: str, project: str) -> str:
    path = place.paths.root / KEY_FILE
    kept = _kept(place)
    owner = f"{tenant}/{project}"
    found = kept.get(owner, {})
    live = {key["id"] for key in client.get("/api/keys") if not key["disabled"]}
    if found.get("id") in live:
        return str(found["secret"])
    made = client.post("/api/keys", {"tenant": tenant, "project": project, "scope": "inference"})
    kept[owner] = {"id": made["id"], "secret": made["secret"]}
    temporary = path.with_name(f".{KEY_FILE}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(kept))
    temporary.replace(path)
    return str(made["secret"])


@dataclass(slots=True)
class Answer:
    """One answer's text and times, filled while it streams. Times are seconds since the request was sent."""

    text: str = ""
    first_s: float = 0.0
    last_s: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first one; 0 when there was at most one."""
        return (self.last_s - self.first_s) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0


def chat_body(
    model: str, messages: list[dict[str, str]], max_tokens: int, temperature: float | None
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if temperature is not None:
        body["temperature"] = temperature
    return body


def stream_chat(http: httpx.Client, target: Target, body: dict[str, Any], answer: Answer) -> Iterator[str]:
    """Yield the answer's pieces. Raises ``RefusedError``, ``NotFoundError`` or ``EngineError``."""
    headers = {"authorization": f"Bearer {target.key}"}
    started = time.perf_counter()
    try:
        with http.stream("POST", f"{target.url}/v1/chat/completions", json=body, headers=headers) as found:
            if found.is_error:
                found.read()
                raise_refusal(found)
            for line in found.iter_lines():
                piece = take_line(line, answer, time.perf_counter() - started)
                if piece:
                    yield piece
    except httpx.ConnectError as error:
        raise ResourceError(f"nothing answers at {target.url}", fix="tokenmill status") from error
    except httpx.HTTPError as error:
        raise EngineError(f"the answer broke off: {error}", fix="tokenmill logs gateway") from error


def take_line(line: str, answer: Answer, now_s: float) -> str:
    """Read one line of the event stream into ``answer`` and return its new text."""
    if not line.startswith("data:"):
        return ""
    data = line.removeprefix("data:").strip()
    if not data or data == "[DONE]":
        return ""
    chunk = msgspec.json.decode(data)
    if chunk.get("error"):
        raise EngineError(
            str(chunk["error"].get("message", "the engine failed")), fix="tokenmill logs gateway"
        )
    usage = chunk.get("usage") or {}
    answer.input_tokens = int(usage.get("prompt_tokens") or answer.input_tokens)
    answer.output_tokens = int(usage.get("completion_tokens") or answer.output_tokens)
    choices = chunk.get("choices") or [{}]
    piece = str((choices[0].get("delta") or {}).get("content") or "")
    if piece:
        answer.first_s = answer.first_s or now_s
        answer.last_s = now_s
        answer.text += piece
    return piece


def raise_refusal(found: httpx.Response) -> None:
    """The gateway's error object as an error of ours."""
    try:
        error = found.json().get("error", {})
    except ValueError:
        error = {}
    message = str(error.get("message") or f"the gateway answered {found.status_code}")
    if found.status_code == 404:
        raise NotFoundError(message, fix="tokenmill models")
    if found.status_code in (401, 403, 429):
        raise RefusedError(message, fix="tokenmill keys list; tokenmill usage")
    retry_s = found.headers.get("retry-after")
    again = f"Try again in {retry_s} s, or see: " if retry_s else ""
    raise EngineError(message, fix=f"{again}tokenmill status; tokenmill logs gateway")
