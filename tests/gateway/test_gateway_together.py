"""Several gateway processes on one port: one quota, one queue per replica, one page of metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway_rig import Engine, Rig, chat, post, raw, rig, run, run_beside, table_of, write_table

from tokenmill.control.edge import EndpointMemory
from tokenmill.domain.factory import Price, Quota
from tokenmill.domain.table import Table, TenantEntry
from tokenmill.gateway.gathering import merged
from tokenmill.gateway.options import Options
from tokenmill.gateway.server import Server
from tokenmill.gateway.shared import NAMES_MOST, SharedEndpoints, SharedFile, SharedMeters
from tokenmill.policy.admit import Meter


@contextlib.asynccontextmanager
async def pair(folder: Path, table: Any) -> AsyncIterator[tuple[Rig, Rig]]:
    """Two gateways of one factory, as two processes would be, in this loop; each on a port of its own."""
    engine = Engine()
    await engine.start()
    write_table(folder, table(table_of([engine])))
    servers, rigs = [], []
    for index in (0, 1):
        options = Options(
            table=folder / "table.json",
            spool=folder / "spool" / f"gateway{index or ''}-0.jsonl",
            control=folder / "control.sock",
            state=folder / f"gateway-{index}.json",
            port=0,
            index=index,
            processes=2,
            drain_s=2.0,
            free_bytes=0,
        )
        servers.append(Server(options))
        gateway = await servers[-1].start()
        rigs.append(Rig(folder, [engine], servers[-1], gateway, table(table_of([engine]))))
    try:
        yield rigs[0], rigs[1]
    finally:
        for server in servers:
            await server.stop()
        await engine.stop()


def bound(quota: Quota, price: Price | None = None) -> Any:
    """A change of the table: acme has this quota, and ``m`` this price."""

    def changed(table: Table) -> Table:
        acme = TenantEntry("acme", quota, (), (("p", Quota()),))
        aliases = tuple(replace(a, prices=(price,) if price else ()) for a in table.aliases)
        return replace(table, tenants=(acme, *table.tenants[1:]), aliases=aliases)

    return changed


def statuses(answers: list[bytes]) -> list[int]:
    return sorted(int(answer.split()[1]) for answer in answers)


def test_what_is_open_in_all_processes_is_held_to_one_limit(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path, bound(Quota(concurrent_requests=5))) as rigs:
            body = post(chat({"first_s": 1.0}))
            asked = [raw(rigs[n % 2], body) for n in range(14)]
            assert statuses(await asyncio.gather(*asked)) == [200] * 5 + [429] * 9
            assert all(r.gateway.memory.meters.get("acme").open == 0 for r in rigs)  # type: ignore[union-attr]
            # One connection that only ever meets one process may use the whole quota.
            asked = [raw(rigs[0], body) for _ in range(6)]
            assert statuses(await asyncio.gather(*asked)) == [200] * 5 + [429]

    run(work)


def test_requests_tokens_and_money_are_bounded_over_all_processes(tmp_path: Path) -> None:
    async def spent(quota: Quota, folder: Path, price: Price | None = None) -> list[int]:
        folder.mkdir()
        async with pair(folder, bound(quota, price)) as rigs:
            answers = []
            for number in range(12):
                answers.append(await raw(rigs[number % 2], post(chat(max_tokens=30))))
            return statuses(answers)

    async def work() -> None:
        assert (await spent(Quota(requests_per_minute=7), tmp_path / "a"))[6:8] == [200, 429]
        # Each asks for 30 at most and some input, and is corrected to 7 + 3 when it ends.
        assert 429 in await spent(Quota(tokens_per_day=100), tmp_path / "b")
        price = Price("m", output_micros_per_mtok=1_000_000)  # 3 micros for each answer, 30 reserved
        assert (await spent(Quota(micros_per_day=45), tmp_path / "c", price))[5:7] == [200, 429]

    run(work)


def test_a_replica_is_not_overfilled_by_several_processes(tmp_path: Path) -> None:
    def one_slot(table: Table) -> Table:
        aliases = tuple(
            replace(a, endpoints=tuple(replace(e, slots=1) for e in a.endpoints)) for a in table.aliases
        )
        return replace(table, aliases=aliases)

    async def work() -> None:
        async with pair(tmp_path, one_slot) as rigs:
            body = post(chat({"first_s": 1.0}))
            asked = [raw(rigs[n % 2], body) for n in range(12)]
            assert statuses(await asyncio.gather(*asked)) == [200] * 8 + [503] * 4

    run(work)


def test_metrics_name_every_process_and_a_silent_one_is_left_out(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path, lambda table: table) as rigs:
            for number in (0, 1, 1):
                await raw(rigs[number], post(chat()))
            get = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"
            text = (await raw(rigs[0], get)).decode()
            assert 'tokenmill_requests_total{process="0",model="m",outcome="ok"} 1' in text
            assert 'tokenmill_requests_total{process="1",model="m",outcome="ok"} 2' in text
            assert text.count("# TYPE tokenmill_requests_total counter") == 1
            await rigs[1].server.stop()
            alone = (await raw(rigs[0], get)).decode()
            assert 'process="0"' in alone
            assert 'process="1"' not in alone

    run(work)


def test_merged_families_stay_whole() -> None:
    one = b'# HELP a A.\n# TYPE a counter\na 1\n# HELP b B.\n# TYPE b gauge\nb{x="y z"} 2\n'
    assert merged({1: one, 0: one, 2: b""}).decode() == (
        '# HELP a A.\n# TYPE a counter\na{process="0"} 1\na{process="1"} 1\n'
        '# HELP b B.\n# TYPE b gauge\nb{process="0",x="y z"} 2\nb{process="1",x="y z"} 2\n'
    )


def test_an_idempotency_key_has_one_owner(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path, lambda table: table) as rigs:
            for number in range(6):
                body = post(chat(), headers=f"idempotency-key: key-{number}\r\n")
                first = await raw(rigs[number % 2], body)
                again = await raw(rigs[(number + 1) % 2], body)
                assert statuses([first, again]) == [200, 200]
                assert b"idempotent-replayed: true" in again
                assert b"idempotent-replayed" not in first
            assert len(rigs[0].engines[0].requests) == 6
            assert len(rigs[0].lines()) + len(lines(tmp_path, "gateway1-0.jsonl")) == 6
            await rigs[1].server.stop()
            answers = [
                await raw(rigs[0], post(chat(), headers=f"idempotency-key: key-{n}\r\n")) for n in range(6)
            ]
            assert {200, 503} == set(statuses(answers)), "what the other one kept is gone, and said to be"

    run(work)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "spool" / name).read_bytes().splitlines()]
    return [line for line in found if line["t"] == "settle"]


def start_one(folder: Path, index: int, port: int) -> subprocess.Popen[bytes]:
    state = folder / f"gateway-{index}.json"
    argv = [
        *(sys.executable, "-m", "tokenmill.gateway"),
        *("--table", str(folder / "table.json"), "--control", str(folder / "control.sock")),
        *("--spool", str(folder / "spool" / f"gateway{index or ''}-0.jsonl"), "--state", str(state)),
        *("--port", str(port), "--index", str(index), "--processes", "2", "--drain-seconds", "5"),
    ]
    with open(folder / f"log-{index}", "ab") as log:
        return subprocess.Popen(argv, stderr=log)


async def up(folder: Path, index: int, process: subprocess.Popen[bytes]) -> int:
    """The port, once this process listens."""
    for _ in range(600):
        with contextlib.suppress(OSError, json.JSONDecodeError):
            found = json.loads((folder / f"gateway-{index}.json").read_text())
            if found["pid"] == process.pid:
                return int(found["port"])
        assert process.poll() is None, (folder / f"log-{index}").read_text()
        await asyncio.sleep(0.05)
    raise AssertionError("it does not listen")


async def one_stream(port: int) -> bool:
    """Ask for a stream; whether it came to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(post(chat({"tokens": 30, "gap_s": 0.02}, stream=True, max_tokens=50)))
        return b"[DONE]" in await reader.readuntil(b"0\r\n\r\n")
    except (ConnectionError, asyncio.IncompleteReadError):
        return False
    finally:
        writer.close()


