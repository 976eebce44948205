"""What a whole request costs inside the gateway, without sockets: ``python bench/request.py``.

The real gateway with all that it does turned on (keys, quotas, affinity, settlements on disk, metrics), its
client and its engine being objects that take bytes. Numbers of replicas take turns. The least of many short
spells is shown, and the median, which on a shared machine says more of the neighbours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import uvloop
from wire import ours
from wire.ours import SECRET

from tokenmill.gateway.client import ClientConnection
from tokenmill.gateway.options import parse
from tokenmill.gateway.server import Server
from tokenmill.gateway.upstream import Address, Upstream

SPELL = 10
BODY = json.dumps(
    {
        "model": "m",
        "messages": [{"role": "user", "content": "Count to ten, and say what comes after it."}],
        "max_tokens": 16,
    }
).encode()
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "one two three four five six seven"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 24, "completion_tokens": 16, "total_tokens": 40},
    }
).encode()
ASKED = (
    f"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {SECRET}\r\n"
    f"content-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
).encode() + BODY
TOLD = (
    f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(ANSWER)}\r\n\r\n"
).encode() + ANSWER


class Taker(asyncio.Transport):
    """Takes what is written; keeps the last."""

    def __init__(self) -> None:
        super().__init__()
        self.last = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.last = bytes(data)

    def is_closing(self) -> bool:
        return False

    def resume_reading(self) -> None:
        """It never stopped."""

    def close(self) -> None:
        """Nothing is open."""

    abort = close


class Stand:
    """One gateway with so many replicas, its client and the one engine connection behind it."""

    def __init__(self, folder: Path, replicas: int) -> None:
        ours.REPLICAS = replicas
        folder.mkdir()
        argv = ours.command(folder, 1, 0)
        self.server = Server(parse(argv[argv.index("tokenmill.gateway") + 1 :]))
        self.spent_us: list[float] = []
        self.taker = Taker()
        self.client: ClientConnection
        self.upstream: Upstream

    async def start(self) -> None:
        gateway = await self.server.start()

        async def connect(address: Address) -> Upstream:
            self.upstream = Upstream(gateway.pool, address)
            self.upstream.connection_made(Taker())
            return self.upstream

        gateway.pool.connect = connect  # type: ignore[method-assign]
        self.client = gateway.client()
        self.client.connection_made(self.taker)
        self.client.data_received(ASKED)
        await asyncio.sleep(0.1)
        self.upstream.data_received(TOLD)

    def spell(self) -> None:
        begun = time.perf_counter_ns()
        for _ in range(SPELL):
            self.client.data_received(ASKED)
            self.upstream.data_received(TOLD)
        self.spent_us.append((time.perf_counter_ns() - begun) / 1e3 / SPELL)
        if not self.taker.last.endswith(ANSWER):
            raise SystemExit(f"no answer: {self.taker.last[:300]!r}")


async def measure(folder: Path, counts: list[int], spells: int) -> dict[int, list[float]]:
    stands = {count: Stand(folder / str(count), count) for count in counts}
    for stand in stands.values():
        await stand.start()
    for _ in range(spells):
        for stand in stands.values():
            stand.spell()
            await asyncio.sleep(0.001)
    for stand in stands.values():
        await stand.server.stop()
    return {count: stand.spent_us for count, stand in stands.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--replicas", default="8,100,2000", help="numbers of replicas, with commas")
    parser.add_argument("--spells", type=int, default=300, help=f"of {SPELL} requests each")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    counts = [int(part) for part in args.replicas.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        found = uvloop.run(measure(Path(folder), counts, args.spells))
    rows = [
        {"replicas": n, "least_us": min(us), "median_us": statistics.median(us)} for n, us in found.items()
    ]
    if args.json:
        print(json.dumps({"load": os.getloadavg()[0], "rows": rows}))
        return
    print(f"load {os.getloadavg()[0]:.1f}\n\n| replicas | us a request, least | median |\n|---|---|---|")
    for row in rows:
        print(f"| {row['replicas']:,} | {row['least_us']:.0f} | {row['median_us']:.0f} |")


if __name__ == "__main__":
    main()
