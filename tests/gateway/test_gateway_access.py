"""Who gets in: keys that no quota would bind, and checks of keys while nothing can be written anywhere."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from gateway_rig import SECRET, Rig, chat, post, raw, rig, run

pytestmark = pytest.mark.live

CLOSE = "connection: close\r\n"


async def status(r: Rig, secret: str, path: str = "/v1/chat/completions") -> int:
    asked = post(chat({"tokens": 1}), path, CLOSE, secret)
    if path == "/v1/models":
        asked = f"GET {path} HTTP/1.1\r\nauthorization: Bearer {secret}\r\n{CLOSE}\r\n".encode()
    answer = await asyncio.wait_for(raw(r, asked), 10)
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize("lost", [{"project": "q"}, {"tenant": "gone"}])
def test_a_key_that_no_quota_would_bind_opens_nothing(tmp_path: Path, lost: dict[str, str]) -> None:
    """Were it served, no limit would be found for it by name."""

    async def work() -> None:
        async with rig(tmp_path) as r:
            mine, theirs = r.table.keys
            r.publish(keys=(replace(mine, **lost), theirs))
            for path in ("/v1/chat/completions", "/v1/models", "/v1/messages", "/tokenize", "/v1/batches"):
                assert await status(r, SECRET, path) == 401, path
            assert r.engines[0].requests == []
            r.publish(keys=(mine, theirs))
            assert await status(r, SECRET) == 200

    run(work)


def test_a_key_is_asked_for_anew_with_every_request_of_a_connection(tmp_path: Path) -> None:
    """Whose a head is may be noted only as long as the table and the time are the same."""

    async def work() -> None:
        async with rig(tmp_path) as r:
            mine, theirs = r.table.keys
            now_us = r.gateway.clock()
            until = now_us + 1_000_000
            reader, writer = await asyncio.open_connection("127.0.0.1", r.gateway.port)

            async def status() -> int:
                writer.write(post(chat({"tokens": 1})))
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
                length = next(x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:"))
                await reader.readexactly(int(length.split()[1]))
                return int(head.split(b" ", 2)[1])

            assert [await status() for _ in range(3)] == [200, 200, 200]
            r.publish(keys=(theirs,))
            assert [await status() for _ in range(2)] == [401, 401]
            r.publish(keys=(replace(mine, expires_us=until), theirs))
            assert [await status() for _ in range(3)] == [200, 200, 200]
            r.gateway.clock = lambda: until - 1
            assert await status() == 200
            r.gateway.clock = lambda: until
            assert [await status() for _ in range(2)] == [401, 401]
            writer.close()

    run(work)