def test_one_of_two_is_killed_under_load_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    """Also: what the dead one's requests had reserved is given back, and what was used stays used."""
    quota = Quota(tokens_per_day=1_000_000, concurrent_requests=100)

    async def work() -> None:
        engine = Engine()
        await engine.start()
        write_table(tmp_path, bound(quota)(table_of([engine])))
        first = start_one(tmp_path, 0, 0)
        port = await up(tmp_path, 0, first)
        second = start_one(tmp_path, 1, port)
        await up(tmp_path, 1, second)
        clients = [asyncio.create_task(one_stream(port)) for _ in range(40)]
        while len(engine.produced) < 40:
            await asyncio.sleep(0.01)
        second.kill()
        whole = await asyncio.gather(*clients)
        assert 0 < sum(whole) < 40, "both had some"
        await asyncio.to_thread(second.wait)
        second = start_one(tmp_path, 1, port)
        await up(tmp_path, 1, second)
        assert all(await asyncio.gather(*(one_stream(port) for _ in range(10))))
        for process in (first, second):
            process.terminate()
        assert [await asyncio.to_thread(process.wait, 20) for process in (first, second)] == [0, 0]
        await engine.stop()
        settled = [*lines(tmp_path, "gateway-0.jsonl"), *lines(tmp_path, "gateway1-0.jsonl")]
        assert len({line["request"] for line in settled}) == len(settled) == 50
        outcomes = Counter(line["outcome"] for line in settled)
        assert outcomes == {"ok": 10 + sum(whole), "interrupted": 40 - sum(whole)}
        meter = SharedMeters(SharedFile(tmp_path / "meters", 0, 2), "meter ").get("acme")
        assert meter.open == 0
        assert meter.day_tokens == sum(line["input_tokens"] + line["output_tokens"] for line in settled)

    run_beside(work)


