"""The unmodified OpenAI SDK through the real gateway, to a scripted engine on a real socket."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from gateway_rig import OTHER, PROMPT_TOKENS, SECRET, Rig, rig, run

from tokenmill.domain.factory import Quota
from tokenmill.domain.table import TenantEntry

pytestmark = pytest.mark.live


def client(rig: Rig, secret: str = SECRET, **more: object) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=rig.url + "/v1", api_key=secret, max_retries=0, **more)  # type: ignore[arg-type]


def says(**script: object) -> list[dict[str, str]]:
    return [{"role": "developer", "content": "x"}, {"role": "user", "content": json.dumps(script)}]


def test_chat_streams_completions_and_models(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r, client(r) as c:
            assert [m.id async for m in c.models.list()] == ["m", "org/m:1", "embed"]
            assert (await c.models.retrieve("org/m:1")).id == "org/m:1"
            answer = await c.chat.completions.create(model="m", messages=says(tokens=4))
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 4
            assert answer._request_id.startswith("req-")
            assert r.engines[0].requests[-1]["messages"][0]["role"] == "system"
            stream = await c.chat.completions.create(model="m", messages=says(tokens=5), stream=True)
            chunks = [chunk async for chunk in stream]
            assert all(chunk.choices for chunk in chunks)  # no usage-only chunk unless asked for
            assert "".join(x.choices[0].delta.content or "" for x in chunks) == "t0 t1 t2 t3 t4 "
            stream = await c.chat.completions.create(
                model="org/m:1", messages=says(), stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            assert chunks[-1].choices == []
            assert chunks[-1].usage.prompt_tokens == PROMPT_TOKENS
            text = await c.completions.create(model="m", prompt="hello", max_tokens=3)
            assert text.choices[0].text == "t t t "
            lines = await r.settled(4)
            assert [x["output_tokens"] for x in lines] == [4, 5, 3, 3]
            assert {(x["outcome"], x["counted_by"], x["cached_tokens"]) for x in lines} == {
                ("ok", "engine", 2)
            }

    run(work)


def test_helpers_and_embeddings(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r, client(r) as c:
            async with c.chat.completions.stream(model="m", messages=says(tokens=2)) as stream:
                final = await stream.get_final_completion()
            assert final.choices[0].message.content == "t0 t1 "
            for encoding in ("float", "base64"):
                found = await c.embeddings.create(model="embed", input=["a"], encoding_format=encoding)
                assert len(found.data) == 1
            default = await c.embeddings.create(model="embed", input=[[1, 2, 3]])  # asks for base64 itself
            assert default.data[0].embedding == [0.5, -1.0]
            assert [x["input_tokens"] for x in await r.settled(4)][1:] == [PROMPT_TOKENS] * 3

    run(work)


def test_errors_are_the_sdks_own_classes(tmp_path: Path) -> None:
    async def work() -> None:
        async with (
            rig(tmp_path) as r,
            client(r) as c,
            client(r, "tm-wrong") as bad,
            client(r, OTHER) as other,
        ):
            with pytest.raises(openai.AuthenticationError) as denied:
                await bad.models.list()
            assert denied.value.code == "invalid_api_key"
            for model in ("nope", "private"):
                with pytest.raises(openai.NotFoundError) as missing:
                    await c.chat.completions.create(model=model, messages=says())
                assert missing.value.code == "model_not_found"
            assert {line["alias"] for line in await r.settled(2)} == {"(unknown)"}  # not a row for each
            assert "`nope`" in r.lines()[0]["reason"]
            with pytest.raises(openai.BadRequestError):
                await c.chat.completions.create(model="embed", messages=says())
            with pytest.raises(openai.PermissionDeniedError) as abroad:
                await other.chat.completions.create(model="m", messages=says())
            assert abroad.value.code == "residency_refused"
            body = {"error": {"code": 400, "type": "exceed_context_size_error", "message": "x", "n_ctx": 99}}
            with pytest.raises(openai.BadRequestError) as long:
                await c.chat.completions.create(model="m", messages=says(status=400, body=body), stream=True)
            assert long.value.code == "context_length_exceeded"
            assert "maximum context length is 99 tokens" in str(long.value)
            with pytest.raises(openai.InternalServerError) as broken:
                await c.chat.completions.create(model="m", messages=says(status=500))
            assert broken.value.request_id
            outcomes = [x["outcome"] for x in await r.settled(6)]
            assert outcomes == ["refused"] * 4 + ["engine_error"] * 2

    run(work)


def test_quota_refuses_with_a_time_to_wait(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r, client(r) as c:
            quota = Quota(requests_per_minute=2)
            r.publish(tenants=(TenantEntry("acme", quota, (), (("p", Quota()),)), r.table.tenants[1]))
            first = await c.chat.completions.with_raw_response.create(model="m", messages=says())
            assert first.headers["x-ratelimit-limit-requests"] == "2"
            assert first.headers["x-ratelimit-remaining-requests"] == "1"
            await c.chat.completions.create(model="m", messages=says())
            with pytest.raises(openai.RateLimitError) as refused:
                await c.chat.completions.create(model="m", messages=says())
            assert refused.value.code == "rate_limit_exceeded"
            assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
            small = Quota(tokens_per_minute=10)
            r.publish(tenants=(TenantEntry("acme", small, (), (("p", Quota()),)), r.table.tenants[1]))
            with pytest.raises(openai.RateLimitError) as never:
                await c.chat.completions.create(model="m", messages=says(), max_tokens=100)
            assert never.value.code == "insufficient_quota"
            assert [x["outcome"] for x in await r.settled(4)] == ["ok", "ok", "refused", "refused"]
            assert len(r.engines[0].requests) == 2

    run(work)


def test_failures_in_and_before_a_stream(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path, engines=2) as r, client(r) as c:
            got: list[object] = []
            stream = await c.chat.completions.create(model="m", messages=says(die_after=3), stream=True)
            with pytest.raises(openai.APIError) as cut:
                got.extend([await anext(stream) for _ in range(3)] + [await anext(stream)])
            assert "failed while it answered" in str(cut.value)
            (line,) = await r.settled(1)
            assert (line["outcome"], line["output_tokens"], line["counted_by"]) == (
                "engine_failed",
                2,
                "stream",
            )
            assert line["input_tokens"] == PROMPT_TOKENS
            with pytest.raises(openai.APIStatusError) as early:
                await c.chat.completions.create(model="m", messages=says(error_after=0), stream=True)
            assert early.value.status_code == 500
            assert "out of memory" in str(early.value)

    run(work)


def test_a_dead_engine_is_replaced_and_left_alone(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path, engines=2) as r, client(r) as c:
            await r.engines[0].stop()
            for _ in range(6):
                await c.chat.completions.create(model="m", messages=says())
            lines = await r.settled(6)
            assert {(x["outcome"], x["replica"]) for x in lines} == {("ok", "r-1")}
            assert r.gateway.memory.endpoints["r-0"].failures >= 1
            await r.engines[1].stop()
            with pytest.raises(openai.APIStatusError) as none:
                await c.chat.completions.create(model="m", messages=says())
            assert none.value.status_code in (502, 503)
            assert none.value.response.headers["retry-after"]

    run(work)


def test_draining_endpoints_get_nothing_new(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path, engines=2) as r, client(r) as c:
            alias = r.table.aliases[0]
            first = replace(alias.endpoints[0], draining=True)
            r.publish(aliases=(replace(alias, endpoints=(first, alias.endpoints[1])),))
            for _ in range(4):
                await c.chat.completions.create(model="m", messages=says())
            assert {x["replica"] for x in await r.settled(4)} == {"r-1"}

    run(work)
