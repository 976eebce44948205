"""What only raw sockets show: ambiguous requests, limits, pipelining, disconnects, slow readers, drains."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import pytest
from gateway_rig import OTHER, PROMPT_TOKENS, SECRET, chat, post, raw, rig, run

pytestmark = pytest.mark.live

GET = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 4\r\ntransfer-encoding: chunked\r\n",
        b"content-length: 4\r\ncontent-length: 4\r\n",
        b"content-length: 4\r\ncontent-length: 5\r\n",
        b"content-length: 4, 4\r\n",
        b"content-length: +4\r\n",
        b"content-length: 0x4\r\n",
        b"content-length: -1\r\n",
        b"content-length : 4\r\n",
        b"transfer-encoding: gzip, chunked\r\n",
        b"transfer-encoding: chunked, identity\r\n",
        b"transfer-encoding: xchunked\r\n",
        b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        b"host: y\r\ncontent-length: 4\r\n",
        b"authorization: Bearer other\r\ncontent-length: 4\r\n",
        b"x: a\r\n content-length: 4\r\n",
        b"x: a\nb: c\r\n",
        b"x\x00: a\r\n",
        b"upgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 0\r\n",
    ],
)
def test_ambiguous_requests_are_refused_and_the_connection_closed(tmp_path: Path, head: bytes) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            start = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\n"
            got = await raw(r, start + head + b"\r\nbody" + GET, 2)
            assert got.startswith(b"HTTP/1.1 400 ")
            assert b"connection: close" in got
            assert got.count(b"HTTP/1.1 ") == 1  # what followed was not read as a request
            assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
            assert r.engines[0].requests == []

    run(work)


def test_limits_of_heads_and_bodies(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path, body_bytes=2000, anonymous_body_bytes=1000) as r:
            long = b"GET /healthz HTTP/1.1\r\nx: " + b"y" * 40_000
            assert (await raw(r, long)).startswith(b"HTTP/1.1 431")
            assert (await raw(r, long + b"\r\n\r\n")).startswith(b"HTTP/1.1 431")
            assert (await raw(r, post(b"x" * 3000))).startswith(b"HTTP/1.1 413")
            assert (await raw(r, post(b"x" * 1500, secret="wrong"))).startswith(b"HTTP/1.1 413")
            known = await raw(r, post(b"x" * 1500))
            assert known.startswith(b"HTTP/1.1 400")  # read, since the key is known, and no JSON
            chunk = b"%x\r\n%b\r\n" % (900, b"x" * 900)
            start = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SECRET}\r\n"
            body = start.encode() + b"transfer-encoding: chunked\r\n\r\n" + chunk * 3 + b"0\r\n\r\n"
            assert (await raw(r, body)).startswith(b"HTTP/1.1 413")
            assert r.gateway.buffered == 0

    run(work)


def test_slow_clients_are_cut_off(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path, head_s=0.2, body_s=0.2, idle_s=0.2) as r:
            for start in (b"GET /hea", post(chat())[:-5]):
                reader, writer = await asyncio.open_connection("127.0.0.1", r.gateway.port)
                writer.write(start)
                got = await asyncio.wait_for(reader.read(), 20)
                assert got.startswith(b"HTTP/1.1 408")
                writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", r.gateway.port)
            assert await asyncio.wait_for(reader.read(), 20) == b""
            writer.close()

    run(work)


def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            slow = post(chat({"first_s": 0.1, "tokens": 1}))
            got = await raw(r, slow + GET + post(chat({"tokens": 2}, stream=True)) + GET * 100, 103)
            assert got.count(b"HTTP/1.1 200 OK") == 103
            first, second = got.index(b'"chat.completion"'), got.index(b'{"status":"ok"}')
            assert first < second < got.index(b"data: [DONE]") < got.rindex(b'{"status":"ok"}')
            assert [x["output_tokens"] for x in await r.settled(2)] == [1, 2]

    run(work)


def test_requests_in_single_bytes_and_chunked(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            reader, writer = await asyncio.open_connection("127.0.0.1", r.gateway.port)
            for byte in post(chat({"tokens": 2}, stream=True)):
                writer.write(bytes([byte]))
                await writer.drain()
            await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 20)
            body = json.dumps(chat()).encode()
            head = f"POST /chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SECRET}\r\n"
            framed = b"".join(b"%x\r\n%b\r\n" % (1, body[i : i + 1]) for i in range(len(body)))
            writer.write(head.encode() + b"transfer-encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n")
            assert b"200 OK" in await asyncio.wait_for(reader.readline(), 20)
            writer.close()
            await r.settled(2)

    run(work)


def test_http_1_0_gets_a_stream_without_chunks(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            request = post(chat({"tokens": 2}, stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0")
            got = await raw(r, request)
            assert b"transfer-encoding" not in got
            assert got.endswith(b"data: [DONE]\n\n")

    run(work)


@pytest.mark.parametrize("split", [0, 1, 7])
def test_bytes_of_events_are_untouched(tmp_path: Path, split: int) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            asked = chat({"tokens": 3, "split": split}, stream=True, stream_options={"include_usage": True})
            got = await raw(r, post(asked))
            _, _, body = got.partition(b"\r\n\r\n")
            payload, rest = b"", body
            while rest:
                size, _, rest = rest.partition(b"\r\n")
                payload += rest[: int(size, 16)]
                rest = rest[int(size, 16) + 2 :]
            from gateway_rig import events

            assert payload == b"".join(events(r.engines[0].requests[0], {"tokens": 3}))
            (line,) = await r.settled(1)
            assert (line["output_tokens"], line["counted_by"]) == (3, "engine")

    run(work)


@pytest.mark.parametrize("tokenizes", [True, False])
@pytest.mark.parametrize("after", [0, 3])
def test_a_client_that_leaves_stops_the_engine_and_pays_for_what_it_had(
    tmp_path: Path, after: int, tokenizes: bool
) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            engine = r.engines[0]
            engine.tokenizes = tokenizes
            reader, writer = await asyncio.open_connection("127.0.0.1", r.gateway.port)
            script = {"tokens": 5000, "gap_s": 0.02, "first_s": 0.0 if after else 30}
            writer.write(post(chat(script, stream=True)))
            for _ in range(after):
                await reader.readuntil(b"\n\n")
            while not engine.requests:
                await asyncio.sleep(0.01)
            writer.transport.abort()
            (line,) = await r.settled(1)
            assert (line["outcome"], line["status"]) == ("cancelled", 499)
            assert line["counted_by"] == ("stream" if tokenizes else "estimate")
            assert line["input_tokens"] == PROMPT_TOKENS if tokenizes else line["input_tokens"] > 5
            while not engine.aborted:
                await asyncio.sleep(0.02)
            assert engine.aborted == 1
            produced = sum(engine.produced.values())
            # What the engine wrote in the moment of the cut may not have reached the gateway.
            assert produced - 3 <= line["output_tokens"] <= produced
            assert r.gateway.memory.endpoints["r-0"].outstanding == 0

    run(work)


def test_a_client_that_reads_nothing_holds_the_engine_back(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path, stalled_s=0.5) as r:
            _, writer = await asyncio.open_connection("127.0.0.1", r.gateway.port, limit=1024)
            writer.write(post(chat({"tokens": 60_000}, stream=True)))
            (line,) = await r.settled(1)
            assert line["outcome"] == "cancelled"
            assert 0 < line["output_tokens"] < 50_000
            writer.close()

    run(work)


def test_large_answers_that_are_no_stream(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            got = await raw(r, post(chat({"tokens": 2, "pad": 3_000_000})))
            assert len(got) > 3_000_000
            head, _, body = got.partition(b"\r\n\r\n")
            assert f"content-length: {len(body)}".encode() in head
            assert json.loads(body)["usage"]["completion_tokens"] == 2
            (line,) = await r.settled(1)
            assert (line["output_tokens"], line["outcome"]) == (2, "ok")

    run(work)


def test_answers_without_usage_or_without_an_end(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            await raw(r, post(chat({"tokens": 4, "no_usage": True}, stream=True)))
            cut = await raw(r, post(chat({"tokens": 4, "no_done": True, "error_after": 2}, stream=True)))
            assert b'"error"' in cut
            assert b"[DONE]" not in cut
            first, second = await r.settled(2)
            assert (first["outcome"], first["output_tokens"], first["counted_by"]) == ("ok", 4, "estimate")
            assert (second["outcome"], second["output_tokens"]) == ("engine_failed", 1)

    run(work)


def test_idle_engine_connections_are_reused_and_a_closed_one_is_no_failure(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            for _ in range(3):
                await raw(r, post(chat()))
            assert r.engines[0].connections == 1
            port = r.engines[0].port
            await r.engines[0].stop()
            await r.engines[0].start(port)
            await raw(r, post(chat()))
            assert [x["outcome"] for x in await r.settled(4)] == ["ok"] * 4
            assert r.gateway.memory.endpoints["r-0"].failures == 0

    run(work)


def test_a_drain_finishes_streams_and_refuses_new_requests(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            reader, writer = await asyncio.open_connection("127.0.0.1", r.gateway.port)
            writer.write(post(chat({"tokens": 20, "gap_s": 0.02}, stream=True)))
            await reader.readuntil(b"\n\n")
            stopping = asyncio.create_task(r.server.stop())
            rest = await reader.read()
            assert b"data: [DONE]" in rest
            await stopping
            writer.close()
            assert [x["outcome"] for x in r.lines()] == ["ok"]
            with contextlib.suppress(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", r.gateway.port)
                raise AssertionError("it still listens")

    run(work)


def test_a_drain_has_a_deadline(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path, drain_s=0.2) as r:
            reader, writer = await asyncio.open_connection("127.0.0.1", r.gateway.port)
            writer.write(post(chat({"tokens": 20, "gap_s": 0.5}, stream=True)))
            await reader.readuntil(b"\n\n")
            await r.server.stop()
            rest = await reader.read()
            assert b'"error"' in rest
            assert b"[DONE]" not in rest
            writer.close()
            (line,) = r.lines()
            assert line["outcome"] == "interrupted"
            assert json.loads((tmp_path / "gateway.json").read_text())["draining"]

    run(work)


IDEMPOTENT = "idempotency-key: once\r\n"


def test_an_idempotency_key_gives_the_same_answer_and_bills_once(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            for stream in (False, True):
                asked = post(chat({"tokens": 2}, stream=stream), headers=f"idempotency-key: k{stream}\r\n")
                first, second = await raw(r, asked), await raw(r, asked)
                assert b"idempotent-replayed: true" in second
                assert b"idempotent-replayed" not in first
                for text in (b'"t0 "',) if stream else (b'"t t "',):
                    assert text in first
                    assert text in second
                name = next(line for line in first.split(b"\r\n") if line.startswith(b"x-request-id"))
                assert name in second
            assert len(r.engines[0].requests) == 2
            await r.settled(2)
            other = await raw(r, post(chat({"tokens": 3}), headers="idempotency-key: kTrue\r\n"))
            assert b" 409 " in other
            assert b"idempotency_conflict" in other
            foreign = post(chat({"tokens": 2}), headers="idempotency-key: kFalse\r\n", secret=OTHER)
            assert b"idempotent-replayed" not in await raw(r, foreign)  # another tenant's key is another key
            assert b" 400 " in await raw(r, post(chat(), headers=f"idempotency-key: {'k' * 256}\r\n"))

    run(work)


def test_a_client_that_leaves_and_asks_again_gets_what_was_done_meanwhile(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            asked = post(chat({"tokens": 20, "gap_s": 0.02}, stream=True), headers=IDEMPOTENT)
            cut = await raw(r, asked, leave_at=b"t0 ")
            assert b"[DONE]" not in cut
            again = await raw(r, asked)
            assert b"idempotency_in_progress" in again
            while b"idempotency_in_progress" in again:
                await asyncio.sleep(0.02)
                again = await raw(r, asked)
            assert again.count(b"data: ") == 22 + 1
            assert b"[DONE]" in again
            assert len(r.engines[0].requests) == 1
            (line,) = await r.settled(1)
            assert line["outcome"] == "ok"

    run(work)


def test_a_failure_is_no_outcome_to_keep(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            broken = post(chat({"status": 500}), headers=IDEMPOTENT)
            assert b" 500 " in await raw(r, broken)
            assert b" 500 " in await raw(r, broken)
            assert len(r.engines[0].requests) == 2
            cut = post(chat({"tokens": 5, "die_after": 2}, stream=True), headers="idempotency-key: cut\r\n")
            assert b'"error"' in await raw(r, cut)
            assert b"idempotent-replayed" not in await raw(r, cut)
            wrong = post({"model": "m"}, headers="idempotency-key: wrong\r\n")
            assert b" 400 " in await raw(r, wrong)
            assert b"idempotent-replayed" in await raw(r, wrong)
            assert r.gateway.replays._bytes < 1000

    run(work)
