"""What breaks while tokens are paid for: engines, clients, the gateway, the store, the clock.

Real sockets, the real gateway (killed as a process where it dies), the real books on a real database. After
each fault the ledger holds every request once and balances with the engines' own counters.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import signal
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import (
    PROMPT_TOKENS,
    SECRET,
    Engine,
    Rig,
    chat,
    key,
    post,
    raw,
    rig,
    run,
    run_beside,
    table_of,
    write_table,
)
from process_rig import gateway, port_of

from tokenmill.domain.errors import StoreError
from tokenmill.domain.factory import Deployment, Factory, Price, Quota
from tokenmill.floor.books import Books
from tokenmill.floor.engine_counts import Counting
from tokenmill.store.opening import Store, open_store
from tokenmill.store.verify import LedgerReport

pytestmark = pytest.mark.live

FACTORY = Factory(
    name="f",
    prices=(Price("*", 1_000_000, 1_000_000, output_micros_per_mtok=2_000_000),),
    deployments=(Deployment("m", model="m"),),
)


class NoEnergy:
    """A floor that measures no energy."""

    def refresh(self) -> None: ...

    def owed(self) -> dict[str, int]:
        return {}

    def ended(self) -> frozenset[str]:
        return frozenset()

    def forget_ended(self) -> None: ...

    def take(self, amounts: Any) -> None: ...

    def give_back(self, amounts: Any) -> None: ...

    def source(self) -> str:
        return "none"

    def watts(self) -> float:
        return 0.0


@dataclass
class Till:
    """The books of one test: from its spool to a database."""

    store: Store
    books: Books
    engines: list[Engine]
    spool: Path

    async def verify(self) -> LedgerReport:
        """Read the spool, and hold everything against everything."""
        names = tuple((f"r-{n}", "m", "embedded", f"127.0.0.1:{e.port}") for n, e in enumerate(self.engines))
        await asyncio.to_thread(self.books.pass_over, FACTORY, 1)
        return await asyncio.to_thread(self.store.ledger.verify, self.spool, Counting(names))

    async def balanced(self, *, cut: int = 0) -> LedgerReport:
        """The report, which has no problem and says of each token why it differs: of ``cut`` requests."""
        report = await self.verify()
        assert report.ok, report.problems
        assert (report.pending, report.in_flight, report.unreconciled_tokens) == (0, 0, 0)
        assert report.engines, "the engines were asked"
        for engine in report.engines:
            if not cut:
                assert engine.difference == ""
                assert engine.counted_output == engine.settled_output
                assert engine.counted_input == engine.settled_input
            assert 0 <= engine.counted_output - engine.settled_output <= 3 * cut, engine
        return report

    def micros(self) -> int:
        return sum(row.micros.get("USD", 0) for row in self.store.ledger.usage(["tenant"]))


@contextlib.asynccontextmanager
async def till(folder: Path, engines: list[Engine]) -> AsyncIterator[Till]:
    store = open_store(f"sqlite:///{folder}/ledger.db", wait_s=0.05)
    try:
        spool = folder / "spool"
        yield Till(store, Books(store.ledger, spool, NoEnergy()), engines, spool)
    finally:
        store.close()


@contextlib.asynccontextmanager
async def bench(folder: Path, engines: int = 1, **options: Any) -> AsyncIterator[tuple[Rig, Till]]:
    """A gateway before engines that say in every event what they have counted, and its books."""
    async with rig(folder, engines, **options) as r, till(folder, r.engines) as books:
        own = tuple(
            replace(
                alias,
                endpoints=tuple(replace(e, engine="embedded") for e in alias.endpoints),
                prices=FACTORY.prices,
            )
            for alias in r.table.aliases
        )
        r.publish(aliases=own)
        yield r, books


async def stream(r: Rig, script: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", r.gateway.port, limit=1024)
    writer.write(post(chat(script, stream=True)))
    return reader, writer


def test_an_engine_killed_before_the_first_byte_is_replaced_unseen(tmp_path: Path) -> None:
    async def work() -> None:
        async with bench(tmp_path, engines=2) as (r, books):
            for engine in r.engines:
                engine.die_next = 1
            got = await raw(r, post(chat({"tokens": 4}, stream=True)))
            assert b" 502 " in got  # both died of it
            for engine in r.engines:
                engine.die_next = 0
            r.gateway.memory = replace(r.gateway.memory, endpoints=type(r.gateway.memory.endpoints)())
            r.engines[0].die_next = r.engines[1].die_next = 0
            first = len(r.engines[0].requests)
            await raw(r, post(chat({"tokens": 1})))
            chosen = 0 if len(r.engines[0].requests) > first else 1
            r.engines[chosen].die_next = 1
            r.engines[1 - chosen].die_next = 0
            got = await raw(r, post(chat({"tokens": 4}, stream=True)))
            assert b" 200 " in got
            assert got.count(b"[DONE]") == 1
            assert b"error" not in got
            last = (await r.settled(3))[-1]
            assert (last["outcome"], last["output_tokens"]) == ("ok", 4)
            assert last["tried"] in ("", f"r-{chosen}")
            report = await books.balanced(cut=1)
            # Each engine had begun a prompt that nobody was billed for.
            assert sum(e.counted_input - e.settled_input for e in report.engines) >= 2 * PROMPT_TOKENS
            assert books.micros() == 2 * PROMPT_TOKENS + 5 * 2

    run(work)


def test_an_engine_killed_in_the_middle_is_an_error_event_and_a_partial_bill(tmp_path: Path) -> None:
    async def work() -> None:
        async with bench(tmp_path) as (r, books):
            got = await raw(r, post(chat({"tokens": 9, "die_after": 4}, stream=True)))
            assert b'data: {"error"' in got
            assert b"[DONE]" not in got
            (line,) = await r.settled(1)
            assert (line["outcome"], line["counted_by"]) == ("engine_failed", "engine")
            counts = (line["input_tokens"], line["cached_tokens"], line["output_tokens"])
            assert counts == (PROMPT_TOKENS, 2, 3)
            await books.balanced()
            assert books.micros() == PROMPT_TOKENS + 3 * 2

    run(work)


@pytest.mark.parametrize("read", [0, 4, 12])
def test_a_client_that_leaves_at_any_point_pays_what_the_engine_counted(tmp_path: Path, read: int) -> None:
    """At byte 0, in the middle, and after the last token but before the end."""

    async def work() -> None:
        async with bench(tmp_path) as (r, books):
            engine = r.engines[0]
            slow = {"first_s": 30} if read == 0 else {"gap_s": 0.1}
            reader, writer = await stream(r, {"tokens": 10, **slow})
            for _ in range(read):
                await reader.readuntil(b"\n\n")
            if read == 0:
                while not engine.requests:
                    await asyncio.sleep(0.01)
            writer.transport.abort()
            (line,) = await r.settled(1)
            assert line["outcome"] == "cancelled"
            assert line["input_tokens"] == PROMPT_TOKENS
            assert line["output_tokens"] == {0: 0, 4: 3, 12: 10}[read]
            assert line["counted_by"] == ("stream" if read == 0 else "engine")
            while not (engine.aborted or engine.finished):
                await asyncio.sleep(0.01)
            report = await books.balanced(cut=1)
            (check,) = report.engines
            assert check.counted_input == check.settled_input
            assert books.micros() == PROMPT_TOKENS + 2 * line["output_tokens"]

    run(work)


def test_a_slow_client_holds_its_own_stream_back_and_nothing_else(tmp_path: Path) -> None:
    async def work() -> None:
        async with bench(tmp_path) as (r, books):
            slow_reader, slow_writer = await stream(r, {"tokens": 3000})
            quick = [await raw(r, post(chat({"tokens": 5}, stream=True))) for _ in range(3)]
            assert all(b"[DONE]" in got for got in quick)
            got = b""
            while b"[DONE]" not in got:
                got = got[-64:] + await slow_reader.read(4096)
                await asyncio.sleep(0.002)
            slow_writer.close()
            lines = await r.settled(4)
            assert sorted(line["output_tokens"] for line in lines) == [5, 5, 5, 3000]
            await books.balanced()

    run(work)


def test_a_gateway_killed_under_load_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    """Three times in a row; the ledger reads the spool while it is written, and once more at the end."""

    async def load(port: int, done: list[str], stop: asyncio.Event) -> None:
        while not stop.is_set():
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(post(chat({"tokens": 4, "gap_s": 0.002}, stream=True)))
                    head = await reader.readuntil(b"\r\n\r\n")
                    await reader.readuntil(b"data: [DONE]\n\n")
                    done.append(head.decode().lower().split("x-request-id: ")[1].split("\r\n")[0])
                finally:
                    writer.close()

    async def work() -> None:
        engine = Engine()
        await engine.start()
        table = table_of([engine])
        write_table(tmp_path, table)
        done: list[str] = []
        async with till(tmp_path, [engine]) as books:
            for _ in range(3):
                process = gateway(tmp_path)
                port = await port_of(tmp_path, process)
                stop, before = asyncio.Event(), len(done)
                clients = [asyncio.create_task(load(port, done, stop)) for _ in range(8)]
                while len(done) < before + 60:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(books.books.pass_over, FACTORY, 1)
                process.send_signal(signal.SIGKILL)
                process.wait()
                stop.set()
                await asyncio.gather(*clients)
            process = gateway(tmp_path)
            await port_of(tmp_path, process)
            process.terminate()
            assert await asyncio.to_thread(process.wait, 20) == 0
            report = await books.verify()
            assert report.ok, report.problems
            kept = books.store.ledger.settlements(done)
            assert len(done) == len(set(done)) == len(kept), "what a client saw end is in the ledger, once"
            assert {(s.outcome.value, s.output_tokens) for s in kept.values()} == {("ok", 4)}
            (check,) = report.engines
            assert check.counted_output >= check.settled_output
            every = books.store.ledger.usage(["tenant"])[0].outcomes
            assert every.get("interrupted", 0) > 0, "requests were open when it died"
        await engine.stop()

    run_beside(work)


def test_a_store_that_is_down_for_ten_minutes_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Another process holds the database locked. A pass every simulated second; memory stays as it was."""

    async def work() -> None:
        async with bench(tmp_path, spool_bytes=64 * 1024) as (r, books):
            await raw(r, post(chat({"tokens": 2})))
            await books.balanced()
            other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
            other.execute("BEGIN EXCLUSIVE")
            reader, writer = await asyncio.open_connection("127.0.0.1", r.gateway.port)
            sent, refused, grown = 1, 0, 0
            for second in range(600):
                for _ in range(2):
                    writer.write(post(chat({"tokens": 3})))
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert b" 200 " in head
                    length = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
                    await reader.readexactly(int(length))
                    sent += 1
                if second % 60 == 0:
                    with pytest.raises(StoreError):
                        await asyncio.to_thread(books.books.pass_over, FACTORY, second * 1_000_000)
                    refused += 1
                if second == 60:
                    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            writer.close()
            assert refused == 10
            assert (r.gateway.spool.waiting, len(r.gateway.spool.opens)) == (0, 0)
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown < 32 * 1024, "KiB"
            assert len(list((tmp_path / "spool").glob("gateway-*.jsonl"))) > 5, "it waits on the disk"
            other.execute("ROLLBACK")
            other.close()
            await books.balanced()
            (row,) = books.store.ledger.usage(["tenant"])
            assert (row.requests, row.output_tokens) == (sent, 3 * (sent - 1) + 2)
            again = Books(books.store.ledger, books.spool, NoEnergy())
            assert await asyncio.to_thread(again.pass_over, FACTORY, 1) == 0
            assert (await books.balanced()).settlements == sent

    run(work)