def test_an_abandoned_spool_is_settled_by_the_first_process(tmp_path: Path) -> None:
    """A factory that had three processes and has one now."""
    entry = {"t": "open", "request": "req-1", "at_us": 1, "tenant": "acme", "project": "p", "key": "k"}
    more = {"alias": "m", "endpoint": "chat.completions", "release": "r", "replica": "r-0"}
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "gateway2-0.jsonl").write_text(json.dumps({**entry, **more}) + "\n")

    async def work() -> None:
        async with rig(tmp_path) as r:
            assert [(x["request"], x["outcome"]) for x in r.lines()] == [("req-1", "interrupted")]

    run(work)


def test_the_shared_file_keeps_what_a_dead_process_used_and_drops_what_it_had_open(tmp_path: Path) -> None:
    one, two = (SharedFile(tmp_path / "meters", index, 2) for index in (0, 1))
    mine, theirs = SharedMeters(one, ""), SharedMeters(two, "")
    with one:
        mine.set("t", Meter(3, 5, 6, 7, 8, 9, 10, 11))
    with two:
        theirs.set("t", replace(theirs.get("t"), open=5))
    assert mine.get("t") == theirs.get("t") == Meter(5, 5, 6, 7, 8, 9, 10, 11)
    one.close()  # it dies, with three open
    again = SharedFile(tmp_path / "meters", 0, 2)
    again.clear_open((0,))
    assert SharedMeters(again, "").get("t") == Meter(2, 5, 6, 7, 8, 9, 10, 11)
    endpoints = SharedEndpoints(two, "e")
    endpoints.set("t", EndpointMemory(4, 1, 99))
    assert SharedEndpoints(again, "e").get("t") == EndpointMemory(4, 1, 99)
    assert theirs.get("other") is None
    assert two.find("other") is None, "to look for a name makes no room for it"
    mine = SharedMeters(again, "")
    with again:
        mine.set("other", Meter(1))
    assert theirs.get("other") == Meter(1), "what was not there is seen when it is"


def test_a_full_file_keeps_the_names_that_are_in_use(tmp_path: Path) -> None:
    one, two = (SharedFile(tmp_path / "meters", index, 2) for index in (0, 1))
    mine, theirs = SharedMeters(one, ""), SharedMeters(two, "")
    for number in range(NAMES_MOST * 3 // 4):
        one.slot(f"gone-{number}")
    mine.set("stays", Meter(2, day=4))
    assert theirs.get("stays").day == 4
    two.compact(["stays"])
    assert two.words[2] == 1
    assert mine.get("stays") == theirs.get("stays") == Meter(2, day=4)
    two.compact([])
    assert two.words[2] == 1, "there is room, so nothing is dropped"
