"""Large bodies: which pass whole, which are refused, and how much memory they take, while and after."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from gateway_rig import SECRET, Engine, chat, post, raw, rig, run, table_of, write_table
from process_rig import gateway, memory_of, port_of

from tokenmill.gateway import client
from tokenmill.gateway.body import VALUES_MOST

pytestmark = pytest.mark.live

MIB = 1024 * 1024
MOST = 64 * MIB
WHILE = 4
"""Times its size that a body may take while it is read, checked and sent on. Measured: 3.1, in text of one
byte a character and in base64; 3.5 in text of two and three."""
AFTER = 12 * MIB
"""That may stay after all of them. Measured: less than 1 MiB."""


def sized(size: int, script: dict[str, Any], unit: str = "x", **more: Any) -> bytes:
    """A chat request of exactly ``size`` bytes whose first message is ``unit``, over and over."""
    asked = chat(script, **more)
    asked["messages"].insert(0, {"role": "user", "content": ""})
    missing = size - len(json.dumps(asked, ensure_ascii=False).encode())
    times, rest = divmod(missing, len(unit.encode()))
    asked["messages"][0]["content"] = unit * times + "." * rest
    return json.dumps(asked, ensure_ascii=False).encode()


@contextlib.asynccontextmanager
async def process(folder: Path) -> AsyncIterator[tuple[Engine, int, Any]]:
    """An engine, and a gateway of its own memory before it."""
    engine = Engine()
    await engine.start()
    write_table(folder, table_of([engine]))
    running = gateway(folder)
    try:
        yield engine, await port_of(folder, running), running
    finally:
        running.terminate()
        assert await asyncio.to_thread(running.wait, 20) == 0
        await engine.stop()


async def ask(port: int, request: bytes, read: int = -1) -> bytes:
    """Send a request; return its answer, or leave after ``read`` bytes of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        writer.write(request)
        await writer.drain()
    answer = await (reader.read() if read < 0 else reader.readexactly(read))
    writer.close()
    return answer


@pytest.mark.parametrize("unit", ["x", "é漢"])
def test_the_largest_body_passes_whole_and_in_bounded_memory(tmp_path: Path, unit: str) -> None:
    async def work() -> None:
        async with process(tmp_path) as (engine, port, running):
            await ask(port, post(chat({"tokens": 1}), headers="connection: close\r\n"))
            before, _ = memory_of(running)
            body = sized(MOST, {"tokens": 2}, unit)
            assert len(body) == MOST
            sent = json.loads(body)["messages"][0]["content"]
            for _ in range(2):
                answer = await ask(port, post(body, headers="connection: close\r\n"))
                assert answer.startswith(b"HTTP/1.1 200 "), answer[:300]
                assert engine.requests.pop()["messages"][0]["content"] == sent
            after, most = memory_of(running)
            assert most - before < WHILE * MOST
            assert after - before < AFTER

    run(work)


