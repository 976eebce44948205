"""Promotion and rollback under a steady stream of 50 requests a second: no error, no mixed answer, none lost.

The engines are fast scripted ones, since no real model answers 50 requests a second on two cores; the control
core, the gateway, its sockets, its counts and the drain are the real ones.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from flip_rig import flipping, load
from gateway_rig import run

from tokenmill.domain import events as ev
from tokenmill.gateway.edge import clock

OLD, NEW, BAD = "import-old", "import-new", "import-bad"


def test_a_client_streams_through_canary_promotion_and_rollback(tmp_path: Path) -> None:
    async def work() -> None:
        async with flipping(tmp_path) as flip:
            stop = asyncio.Event()
            streaming = asyncio.create_task(load(flip, 50, stop))
            await flip.make("new")
            await flip.until(lambda: flip.serves(NEW))
            await asyncio.sleep(0.3)
            await flip.tell(ev.RollbackRequested(clock(), "chat", by="ada"))
            await flip.until(lambda: flip.serves(OLD))
            await asyncio.sleep(0.3)
            stop.set()
            await streaming
            assert not flip.wrong(), flip.wrong()[:5]
            assert {next(iter(marks)) for marks, _, _ in flip.answers} == {OLD, NEW}

    run(work)


def test_a_broken_candidate_is_sent_back_by_itself_within_a_second_of_the_report(tmp_path: Path) -> None:
    async def work() -> None:
        async with flipping(tmp_path) as flip:
            stop = asyncio.Event()
            flip.broken = True
            streaming = asyncio.create_task(load(flip, 50, stop))
            await flip.make("bad")
            await flip.until(lambda: BAD in flip.state.aliases["chat"].refused)
            assert flip.published_s < 1.0
            assert flip.serves(OLD)
            stop.set()
            await streaming
            assert "by itself" in flip.state.aliases["chat"].reason
            assert {marks for marks, _, status in flip.answers if status == 200} == {frozenset({OLD})}

    run(work)
