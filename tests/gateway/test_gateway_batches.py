"""Batches end to end: the real runner and store, through the real gateway, to a scripted engine.

Cheaper tests could not show that a line is done once although the runner dies with it open.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import OTHER, SECRET, Rig, chat, key, post, raw, rig, run

from tokenmill.console.tenant import batch_input
from tokenmill.console.tenant.batch_runner import BatchRunner
from tokenmill.console.tenant.files import FileShelf
from tokenmill.domain.tenancy import Batch, BatchStatus, Owner, Purpose
from tokenmill.store import Store, open_store

pytestmark = pytest.mark.live

OWNER = Owner("acme", "p")
PROOF = "w" * 43
CHAT_PATH = "/v1/chat/completions"


def line(custom_id: str, script: dict[str, Any] | None = None, **more: Any) -> str:
    body = chat(script, **more)
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT_PATH, "body": body})


@dataclass
class Desk:
    """A store with its shelf, and a runner that can die and come back."""

    rig: Rig
    store: Store
    shelf: FileShelf
    now_us: Callable[[], int]
    task: asyncio.Task[None] | None = None
    runner: BatchRunner | None = None

    def start(self) -> None:
        self.runner = BatchRunner(
            self.store.batches, self.shelf, lambda: self.rig.url, PROOF, lambda: self.now_us()
        )
        self.task = asyncio.create_task(self.runner.run())

    async def die(self) -> None:
        """End the runner where it is: nothing that it holds in memory is written."""
        assert self.task is not None
        for job in self.runner._jobs.values() if self.runner else ():
            job._flush = _nothing  # type: ignore[method-assign]
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    async def submit(self, lines: list[str], **changes: Any) -> Batch:
        path = self.rig.folder / "input.jsonl"
        path.write_text("\n".join(lines) + "\n")
        file = self.shelf.add(OWNER, Purpose.BATCH, "input.jsonl", path)
        now = self.now_us()
        batch = Batch("batch_1", OWNER, "key-1", CHAT_PATH, file.id, "24h", now, now + 86_400_000_000)
        batch = replace(batch, **changes)
        self.store.batches.put(batch)
        if self.runner is not None:
            self.runner.wake()
        return batch

    def seen(self) -> Batch:
        found = self.store.batches.get(OWNER, "batch_1")
        assert found is not None
        return found

    async def reached(self, done: Callable[[Batch], bool]) -> Batch:
        deadline = time.monotonic() + 20
        while not done(self.seen()):
            assert time.monotonic() < deadline, self.seen()
            assert self.task is None or not self.task.done(), self.task
            await asyncio.sleep(0.02)
        return self.seen()

    def lines(self, file: str) -> list[dict[str, Any]]:
        text = self.shelf.path(self.shelf.get(OWNER, file)).read_text()
        return [json.loads(line) for line in text.splitlines()]


async def _nothing() -> None:
    return None


@contextlib.asynccontextmanager
async def desk(tmp_path: Path, **options: Any) -> AsyncIterator[Desk]:
    async with rig(tmp_path, **options) as r:
        (tmp_path / "proof.key").write_text(PROOF)
        store = open_store(f"sqlite:///{tmp_path}/tokenmill.db")
        now = lambda: time.time_ns() // 1000  # noqa: E731
        found = Desk(r, store, FileShelf(store.files, tmp_path / "artifacts", now), now)
        found.start()
        try:
            yield found
        finally:
            await found.die()
            store.close()


def test_a_batch_ends_with_output_errors_and_counts(tmp_path: Path) -> None:
    async def work() -> None:
        async with desk(tmp_path) as d:
            wrong = {"status": 400, "body": {"error": {"message": "no such thing"}}}
            names = ["a", "b", "c", "bad"]
            lines = [line(name, {"tokens": n + 1}) for n, name in enumerate(names[:3])]
            await d.submit([*lines, "", line("bad", wrong)], metadata={"who": "me"})
            batch = await d.reached(lambda b: b.status.ended)
            assert batch.status is BatchStatus.COMPLETED
            assert (batch.counts.total, batch.counts.completed, batch.counts.failed) == (4, 3, 1)
            assert batch.model == "m"
            output, errors = d.lines(batch.output_file), d.lines(batch.error_file)
            assert [x["custom_id"] for x in output] == ["a", "b", "c"]
            assert output[1]["response"]["status_code"] == 200
            assert output[1]["response"]["body"]["usage"]["completion_tokens"] == 2
            assert output[1]["error"] is None
            assert errors[0]["custom_id"] == "bad"
            assert errors[0]["response"]["status_code"] == 400
            settled = await d.rig.settled(4)
            assert {s["key"] for s in settled} == {"key-1"}
            assert output[1]["response"]["request_id"] in {s["request"] for s in settled}
            order = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING)
            times = [batch.reached_us[s] for s in (*order[1:], BatchStatus.COMPLETED)]
            assert times == sorted(times)

    run(work)


def test_a_wrong_input_fails_in_validating(tmp_path: Path) -> None:
    async def work() -> None:
        async with desk(tmp_path) as d:
            await d.submit([line("a"), line("b"), line("a"), "{", line("c", stream=True)])
            batch = await d.reached(lambda b: b.status.ended)
            assert batch.status is BatchStatus.FAILED
            found = [(p.line, p.code) for p in batch.problems]
            assert found == [(3, "duplicate_custom_id"), (4, "invalid_json_line"), (5, "stream_unsupported")]
            assert d.rig.engines[0].requests == []

    run(work)


def test_no_line_is_done_twice_although_the_runner_dies(tmp_path: Path) -> None:
    async def work() -> None:
        async with desk(tmp_path) as d:
            await d.submit([line(f"n{n}", {"tokens": 2, "first_s": 0.05}) for n in range(60)])
            for fraction in (10, 30):
                engine = d.rig.engines[0]
                while len(engine.requests) < fraction:
                    await asyncio.sleep(0.005)
                await d.die()
                d.start()
            batch = await d.reached(lambda b: b.status.ended)
            assert batch.status is BatchStatus.COMPLETED
            assert (batch.counts.completed, batch.counts.failed) == (60, 0)
            assert len(d.rig.engines[0].requests) == 60
            assert len({x["custom_id"] for x in d.lines(batch.output_file)}) == 60
            settled = await d.rig.settled(60)
            assert {s["outcome"] for s in settled} == {"ok"}

    run(work)


def test_a_batch_yields_to_clients(tmp_path: Path) -> None:
    async def work() -> None:
        async with desk(tmp_path) as d:
            alias = d.rig.table.aliases[0]
            few = tuple(replace(e, slots=2) for e in alias.endpoints)
            d.rig.publish(aliases=(replace(alias, endpoints=few), *d.rig.table.aliases[1:]))
            # Two clients hold both slots until they leave.
            held = [await asyncio.open_connection("127.0.0.1", d.rig.gateway.port) for _ in range(2)]
            for _, writer in held:
                writer.write(post(chat({"first_s": 60})))
            while len(d.rig.engines[0].requests) < 2:
                await asyncio.sleep(0.005)
            await d.submit([line(f"n{n}") for n in range(4)])
            await d.reached(lambda b: b.status is BatchStatus.IN_PROGRESS)
            await asyncio.sleep(0.4)
            assert len(d.rig.engines[0].requests) == 2
            for _, writer in held:
                writer.transport.abort()
            batch = await d.reached(lambda b: b.status.ended)
            assert batch.counts.completed == 4
            assert len(await d.rig.settled(6)) == 6  # what was sent back while it waited is nobody's request

    run(work)


def test_cancel_finishes_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    async def work() -> None:
        async with desk(tmp_path) as d:
            await d.submit([line(f"n{n}", {"first_s": 0.2}) for n in range(200)])
            await d.reached(lambda b: b.counts.completed > 0)
            assert d.runner is not None
            assert (await d.runner.cancel(d.seen())).status is BatchStatus.CANCELLING
            batch = await d.reached(lambda b: b.status.ended)
            assert batch.status is BatchStatus.CANCELLED
            done = len(d.rig.engines[0].requests)
            assert 0 < done < 200
            assert batch.counts.completed == done
            assert len(d.lines(batch.output_file)) == done

    run(work)


def test_a_batch_expires_with_what_was_not_done_in_the_error_file(tmp_path: Path) -> None:
    async def work() -> None:
        async with desk(tmp_path) as d:
            await d.submit([line(f"n{n}", {"first_s": 0.2}) for n in range(300)])
            await d.reached(lambda b: b.counts.completed > 0)
            d.now_us = lambda: time.time_ns() // 1000 + 86_500_000_000
            batch = await d.reached(lambda b: b.status.ended)
            assert batch.status is BatchStatus.EXPIRED
            output, errors = d.lines(batch.output_file), d.lines(batch.error_file)
            assert len(output) + len(errors) == 300
            assert errors[0]["error"]["code"] == "batch_expired"

    run(work)


def test_an_engine_that_dies_is_tried_again_and_a_lost_key_fails_the_line(tmp_path: Path) -> None:
    async def work() -> None:
        async with desk(tmp_path) as d:
            await d.submit([line("dies", {"die_now": True}), line("ok")])
            await d.reached(lambda b: b.counts.completed == 1)
            d.rig.publish(keys=(key(OTHER, "key-2", "other"),))
            batch = await d.reached(lambda b: b.status.ended)
            assert batch.status is BatchStatus.COMPLETED
            (error,) = d.lines(batch.error_file)
            assert error["response"]["status_code"] in (401, 502)

    run(work)


def test_nobody_speaks_for_a_key_without_the_proof(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as r:
            wrong = "x-tokenmill-on-behalf: key-1\r\nx-tokenmill-proof: "
            for proof in ("", "w" * 43):
                answer = await raw(r, post(chat(), headers=f"{wrong}{proof}\r\n", secret="tm-x"))
                assert b" 401 " in answer
            (tmp_path / "proof.key").write_text("v" * 43)
            assert b" 401 " in await raw(r, post(chat(), headers=f"{wrong}{PROOF}\r\n"))
            (tmp_path / "proof.key").write_text("")
            assert b" 401 " in await raw(r, post(chat(), headers=f"{wrong}\r\n", secret=SECRET))

    run(work)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty_file"),
        ("\n \n", "empty_file"),
        ("[]", "invalid_json_line"),
        ("[" * 100_000, "invalid_json_line"),
        (b'{"custom_id": "\xe9"}', "invalid_json_line"),
        (b'\xff\xfe{"custom_id": "a", "body": {"model": "m"}}', "invalid_json_line"),
        ('{"custom_id": 3, "body": {"model": "m"}}', "invalid_custom_id"),
        ('{"custom_id": "a", "body": {}}', "invalid_body"),
        ('{"custom_id": "a", "url": "/v1/embeddings", "body": {"model": "m"}}', "mismatched_url"),
        ('{"custom_id": "a", "method": "GET", "body": {"model": "m"}}', "invalid_method"),
        ('{"custom_id": "a", "body": {"model": "' + "m" * batch_input.LINE_BYTES + '"}}', "line_too_long"),
    ],
)
def test_every_wrong_line_is_named(tmp_path: Path, text: str | bytes, code: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    found = batch_input.check(path, CHAT_PATH)
    assert [p.code for p in found.problems] == [code]


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    line = '{"custom_id": "NAME", "body": {"model": "m"}}\n'
    path.write_text("\ufeff" + line.replace("NAME", "a") + line.replace("NAME", "b"))
    assert batch_input.check(path, CHAT_PATH).total == 2
    assert [one.custom_id for one in batch_input.requests(path, CHAT_PATH)] == ["a", "b"]
    path.write_text(line.replace("NAME", "a") + "\ufeff" + line.replace("NAME", "b"))
    assert [p.line for p in batch_input.check(path, CHAT_PATH).problems] == [2]
