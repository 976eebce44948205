"""What a streaming client sees of promotions and rollbacks, and how fast a bad candidate is sent back.

Run: ``python bench/flip.py [--rate 50] [--flips 5]``. Control core, gateway and sockets are real; the
engines are the scripted ones of the tests (no real model answers 50 requests a second on a small machine).
Prints answers, errors, mixed answers, and the time from a report to the published table.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "gateway"))

from flip_rig import flipping, load

from tokenmill.domain import events as ev
from tokenmill.gateway.edge import clock


async def measure(folder: Path, rate: float, flips: int) -> None:
    async with flipping(folder) as flip:
        stop = asyncio.Event()
        began = time.monotonic()
        streaming = asyncio.create_task(load(flip, rate, stop))
        for number in range(flips):
            await flip.make(f"new{number}")
            await flip.until(lambda n=number: flip.serves(f"import-new{n}"))
            before = flip.state.aliases["chat"].history[-2]
            await flip.tell(ev.RollbackRequested(clock(), "chat", by="bench"))
            await flip.until(lambda b=before: flip.serves(b))
            await flip.tell(ev.AliasSteered(clock(), "chat", "resume", by="bench"))
        good = len(flip.answers)
        flip.broken = True
        await flip.make("bad")
        await flip.until(lambda: "import-bad" in flip.state.aliases["chat"].refused)
        back_ms = flip.published_s * 1000
        stop.set()
        await streaming
        seconds = time.monotonic() - began
        steady = flip.answers[:good]
        errors = sum(status != 200 or not done for _, done, status in steady)
        mixed = sum(len(marks) > 1 for marks, _, _ in steady)
        print(f"{len(steady)} streamed answers in {seconds:.1f} s, {rate:g}/s asked")
        print(f"{flips} promotions in steps, {flips} rollbacks: {errors} errors, {mixed} mixed answers")
        print(f"a candidate that answers 500 goes back, report to table in {back_ms:.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--flips", type=int, default=5, help="promotions, each followed by a rollback")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(measure(Path(folder), options.rate, options.flips))


if __name__ == "__main__":
    main()
