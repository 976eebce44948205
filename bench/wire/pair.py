"""Two gateway processes on one port beside one alone.

On a machine whose cores the generator and the engine need too, a rate by the clock says how the cores were
shared out, not what two cores carry. So the speed-up is taken from CPU time: what a chunk costs with one
process over what it costs with two, divided by the share of the busier process, which would be full first.
"""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path
from typing import Any

from wire.ours import SECRET, command
from wire.peers import CHAT
from wire.programs import CORES, Load, answers, cpu_ns, drive, free_port, process

LOADS = {"chunk": Load(512, 256, True, 1.0, 3.0), "request": Load(256, 16, False, 0.5, 3.0)}


def measure(folder: Path, engine: int, rounds: int) -> dict[str, Any]:
    """``folder`` holds the compiled programs; ``engine`` is the fake engine's port."""
    found: dict[str, dict[str, list[float]]] = {}
    with contextlib.ExitStack() as stack:
        sides: dict[str, tuple[int, list[int]]] = {}
        for side, count in (("one", 1), ("two", 2)):
            place, port = folder / f"pair-{side}", free_port()
            place.mkdir()
            pids = []
            for index in range(count):
                argv = command(place, engine, port, index, count)
                child = stack.enter_context(
                    process(argv, {CORES[index % len(CORES)]}, place / f"{index}.log")
                )
                pids.append(child.pid)
                if not answers(port, alive=child):
                    raise SystemExit(f"the gateway does not answer: {(place / f'{index}.log').read_text()}")
            sides[side] = (port, pids)
        for turn in range(rounds):
            for what, load in LOADS.items():
                for side in ("one", "two") if turn % 2 == 0 else ("two", "one"):
                    port, pids = sides[side]
                    before = [cpu_ns(pid) for pid in pids]
                    row = drive(folder, port, SECRET, load, pids, CHAT)
                    spent = [cpu_ns(pid) - b for pid, b in zip(pids, before, strict=True)]
                    figures = found.setdefault(f"{what} {side}", {"us": [], "rate": [], "share": []})
                    count = row["chunks"] if load.stream else row["requests"]
                    figures["us"].append(row["cpu_us"] / count)
                    figures["rate"].append(count / row["seconds"])
                    figures["share"].append(max(spent) / sum(spent))
    return {what: _compared(found[f"{what} one"], found[f"{what} two"]) for what in LOADS}


def _compared(one: dict[str, list[float]], two: dict[str, list[float]]) -> dict[str, float]:
    middle = statistics.median
    return {
        "us, one process": middle(one["us"]),
        "us, two": middle(two["us"]),
        "a second by the clock, one": middle(one["rate"]),
        "a second by the clock, two": middle(two["rate"]),
        "share of the busier": middle(two["share"]),
        "speed-up by CPU time": middle(one["us"]) / middle(two["us"]) / middle(two["share"]),
    }
