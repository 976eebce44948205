"""Answers that a project agreed to have kept, over real sockets: redacted, whole, and nobody else's."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway_rig import OTHER, SECRET, Rig, chat, post, raw, rig, run

from tokenmill.domain.calendar import DAY_US
from tokenmill.domain.factory import Capture
from tokenmill.spec.capture_files import CaptureFiles, user_digest

AGREED = Capture(("m",), "signed by the bank, 1 November 2026", 30 * DAY_US)


def agree(found: Rig, capture: Capture | None = AGREED) -> None:
    tenants = tuple(
        replace(t, captures=(("p", capture),) if capture is not None and t.name == "acme" else ())
        for t in found.table.tenants
    )
    found.publish(tenants=tenants)


async def kept(found: Rig, folder: Path, count: int) -> list[dict[str, Any]]:
    """All rows, once there are so many."""
    files = CaptureFiles(folder / "captures", "acme", "p")
    for _ in range(200):
        rows = [dict(row) for row in files.rows()]
        if len(rows) >= count and not found.gateway.captures._waiting:
            return rows
        await asyncio.sleep(0.01)
    raise AssertionError(f"{len(rows)} rows of {count}: {found.gateway.captures.counts}")


async def ended(found: Rig, result: str, count: int = 1) -> None:
    for _ in range(200):
        if found.gateway.captures.counts.get((result,), 0) >= count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"no {result}: {found.gateway.captures.counts}")


def test_a_stream_and_a_whole_answer_become_redacted_rows(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as found:
            agree(found)
            script = {"tokens": 3, "note": "write to ada@example.org"}
            await raw(found, post(chat(script, stream=True, user="ada")))
            await raw(found, post(chat(script)))
            rows = await kept(found, tmp_path, 2)
            settled = {line["request"]: line for line in await found.settled(2)}
            for row in rows:
                line = settled[row["request"]]
                assert (row["alias"], row["release"]) == ("m", line["release"])
                asked, answer = row["messages"][-2:]
                assert "[EMAIL]" in asked["content"]
                assert "ada@" not in json.dumps(row)
                assert answer["role"] == "assistant"
                assert row["redacted"] == 1
            assert {row["messages"][-1]["content"] for row in rows} == {"t0 t1 t2 ", "t t t "}
            assert {row["user"] for row in rows} == {"", user_digest("ada")}
            files = CaptureFiles(tmp_path / "captures", "acme", "p")
            (consent,) = files.consents
            assert consent["consent"] == AGREED.consent
            assert {row["consent"] for row in rows} == {consent["id"]}
            assert all(path.stat().st_mode & 0o777 == 0o600 for path in files.days)
            assert files.folder.stat().st_mode & 0o777 == 0o700
            assert b'tokenmill_captures_total{result="kept"} 2' in found.gateway.metrics.text({})

    run(work)


def test_what_nobody_agreed_to_is_not_kept(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as found:
            await raw(found, post(chat({"tokens": 2})))  # nobody agreed yet
            agree(found)
            await raw(found, post(chat({"tokens": 2}), secret=OTHER))  # another tenant
            await raw(found, post(chat({"tokens": 2}, model="org/m:1")))  # another alias
            await raw(found, post(chat({"tokens": 2}, store=False)))  # the client declines
            agree(found, replace(AGREED, share_milli=0))
            await raw(found, post(chat({"tokens": 2})))
            agree(found, None)  # taken back
            await raw(found, post(chat({"tokens": 2})))
            agree(found)
            await raw(found, post(chat({"status": 500})))  # no answer
            await raw(found, post(chat({"tokens": 5, "die_after": 2}, stream=True)))  # cut by its engine
            await found.settled(8)
            assert found.gateway.captures.counts == {("declined",): 1, ("not_drawn",): 1}
            assert not (tmp_path / "captures").exists()

    run(work)


def test_pictures_and_a_full_project_are_left_out_and_counted(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as found:
            agree(found)
            part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
            picture = {"model": "m", "messages": [{"role": "user", "content": [part]}]}
            await raw(found, post(picture))
            await ended(found, "no_text")
            await raw(found, post(chat({"tokens": 2})))
            assert len(await kept(found, tmp_path, 1)) == 1
            agree(found, replace(AGREED, bytes_most=1))
            await raw(found, post(chat({"tokens": 2})))
            await ended(found, "full")
            assert len(await kept(found, tmp_path, 1)) == 1

    run(work)


def test_other_formats_are_kept_as_chat(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as found:
            agree(found)
            body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
            answer = await raw(found, post(body, path="/v1/messages"))
            assert b'"type":"message"' in answer.replace(b" ", b"")
            (row,) = await kept(found, tmp_path, 1)
            assert [m["role"] for m in row["messages"]] == ["user", "assistant"]

    run(work)


def test_a_disk_that_takes_nothing_costs_rows_and_no_answers(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as found:
            agree(found)
            (tmp_path / "captures").write_text("in the way")
            assert b"200 OK" in await raw(found, post(chat({"tokens": 2})))
            await ended(found, "failed")
            assert "cannot be kept" in found.gateway.captures.problem

    run(work)


def test_files_erase_forget_and_survive_a_torn_line(tmp_path: Path) -> None:
    files = CaptureFiles(tmp_path, "acme", "p")
    files.agree(0, "agreed", 2 * DAY_US, ("m",))
    files.agree(5, "agreed", 2 * DAY_US, ("m",))
    for day in range(4):
        files.keep(day * DAY_US, 0, {"request": f"r{day}", "user": "a" if day % 2 else "b"})
    files.rate("r1", True)
    files.rate("r2", False)
    assert [line["since_us"] for line in files.consents] == [0]
    with files.days[-1].open("ab") as file:
        file.write(b'{"request": "torn')  # what a crash left
    files.keep(3 * DAY_US, 0, {"request": "r4", "user": "b"})
    assert [row["request"] for row in files.rows()] == ["r0", "r1", "r2", "r3", "r4"]
    assert files.erase(lambda row: row["user"] == "a") == 2
    assert [row["request"] for row in files.rows()] == ["r0", "r2", "r4"]
    assert files.opinions() == {"r2": False}
    assert files.forget(4 * DAY_US) == 1  # of the first day; the second day's file is gone already
    assert [row["request"] for row in files.rows()] == ["r2", "r4"]
    assert SECRET not in str(list(files.rows()))