def framed(framing: str) -> bytes:
    """A request whose body is one byte too large: only said to be, or sent."""
    head, _, _ = post(b"").partition(b"content-length")
    if framing == "said":
        return head + b"content-length: %d\r\n\r\n" % (MOST + 1)
    body = sized(MOST + 1, {})
    if framing == "sent":
        return head + b"content-length: %d\r\n\r\n" % (MOST + 1) + body
    parts = [body[start : start + 8 * MIB] for start in range(0, len(body), 8 * MIB)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return head + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@pytest.mark.parametrize("framing", ["said", "sent", "in chunks"])
def test_a_larger_body_is_refused_and_the_client_hears_why(tmp_path: Path, framing: str) -> None:
    async def work() -> None:
        async with process(tmp_path) as (engine, port, running):
            await ask(port, post(chat({"tokens": 1}), headers="connection: close\r\n"))
            before, _ = memory_of(running)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(framed(framing))
            await writer.drain()  # no reset on the way
            top = await reader.readuntil(b"\r\n\r\n")
            assert top.startswith(b"HTTP/1.1 413 Content Too Large\r\n")
            assert b"connection: close" in top
            length = int(top.split(b"content-length: ")[1].split(b"\r\n")[0])
            found = json.loads(await reader.readexactly(length))["error"]
            assert found == {
                "message": f"The body exceeds {MOST} bytes.",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
            if framing != "said":
                assert await reader.read() == b"", "it closes once it has had all"
            writer.close()
            assert len(engine.requests) == 1
            _, most = memory_of(running)
            assert most - before < (1.3 * MOST if framing == "in chunks" else 4 * MIB)

    run(work)


def test_a_body_that_is_too_large_is_an_error_of_its_own_to_the_sdk(tmp_path: Path) -> None:
    async def work() -> None:
        async with (
            rig(tmp_path, body_bytes=MIB) as r,
            openai.AsyncOpenAI(base_url=r.url + "/v1", api_key=SECRET, max_retries=0) as c,
        ):
            words: Any = [{"role": "user", "content": "x" * 16 * MIB}]
            with pytest.raises(openai.APIStatusError) as refused:
                await c.chat.completions.create(model="m", messages=words)
            assert refused.value.status_code == 413
            assert "exceeds 1048576 bytes" in str(refused.value)

    run(work)


def test_the_rest_of_a_refused_body_is_not_awaited_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LINGER_S", 0.5)

    async def work() -> None:
        async with rig(tmp_path, body_bytes=MIB) as r:
            reader, writer = await asyncio.open_connection("127.0.0.1", r.gateway.port)
            writer.write(post(b"x" * 2 * MIB)[:-1])
            assert b" 413 " in await reader.readuntil(b"\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                await asyncio.wait_for(reader.read(), 20)
            writer.close()
            assert r.gateway.buffered == 0

    run(work)


@pytest.mark.parametrize("unit", ["[],", "{},", "12345,"])
def test_a_body_of_very_many_values_is_refused_before_it_takes_memory(tmp_path: Path, unit: str) -> None:
    """64 MiB of empty lists were 2 GiB of objects, for which all clients waited."""

    def of(values: int) -> bytes:
        asked = json.dumps(chat({"tokens": 1}, more="@")).encode()
        return asked.replace(b'"@"', b"[" + (unit * values).encode()[:-1] + b"]")

    async def work() -> None:
        async with process(tmp_path) as (engine, port, running):
            marks = 1 if unit[0].isdigit() else 2
            for values, expected in ((VALUES_MOST // marks - 100, 200), (MOST // len(unit) - 999, 400)):
                before, _ = memory_of(running)
                Path(f"/proc/{running.pid}/clear_refs").write_text("5")
                answer = await ask(port, post(of(values), headers="connection: close\r\n"))
                assert answer.startswith(b"HTTP/1.1 %d " % expected), answer[:300]
                assert memory_of(running)[1] - before < 3 * MOST
            assert b"more than 2000000 values" in answer
            assert len(engine.requests) == 1

    run(work)


ENDINGS: dict[str, tuple[dict[str, Any], dict[str, Any], str, int]] = {
    "an answer": ({}, {}, "/v1/chat/completions", -1),
    "a stream": ({}, {"stream": True}, "/v1/chat/completions", -1),
    "an engine's error": ({"status": 500}, {}, "/v1/chat/completions", -1),
    "an engine that dies": ({"die_after": 2}, {"stream": True}, "/v1/chat/completions", -1),
    "a client that leaves": ({"tokens": 99, "gap_s": 0.05}, {"stream": True}, "/v1/chat/completions", 300),
    "messages": ({}, {"stream": True, "max_tokens": 9}, "/v1/messages", -1),
    "messages, whole": ({}, {"max_tokens": 9}, "/v1/messages", -1),
    "no such model": ({}, {"model": "none"}, "/v1/chat/completions", -1),
    "no JSON": ({}, {"model": None}, "/v1/chat/completions", -1),
}


@pytest.mark.parametrize("ending", sorted(ENDINGS))
def test_nothing_of_a_body_stays_when_its_request_has_ended(tmp_path: Path, ending: str) -> None:
    """The garbage collector comes too seldom to count on: after some hundred requests."""
    script, more, path, read = ENDINGS[ending]

    async def work() -> None:
        async with process(tmp_path) as (engine, port, running):
            size, times = 8 * MIB, 6
            request = post(sized(size, script, **more), path, "connection: close\r\n")
            for number in range(times + 1):
                await ask(port, request, read)
                engine.requests.clear()
                if number == 0:
                    before, _ = memory_of(running)
            for _ in range(50):
                after, _ = memory_of(running)
                if after - before < AFTER:
                    break
                await asyncio.sleep(0.1)
            assert after - before < AFTER < times * size / 2

    run(work)


def test_bodies_count_as_long_as_their_requests_are_open(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path, buffered_bytes=100_000) as r:
            reader, writer = await asyncio.open_connection("127.0.0.1", r.gateway.port)
            writer.write(post(sized(60_000, {"tokens": 5, "gap_s": 0.2}, stream=True)))
            await reader.readuntil(b"\n\n")
            assert r.gateway.buffered == 60_000
            refused = await raw(r, post(sized(60_000, {})))
            assert refused.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1\r\n" in refused
            assert b" 200 " in await raw(r, post(chat()))
            await reader.readuntil(b"\r\n0\r\n\r\n")
            assert b" 200 " in await raw(r, post(sized(60_000, {})))
            writer.close()
            leaver = await asyncio.open_connection("127.0.0.1", r.gateway.port)
            leaver[1].write(post(sized(60_000, {"tokens": 5, "gap_s": 0.1}, stream=True)))
            await leaver[0].readuntil(b"\n\n")
            leaver[1].transport.abort()
            await r.settled(4)
            assert r.gateway.buffered == 0

    run(work)