def test_keys_are_checked_while_neither_store_nor_spool_can_be_written(tmp_path: Path) -> None:
    async def code(r: Rig, secret: str, request: bytes) -> int:
        asked = request.replace(SECRET.encode(), secret.encode())
        answer = await asyncio.wait_for(raw(r, asked), 10)
        return int(answer.split(b" ", 2)[1])

    async def work() -> None:
        async with bench(tmp_path) as (r, books):
            ask = post(chat({"tokens": 1}), headers="connection: close\r\n")
            listing = (
                post(b"")
                .replace(b"POST /v1/chat/completions", b"GET /v1/models")
                .replace(b"content-length: 0", b"connection: close")
            )
            mine, new = r.table.keys[0], "tm-" + "c" * 40
            other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(StoreError):
                await asyncio.to_thread(books.books.pass_over, FACTORY, 1)
            assert [await code(r, secret, ask) for secret in (SECRET, new)] == [200, 401]
            r.publish(keys=(key(new, "key-3"),))  # one is made, one is disabled
            assert [await code(r, secret, ask) for secret in (SECRET, new)] == [401, 200]
            r.gateway.spool.free_bytes = 1 << 62
            r.gateway.spool.check()
            for _ in range(50):
                assert [await code(r, secret, ask) for secret in (SECRET, new)] == [401, 503]
                assert [await code(r, secret, listing) for secret in (SECRET, new)] == [401, 200]
            r.publish(keys=(mine,))
            assert [await code(r, secret, listing) for secret in (SECRET, new)] == [200, 401]
            assert (r.gateway.spool.waiting, len(r.gateway.spool.opens), len(r.engines[0].requests)) == (
                0,
                0,
                2,
            )
            r.gateway.spool.free_bytes = 0
            r.gateway.spool.check()
            assert await code(r, SECRET, ask) == 200
            other.execute("ROLLBACK")
            other.close()
            await books.balanced()

    run(work)


