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
