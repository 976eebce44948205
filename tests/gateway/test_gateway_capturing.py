"""Answers that a project agreed to have kept, over real sockets: redacted, whole, and nobody else's."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import OTHER, SECRET, Rig, chat, post, raw, rig, run

from tokenmill.domain.calendar import DAY_US
from tokenmill.domain.factory import Capture
from tokenmill.gateway.capturing import Keeper
from tokenmill.spec.capture_files import LOOK_US, CaptureFiles, user_digest

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
    for _ in range(2000):
        rows = [dict(row) for row in files.rows()]
        if len(rows) >= count and not found.gateway.captures._waiting:
            return rows
        await asyncio.sleep(0.01)
    raise AssertionError(f"{len(rows)} rows of {count}: {found.gateway.captures.counts}")


async def ended(found: Rig, result: str, count: int = 1) -> None:
    for _ in range(2000):
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


def test_an_answer_that_is_not_captured_is_not_even_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bytes] = []
    monkeypatch.setattr(Keeper, "hear", lambda _, data: heard.append(data))

    async def work() -> None:
        async with rig(tmp_path) as found:
            agree(found)
            for streams in (False, True):
                await raw(found, post(chat({"tokens": 2}, model="org/m:1", stream=streams)))
                await raw(found, post(chat({"tokens": 2}, store=False, stream=streams)))
            agree(found, replace(AGREED, share_milli=500))
            found.gateway.draw = lambda: 500
            await raw(found, post(chat({"tokens": 2}, stream=True)))
            await found.settled(5)
            assert heard == []
            assert found.gateway.captures.counts == {("declined",): 2, ("not_drawn",): 1}
            found.gateway.draw = lambda: 499
            await raw(found, post(chat({"tokens": 2})))
            assert heard

    run(work)


def test_a_row_costs_no_reading_of_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The consents are read and the folder is summed once in ten seconds, or when the consent changes."""
    files = CaptureFiles(tmp_path, "acme", "p")
    looks = 0

    def looked(self: CaptureFiles) -> list[Path]:
        nonlocal looks
        looks += 1
        return sorted(self.folder.glob("[0-9]*.jsonl"))

    monkeypatch.setattr(CaptureFiles, "days", property(looked))
    capture = replace(AGREED, bytes_most=3000)
    kept = 0
    while files.admits(kept, capture):
        files.keep(kept, 0, {"request": f"r{kept}"})
        kept += 1
    assert looks == 1
    assert 3000 <= files.size < 3040  # what it wrote itself counts at once
    other = CaptureFiles(tmp_path, "acme", "p")
    other.erase(lambda row: row["request"] == "r0")
    assert not files.admits(kept, capture)
    assert files.admits(LOOK_US, replace(capture, bytes_most=3010))  # others' doings after ten seconds
    assert files.admits(LOOK_US, replace(capture, consent="anew", bytes_most=3010))
    assert [one["consent"] for one in other.consents] == [AGREED.consent, "anew"]


def test_opinions_count_as_rows_do_towards_the_limit(tmp_path: Path) -> None:
    files = CaptureFiles(tmp_path, "acme", "p")
    capture = replace(AGREED, bytes_most=500)
    said = 0
    while files.admits(0, capture) and said < 100:
        files.rate(0, f"r{said}", True)
        said += 1
    assert 500 <= files.size < 550
    assert len(files.opinions()) == said < 20
    assert not CaptureFiles(tmp_path, "acme", "p").admits(1, capture)


def test_a_client_that_leaves_at_the_last_event_has_had_the_answer(tmp_path: Path) -> None:
    """As the ``openai`` client does, which does not wait for the engine to end its response."""

    async def work() -> None:
        async with rig(tmp_path) as found:
            agree(found)
            for leave in (b"[DONE]", b"t1"):
                reader, writer = await asyncio.open_connection("127.0.0.1", found.gateway.port)
                writer.write(post(chat({"tokens": 3, "gap_s": 0.1}, stream=True)))
                await reader.readuntil(leave)
                writer.transport.abort()
            await found.settled(2)
            (row,) = await kept(found, tmp_path, 1)
            assert row["messages"][-1]["content"] == "t0 t1 t2 "

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
    agreed = Capture(("m",), "agreed", 2 * DAY_US)
    assert files.admits(0, agreed)
    assert files.admits(5, agreed)
    for day in range(4):
        files.keep(day * DAY_US, 0, {"request": f"r{day}", "user": "a" if day % 2 else "b"})
    files.rate(0, "r0", True)
    files.rate(DAY_US, "r1", True)
    files.rate(2 * DAY_US, "r2", False)
    assert [line["since_us"] for line in files.consents] == [0]
    with files.days[-1].open("ab") as file:
        file.write(b'{"request": "torn')  # what a crash left
    files.keep(3 * DAY_US, 0, {"request": "r4", "user": "b"})
    assert [row["request"] for row in files.rows()] == ["r0", "r1", "r2", "r3", "r4"]
    assert files.erase(lambda row: row.get("user") == "a") == (2, 1)
    assert [row["request"] for row in files.rows()] == ["r0", "r2", "r4"]
    assert files.opinions() == {"r0": True, "r2": False}
    assert files.forget(4 * DAY_US) == 2  # of the first day; the second day's files are gone already
    assert files.opinions() == {"r2": False}
    assert [row["request"] for row in files.rows()] == ["r2", "r4"]
    assert SECRET not in str(list(files.rows()))
    files.rate(3 * DAY_US, "r-not-kept", False)
    assert files.erase(lambda row: row["request"] == "r-not-kept") == (0, 1)
    files.rate(3 * DAY_US, "r-not-kept", False)
    assert files.erase(lambda _: True) == (2, 2)
    assert not [*files.days, *files.opinion_days]
    assert [line["consent"] for line in files.consents] == ["agreed"]  # what was agreed stays on record


def test_days_that_grew_too_old_while_no_gateway_ran_go_at_its_start(tmp_path: Path) -> None:
    files = CaptureFiles(tmp_path / "captures", "acme", "p")
    assert files.admits(0, AGREED)
    files.keep(0, 0, {"request": "r0"})

    async def work() -> None:
        async with rig(tmp_path):
            for _ in range(2000):
                if not files.days:
                    return
                await asyncio.sleep(0.01)
        raise AssertionError("the old day is still there")

    run(work)
