"""Text of several bytes a character, cut inside of characters on its way through the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from gateway_rig import SECRET, chat, events, post, raw, rig, run

from tokenmill.gateway.upstream import Upstream

pytestmark = pytest.mark.live

WORDS = ["é", " 漢字", "🦙", "👩\u200d🚀", "नमस्ते", "\u2028", "é🦙" * 9, "plain"]


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the gateway read from the engine that ended inside of a character."""
    found: list[bytes] = []
    real = Upstream.data_received

    def heard(self: Upstream, data: bytes) -> None:
        try:
            data.decode()
        except UnicodeDecodeError:
            found.append(data)
        real(self, data)

    monkeypatch.setattr(Upstream, "data_received", heard)
    return found


def payload_of(answer: bytes) -> bytes:
    """The body of a chunked answer."""
    _, _, rest = answer.partition(b"\r\n\r\n")
    payload = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        payload, rest = payload + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return payload


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("split", [1, 2, 3, 5, 11])
def test_a_character_that_is_cut_in_two_passes_as_it_is(
    tmp_path: Path, cuts: list[bytes], split: int, usage: bool
) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            script: dict[str, Any] = {"words": WORDS, "tokens": len(WORDS), "split": split}
            script |= {} if usage else {"no_usage": True}
            answer = await raw(r, post(chat(script, stream=True), headers="connection: close\r\n"))
            sent = events({"model": "m"}, script)
            assert payload_of(answer) == b"".join(sent)
            assert len(cuts) >= (40 if split == 1 else 1), "it was cut inside of characters"
            (line,) = await r.settled(1)
            expected = (len(WORDS), "engine" if usage else "estimate", "ok")
            assert (line["output_tokens"], line["counted_by"], line["outcome"]) == expected

    run(work)


@pytest.mark.parametrize("surface", ["chat", "responses"])
def test_the_sdk_reads_the_text_that_the_engine_wrote(
    tmp_path: Path, cuts: list[bytes], surface: str
) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r, openai.AsyncOpenAI(base_url=r.url + "/v1", api_key=SECRET) as c:
            words: Any = chat({"words": WORDS, "tokens": len(WORDS), "split": 1})["messages"]
            text = ""
            if surface == "chat":
                async for chunk in await c.chat.completions.create(model="m", messages=words, stream=True):
                    text += chunk.choices[0].delta.content or ""
            else:
                async for event in await c.responses.create(model="m", input=words, stream=True):
                    text += event.delta if event.type == "response.output_text.delta" else ""
            assert text == "".join(WORDS)
            assert len(cuts) >= 40
            (line,) = await r.settled(1)
            assert line["output_tokens"] == len(WORDS)

    run(work)