def test_a_clock_that_is_set_back_keeps_nobody_out_for_longer_than_a_minute(tmp_path: Path) -> None:
    """A bucket is full until a time by the clock, which was half an hour away after such a step."""

    async def work() -> None:
        async with rig(tmp_path) as r:
            tenants = tuple(replace(t, quota=Quota(requests_per_minute=2)) for t in r.table.tenants)
            r.publish(tenants=tenants)
            ask = post(chat({"tokens": 1}), headers="connection: close\r\n")
            told = r.gateway.clock
            assert [(await raw(r, ask)).split(b" ", 2)[1] for _ in range(3)] == [b"200", b"200", b"429"]
            r.gateway.clock = lambda: told() - 1_800_000_000
            waits = re.search(rb"retry-after: (\d+)", await raw(r, ask))
            assert waits is not None
            assert int(waits[1]) > 1700, "nothing has looked at the clock yet"
            r.gateway.sweep()
            waits = re.search(rb"retry-after: (\d+)", await raw(r, ask))
            assert waits is not None
            assert int(waits[1]) <= 60
            r.gateway.clock = lambda: told() - 1_800_000_000 + 60_000_000
            assert (await raw(r, ask)).split(b" ", 2)[1] == b"200"

    run(work)


@pytest.mark.parametrize("step_s", [-3600, 86_400 * 3])
def test_a_clock_that_steps_settles_once_and_bills_the_same(tmp_path: Path, step_s: int) -> None:
    async def work() -> None:
        async with bench(tmp_path) as (r, books):
            await raw(r, post(chat({"tokens": 2})))
            reader, writer = await stream(r, {"tokens": 10, "gap_s": 0.02})
            await reader.readuntil(b"t0")
            told = r.gateway.clock
            r.gateway.clock = lambda: told() + step_s * 1_000_000
            while b"[DONE]" not in await reader.readuntil(b"\n\n"):
                pass
            writer.close()
            await raw(r, post(chat({"tokens": 3})))
            lines = await r.settled(3)
            assert [line["output_tokens"] for line in lines] == [2, 10, 3]
            assert all(0 <= line["duration_us"] <= (86_400 * 3 + 60) * 1_000_000 for line in lines)
            await books.balanced()
            assert books.micros() == 3 * PROMPT_TOKENS + 15 * 2
            assert sum(row.requests for row in books.store.ledger.usage(["day"])) == 3

    run(work)
