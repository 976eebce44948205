"""Copies for a candidate, counts per release, and what an answer calls itself, over real sockets."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway_rig import SECRET, Rig, chat, post, raw, rig, run

from tokenmill.domain.table import Endpoint
from tokenmill.gateway.meter import find_id


def shadowed(found: Rig, share: int = 1000, **endpoint: Any) -> None:
    """The second engine serves a candidate that gets copies only."""
    first, second = found.engines
    alias = replace(
        found.table.aliases[0],
        targets=(("rel-1", 1000),),
        endpoints=(
            Endpoint("r-0", "rel-1", f"127.0.0.1:{first.port}", "DE", 64),
            Endpoint("r-1", "rel-2", f"127.0.0.1:{second.port}", endpoint.pop("law", "DE"), 64),
        ),
        shadow=("rel-2", share),
    )
    found.publish(aliases=(alias,))


def kept(found: Rig) -> list[dict[str, Any]]:
    path = found.gateway.shadows.file
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def test_a_copy_is_kept_settled_to_the_operator_and_not_returned(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path, engines=2) as found:
            shadowed(found)
            answer = await raw(found, post(chat({"tokens": 4}, stream=True)))
            assert answer.count(b"data: [DONE]") == 1
            own, copy = sorted(await found.settled(2), key=lambda line: len(line["request"]))
            assert (own["tenant"], own["release"]) == ("acme", "rel-1")
            assert (copy["request"], copy["tenant"], copy["release"]) == (
                f"{own['request']}-shadow",
                "",
                "rel-2",
            )
            assert copy["output_tokens"] == 4
            (line,) = kept(found)
            assert (line["request"], line["release"], line["tenant"]) == (own["request"], "rel-2", "acme")
            assert "t3 " in line["answer"]
            assert found.gateway.shadows.file.stat().st_mode & 0o777 == 0o600
            counts = found.gateway.outcomes.state()["m"]
            assert {name: count["requests"] for name, count in counts.items()} == {"rel-1": 1, "rel-2": 1}

    run(work)


def test_a_dying_shadow_harms_nobody_and_is_its_own_failure(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path, engines=2) as found:
            shadowed(found)
            await found.engines[1].stop()
            assert b"200 OK" in await raw(found, post(chat({"tokens": 2})))
            lines = await found.settled(2)
            assert sorted(line["outcome"] for line in lines) == ["engine_failed", "ok"]
            counts = found.gateway.outcomes.state()["m"]
            assert (counts["rel-1"]["errors"], counts["rel-2"]["errors"]) == (0, 1)

    run(work)


def test_copies_are_few_and_stay_where_the_tenants_data_may_be(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path, engines=2) as found:
            shadowed(found, law="US")
            tenants = tuple(replace(t, jurisdictions=("DE",)) for t in found.table.tenants)
            found.publish(tenants=tenants)
            await raw(found, post(chat({"tokens": 2})))
            assert len(await found.settled(1)) == 1
            assert found.gateway.shadows.skipped == 1
            shadowed(found)
            slow = [raw(found, post(chat({"tokens": 2, "first_s": 0.3}))) for _ in range(20)]
            await asyncio.gather(*slow)
            assert len(found.engines[1].requests) == 8
            assert found.gateway.shadows.skipped == 13
            await found.settled(29)

    run(work)


def test_an_attempt_that_another_engine_took_over_counts_against_the_one_that_lost_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path, engines=2) as found:
            shadowed(found, 0)
            await found.engines[1].stop()
            alias = replace(found.table.aliases[0], shadow=None, targets=(("rel-1", 1), ("rel-2", 999)))
            found.publish(aliases=(alias,))
            answers = [await raw(found, post(chat({"tokens": 2}))) for _ in range(2)]
            assert all(b"200 OK" in answer for answer in answers)
            counts = found.gateway.outcomes.state()["m"]
            assert counts["rel-2"] == {"requests": 1, "errors": 1, "latency": []}
            assert counts["rel-1"]["requests"] == 2

    run(work)


def test_mistakes_of_clients_are_no_evidence(tmp_path: Path) -> None:
    async def work() -> None:
        async with rig(tmp_path) as found:
            await raw(found, post(chat({"status": 400})))
            await raw(found, post(chat({"status": 500})))
            assert found.gateway.outcomes.state()["m"]["rel-1"]["requests"] == 1
            assert SECRET.encode() not in found.gateway.options.spool.read_bytes()

    run(work)


def test_the_id_of_an_answer_is_found_and_that_of_a_tool_call_is_not() -> None:
    call = b'{"choices":[{"message":{"tool_calls":[{"id":"call_1"}]}}],'
    assert find_id(call + b'"created":1,"id":"chatcmpl-Ab1"}') == "chatcmpl-Ab1"
    assert find_id(call + b'"x":1}') == ""
    assert find_id(b'data: {"id": "cmpl-9-x", "choices": []}\n\n') == "cmpl-9-x"
    assert find_id(rb'{"content":"\"id\":\"chatcmpl-fake\""}') == ""
