"""Responses, Messages, rerank, tokenizing through the real gateway: settled, cut and refused alike."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from gateway_rig import OTHER, PROMPT_TOKENS, SECRET, Rig, chat, post, raw, rig, run

pytestmark = pytest.mark.live


def messages(script: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"max_tokens": 64, **chat(script, **more)}


def responses(script: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"model": "m", "input": json.dumps(script or {}), **more}


async def asked(r: Rig, path: str, body: Any, headers: str = "", secret: str = SECRET) -> tuple[int, Any]:
    answer = await raw(r, post(body, path, f"connection: close\r\n{headers}", secret))
    head, _, text = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(text)


def events(answer: bytes) -> list[dict[str, Any]]:
    lines = [line for line in answer.split(b"\n") if line.startswith(b"data: {")]
    return [json.loads(line[6:]) for line in lines]


def test_the_same_prompt_is_settled_alike_on_every_surface(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            for stream in (False, True):
                for path, body in (
                    ("/v1/chat/completions", chat({"tokens": 4}, stream=stream)),
                    ("/v1/responses", responses({"tokens": 4}, stream=stream)),
                    ("/v1/messages", messages({"tokens": 4}, stream=stream)),
                    ("/messages", messages({"tokens": 4}, stream=stream)),
                ):
                    answer = await raw(r, post(body, path, "connection: close\r\n"))
                    assert b" 200 " in answer.partition(b"\r\n")[0], answer
                    if stream:
                        assert answer.endswith(b"\r\n0\r\n\r\n")
            settled = await r.settled(8)
            counts = {(s["input_tokens"], s["cached_tokens"], s["output_tokens"]) for s in settled}
            assert counts == {(PROMPT_TOKENS, 2, 4)}
            names = [s["endpoint"] for s in settled]
            assert names == ["chat.completions", "responses", "messages", "messages"] * 2
            sent = r.engines[0].requests
            assert {json.dumps(x["messages"]) for x in sent} == {json.dumps(sent[0]["messages"])}

    run(work)


def test_the_openai_sdk_reads_responses(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            c = openai.AsyncOpenAI(base_url=r.url + "/v1", api_key=SECRET, max_retries=0)
            answer = await c.responses.create(model="m", input='{"tokens": 2}', store=False)
            assert answer.output_text == "t t "
            assert answer.usage is not None
            assert answer.usage.total_tokens == PROMPT_TOKENS + 2
            assert answer._request_id.startswith("req-")
            async with c.responses.stream(model="m", input='{"tokens": 3}') as stream:
                kinds = [event.type async for event in stream]
                final = await stream.get_final_response()
            assert kinds[0] == "response.created"
            assert kinds[-1] == "response.completed"
            assert final.output_text == "t0 t1 t2 "
            with pytest.raises(openai.BadRequestError) as caught:
                await c.responses.create(model="m", input="x", previous_response_id="resp_1")
            assert caught.value.code == "unsupported_parameter"
            with pytest.raises(openai.NotFoundError):
                await c.responses.retrieve("resp_1")
            await c.close()
            assert (await r.settled(3))[2]["outcome"] == "refused"

    run(work)


def test_streams_that_break_say_so_in_their_own_words(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path, engines=3) as r:
            script = {"tokens": 9, "die_after": 4}
            found = events(await raw(r, post(responses(script, stream=True), "/v1/responses")))
            assert found[-1]["type"] == "response.failed"
            assert found[-1]["response"]["usage"]["output_tokens"] == 3  # what is billed of it
            assert found[-1]["response"]["usage"]["input_tokens"] == PROMPT_TOKENS
            found = events(await raw(r, post(messages(script, stream=True), "/v1/messages")))
            assert found[-1]["type"] == "error"
            assert found[-1]["error"]["type"] == "api_error"
            # Before the first byte it is a plain answer with its status, in each one's shape.
            early = {"status": 400, "body": {"error": {"message": "exceeds the available context size"}}}
            for path, body in (
                ("/v1/responses", responses(early, stream=True)),
                ("/v1/messages", messages(early, stream=True)),
            ):
                status, error = await asked(r, path, body)
                assert status == 400
                assert "maximum context length is 4096 tokens" in error["error"]["message"]
            assert error["type"] == "error"
            assert [s["outcome"] for s in await r.settled(4)] == ["engine_failed"] * 2 + ["engine_error"] * 2

    run(work)


def test_a_client_that_leaves_a_translated_stream_stops_the_engine(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            body = responses({"tokens": 500, "gap_s": 0.02}, stream=True)
            assert b"response.created" in await raw(
                r, post(body, "/v1/responses"), leave_at=b"response.created"
            )
            (settled,) = await r.settled(1)
            assert settled["outcome"] == "cancelled"
            assert settled["input_tokens"] == PROMPT_TOKENS
            while not r.engines[0].aborted:
                await asyncio.sleep(0.01)

    run(work)


def test_anthropics_key_header_and_error_shape(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            body = json.dumps(messages()).encode()
            head = "POST /v1/messages HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            for name, status in ((SECRET, b" 200 "), ("tm-wrong", b" 401 ")):
                lines = f"x-api-key: {name}\r\ncontent-length: {len(body)}\r\n\r\n"
                answer = await raw(r, (head + lines).encode() + body)
                assert status in answer.partition(b"\r\n")[0]
                assert b"\r\nrequest-id: req-" in answer or b"401" in answer
            assert b'"type":"error"' in answer
            assert b"authentication_error" in answer
            status, error = await asked(r, "/v1/messages", messages(model="none"))
            assert (status, error["error"]["type"]) == (404, "not_found_error")
            status, error = await asked(r, "/v1/messages", {"model": "m", "messages": []})
            assert (status, error["error"]["type"]) == (400, "invalid_request_error")
            get = f"GET /v1/messages HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SECRET}\r\n\r\n"
            assert b'"type":"error"' in await raw(r, get.encode())

    run(work)


def test_rerank_and_score_are_billed_as_embeddings(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            body = {"model": "embed", "query": "q", "documents": ["a"]}
            # The scripted engine embeds one text only, which is an answer that does not fit.
            for path in ("/v1/rerank", "/rerank", "/v2/rerank", "/v1/score"):
                asked_ = {**body, "text_1": "a", "text_2": "b"}
                status, found = await asked(r, path, asked_)
                assert status in (200, 502), found
            status, found = await asked(r, "/v1/rerank", {**body, "model": "m"})
            assert (status, found["error"]["param"]) == (400, "model")
            settled = await r.settled(5)
            assert [s["endpoint"] for s in settled][:4] == ["rerank", "rerank", "rerank", "score"]
            assert {s["input_tokens"] for s in settled[:4]} == {PROMPT_TOKENS}

    run(work)


def test_tokenizing_asks_the_engine_and_settles_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            count = {"count": PROMPT_TOKENS, "max_model_len": 4096, "tokens": list(range(PROMPT_TOKENS))}
            assert await asked(r, "/tokenize", {"model": "m", "prompt": "x"}) == (200, count)
            assert await asked(r, "/v1/tokenize", {**chat()}) == (200, count)
            found = await asked(r, "/v1/messages/count_tokens", messages(tools=[]))
            assert found == (200, {"input_tokens": PROMPT_TOKENS})
            for path, body, status in (
                ("/tokenize", {"model": "m"}, 400),
                ("/tokenize", {"model": "private", "prompt": "x"}, 404),
                ("/tokenize", {"model": "embed", "messages": [{"role": "user"}]}, 400),
                ("/tokenize", {"model": "m", "messages": "x"}, 400),
                ("/tokenize", [], 400),
                ("/detokenize", {"model": "m", "tokens": [-1]}, 400),
                ("/detokenize", {"model": "m", "tokens": "x"}, 400),
                ("/v1/messages/count_tokens", {"model": "m"}, 400),
            ):
                assert (await asked(r, path, body))[0] == status, (path, body)
            assert (await asked(r, "/tokenize", {"model": "m", "prompt": "x"}, "", "tm-x"))[0] == 401
            # Another tenant's residency holds for its texts too: no replica is where it may be.
            alias = r.table.aliases[0]
            assert (await asked(r, "/tokenize", {"model": "m", "prompt": "x"}, "", OTHER))[0] == 503
            r.publish(aliases=(replace(alias, endpoints=()),))
            assert (await asked(r, "/tokenize", {"model": "m", "prompt": "x"}))[0] == 503
            assert r.lines() == []
            assert r.gateway.tokenizing == 0

    run(work)


def test_a_kept_answer_is_given_again_in_its_own_format(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            once = "idempotency-key: a\r\nconnection: close\r\n"
            body = post(responses({"tokens": 3}, stream=True), "/v1/responses", once)
            first, second = await raw(r, body), await raw(r, body)
            assert [e["type"] for e in events(first)] == [e["type"] for e in events(second)]
            assert b"idempotent-replayed: true" in second
            await r.settled(1)

    run(work)


def test_a_large_answer_is_translated_whole(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            status, found = await asked(r, "/v1/responses", responses({"pad": 3_000_000}))
            assert status == 200
            assert len(found["output"][0]["content"][0]["text"]) > 3_000_000
            assert (await r.settled(1))[0]["outcome"] == "ok"

    run(work)
