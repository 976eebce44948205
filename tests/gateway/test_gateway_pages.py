"""The gateway's own pages and small answers: description, readiness, what is not offered, images, ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import SECRET, Rig, chat, post, raw, rig, run

from tokenmill.gateway import openapi

pytestmark = pytest.mark.live

PIXEL = "data:image/png;base64,iVBORw0KGgo="


async def got(r: Rig, path: str, method: str = "GET", secret: str = SECRET) -> tuple[int, Any]:
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\nconnection: close\r\n\r\n"
    )
    answer = await raw(r, head.encode())
    top, _, body = answer.partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(body) if body else None


def test_the_description_has_no_schema_that_nothing_uses(tmp_path: Path) -> None:
    found = json.loads(openapi.document())
    text = json.dumps(found)
    for name in found["components"]["schemas"]:
        assert f"#/components/schemas/{name}" in text, name

    async def work() -> None:
        async with rig(tmp_path) as r:
            for path, methods in found["paths"].items():
                if "get" in methods and "{" not in path and path != "/metrics":
                    assert (await got(r, path))[0] in (200, 503), path  # 503: the controller's, which is away
            assert b" 200 " in await raw(r, b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")

    run(work)


def test_what_is_not_offered_is_an_error_object(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            for path in (
                "/v1/assistants",
                "/v1/threads",
                "/v1/audio/speech",
                "/v1/images/generations",
                "/v1/moderations",
                "/v1/vector_stores",
                "/v1/responses/resp_1",
                "/v1/responses/resp_1/input_items",
                "/api/tags/x/y%00",
                "/v1/",
                "/v1",
            ):
                for method in ("GET", "POST", "DELETE"):
                    status, body = await got(r, path, method)
                    if status == 503 and path.startswith("/api"):
                        continue  # the console's, which is away
                    assert status == 404, (path, method, body)
                    assert set(body["error"]) == {"message", "type", "param", "code"}
            assert (await got(r, "/openapi.json"))[1]["openapi"] == "3.1.0"
            assert (await got(r, "/v1/files"))[0] == 503  # the controller is away, and says so
            assert (await got(r, "/v1/chat/completions"))[0] == 405

    run(work)


def test_models_by_any_id_and_either_base(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            for base in ("", "/v1"):
                assert [m["id"] for m in (await got(r, f"{base}/models"))[1]["data"]][1] == "org/m:1"
                for name in ("org/m:1", "org%2Fm%3A1", "org%2fm:1"):
                    status, model = await got(r, f"{base}/models/{name}")
                    assert (status, model["id"]) == (200, "org/m:1")
                status, body = await got(r, f"{base}/models/private")
                assert (status, body["error"]["code"]) == (404, "model_not_found")

    run(work)


def test_readiness_says_when_the_loop_last_ran(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            status, body = await got(r, "/readyz")
            assert status == 200
            assert body["heartbeat_age_s"] < 5
            assert body["oldest_pending_s"] == 0.0
            r.gateway.poll_table = lambda: None  # type: ignore[method-assign]
            r.gateway.ticked_s -= 100
            status, body = await got(r, "/readyz")
            assert status == 503
            assert body["reasons"] == ["the loop that reads the table has stopped"]

    run(work)


def test_a_target_may_name_the_server_as_proxies_write_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            for target in ("http://x/v1/models?a=1", "HTTPS://x:1/v1/models"):
                assert (await got(r, target))[1]["object"] == "list"
            assert (await got(r, "http://x?a=1"))[0] != 400
            assert (await got(r, "ftp://x/v1/models"))[0] == 404
            answer = await raw(r, post(chat(), "http://x/v1/chat/completions"))
            assert b" 200 " in answer

    run(work)


def test_images_reach_the_engine_as_data_and_never_as_addresses(tmp_path: Path) -> None:
    def shown(url: object, **script: Any) -> bytes:
        parts = [{"type": "image_url", "image_url": {"url": url}}]
        last = {"role": "user", "content": json.dumps(script)}
        return post({"model": "m", "messages": [{"role": "user", "content": parts}, last]})

    async def work() -> None:
        async with rig(tmp_path) as r:
            assert b" 200 " in await raw(r, shown(PIXEL))
            part = r.engines[0].requests[-1]["messages"][0]["content"][0]
            assert part == {"type": "image_url", "image_url": {"url": PIXEL}}
            for url in ("http://169.254.169.254/", "file:///etc/passwd", 3, None):
                answer = await raw(r, shown(url))
                assert b" 400 " in answer
                assert b"must be a data URL" in answer
            message = "image input is not supported - hint: if this is unexpected, you may need mmproj"
            blind = await raw(r, shown(PIXEL, status=500, body={"error": {"message": message}}))
            assert b" 400 " in blind
            assert b"cannot see images" in blind
            broken = await raw(r, post({"model": "m", "messages": [{"role": "user", "content": ["x"]}]}))
            assert b" 400 " in broken

    run(work)


def test_fields_that_clients_send_are_taken(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            more = {
                "store": True,
                "reasoning_effort": "low",
                "parallel_tool_calls": False,
                "max_completion_tokens": 5,
                "metadata": {"a": "b"},
                "some_engines_own_field": {"x": 1},
            }
            assert b" 200 " in await raw(r, post(chat({}, **more)))
            assert r.engines[0].requests[-1].items() >= more.items()

    run(work)
