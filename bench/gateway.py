"""What the gateway costs, beside plain proxies and other gateways, all in one interleaved run.

``python bench/gateway.py --peers DIR`` compiles a load generator and a fake engine from ``bench/wire``,
starts the gateway and every peer that is there, pins what is measured to one core and generator and engine to
another, and takes turns: every case on every program, ``--rounds`` times. Medians are shown. Then two gateway
processes on one port beside one (``--skip-pair``), and a real engine through the gateway and alone
(``--skip-engine`` without the model extra). ``bench/wire/peers.py`` says
how to fetch the peers; none is needed. ``--json`` for machines.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wire import pair, real
from wire.ours import SECRET, command
from wire.peers import CHAT, PEERS
from wire.programs import DRIVERS, TESTED, Load, answers, compile_c, drive, free_port, process

GAP_US, GROUPS = 20_000, 8
US = "tokenmill"
ALONE = "engine alone"


@dataclass(slots=True)
class Stand:
    """One program under test and what was measured of it, by case."""

    name: str
    port: int
    pids: list[int] = field(default_factory=list)
    found: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def median(self, case: str, figure: str) -> float | None:
        values = [row[figure] for row in self.found.get(case, []) if row.get(figure) is not None]
        return statistics.median(values) if values else None


def cases(seconds: float) -> dict[str, Load]:
    """The five loads. Even numbers of tokens stream as fast as they go, odd ones are paced by the engine."""
    return {
        "full": Load(64, 256, True, 0.5, seconds),
        "paced 64": Load(64, 257, True, 0.7, max(seconds, 3.0)),
        "paced 512": Load(512, 257, True, 1.5, max(seconds, 3.0)),
        "whole": Load(64, 16, False, 0.5, seconds),
        "first": Load(1, 4, True, 0.3, seconds, think_us=500),
    }


def derive(row: dict[str, Any]) -> dict[str, Any]:
    """Rates and costs of one round."""
    chunks, requests, seconds = row["chunks"], row["requests"], row["seconds"]
    return {
        **row,
        "chunks_s": chunks / seconds,
        "cpu_us_per_chunk": row["cpu_us"] / chunks if chunks else None,
        "requests_s": requests / seconds,
        "cpu_us_per_request": row["cpu_us"] / requests if requests else None,
        "core_share": row["cpu_us"] / 1e6 / seconds,
    }


def start(
    stack: contextlib.ExitStack, folder: Path, args: argparse.Namespace
) -> tuple[list[Stand], dict[str, str]]:
    """Start the engine, the gateway and the peers; returns who stands and why others do not."""
    engine = free_port()
    stack.enter_context(process((str(folder / "engine"), str(engine), str(GAP_US), str(GROUPS)), DRIVERS))
    if not answers(engine, limit_s=10):
        raise SystemExit("the fake engine does not answer")
    stands, skipped = [Stand(ALONE, engine)], {}
    wanted = {n for n in args.only.split(",") if n}
    commands = {US: (command(folder, engine, port := free_port()), port, "/health", 60.0)}
    for peer in PEERS:
        program = peer.find(args.peers)
        if wanted and peer.name not in wanted:
            continue
        if program is None:
            skipped[peer.name] = "not installed"
            continue
        place = folder / peer.name
        place.mkdir()
        port = free_port()
        commands[peer.name] = (peer.command(program, place, port, engine), port, peer.health, peer.start_s)
    for name, (argv, port, health, limit_s) in commands.items():
        log = folder / f"{name}.log"
        try:
            child = stack.enter_context(process(argv, TESTED, log))
        except OSError as error:
            skipped[name] = str(error)
            continue
        if answers(port, health if name not in ("nginx", "haproxy") else "/", limit_s, child):
            stands.append(Stand(name, port, [child.pid]))
        else:
            skipped[name] = f"did not start: {log.read_text()[-200:]!r}"
    if all(stand.name != US for stand in stands):
        raise SystemExit(f"the gateway {skipped[US]}")
    return stands, skipped


def measure(folder: Path, stands: Sequence[Stand], args: argparse.Namespace) -> dict[str, str]:
    """Take turns. Returns who failed and how."""
    failed: dict[str, str] = {}
    wanted = {n for n in args.cases.split(",") if n}
    for turn in range(args.rounds):
        for case, load in cases(args.seconds).items():
            if wanted and case not in wanted:
                continue
            for stand in stands if turn % 2 == 0 else list(stands)[::-1]:
                try:
                    row = drive(folder, stand.port, SECRET, load, stand.pids, CHAT)
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    failed[f"{stand.name}, {case}"] = str(error)[:200]
                    continue
                stand.found.setdefault(case, []).append(derive(row))
                if row["errors"]:
                    failed[f"{stand.name}, {case}"] = f"{row['errors']} errors: {row['said']!r}"
                print(f"  {turn + 1}/{args.rounds} {case:10} {stand.name:14}", end="\r", file=sys.stderr)
    print(" " * 60, end="\r", file=sys.stderr)
    return failed


COLUMNS = (
    ("chunks/s", "full", "chunks_s", "{:,.0f}"),
    ("us/chunk, full", "full", "cpu_us_per_chunk", "{:.1f}"),
    ("us/chunk, 64", "paced 64", "cpu_us_per_chunk", "{:.1f}"),
    ("us/chunk, 512", "paced 512", "cpu_us_per_chunk", "{:.1f}"),
    ("MB, 512", "paced 512", "memory_mb", "{:.0f}"),
    ("requests/s", "whole", "requests_s", "{:,.0f}"),
    ("us/request", "whole", "cpu_us_per_request", "{:.0f}"),
)


def added(stand: Stand, alone: Stand, figure: str) -> float | None:
    """Median over the rounds of what it adds to the engine alone in the same round, in milliseconds."""
    pairs = zip(stand.found.get("first", []), alone.found.get("first", []), strict=False)
    values = [(row[figure] - bare[figure]) / 1e3 for row, bare in pairs if row["requests"]]
    return statistics.median(values) if values else None


def rows(stands: Sequence[Stand]) -> dict[str, dict[str, float | None]]:
    """The table by program."""
    alone, shown = stands[0], {}
    for stand in stands:
        row: dict[str, float | None] = {name: stand.median(case, figure) for name, case, figure, _ in COLUMNS}
        row["added TTFT p50, ms"] = added(stand, alone, "first_p50_us")
        row["added TTFT p99, ms"] = added(stand, alone, "first_p99_us")
        shown[stand.name] = row
    return shown


BARS: tuple[tuple[str, float, float | None], ...] = (
    ("us/chunk, 512", 5.0, 2.4),
    ("us/chunk, full", 7.5, None),
    ("us/request", 50.0, 15.6),
    ("added TTFT p50, ms", 0.1, 0.03),
    ("added TTFT p99, ms", 0.4, None),
    ("MB, 512", 100.0, None),
)
"""What is aimed at, and what nginx took on the machine on which that was set."""


def verdict(found: float, bar: float) -> str:
    return "met" if found <= bar else "MISSED"


def show(report: dict[str, Any]) -> None:
    """The report as Markdown."""
    formats = {name: form for name, _, _, form in COLUMNS}
    names = list(next(iter(report["programs"].values()), {}))
    print(
        f"{report['date']}, {report['machine']}, "
        f"load {report['load'][0]:.1f} at the start, {report['load'][1]:.1f} at the end\n"
    )
    print("| | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for program, row in report["programs"].items():
        cells = ["-" if row[n] is None else formats.get(n, "{:.3f}").format(row[n]) for n in names]
        print(f"| {program} | " + " | ".join(cells) + " |")
    print()
    for name, reason in {**report["skipped"], **report["failed"]}.items():
        print(f"not measured or not clean: {name}: {reason}")
    ours, nginx = report["programs"].get(US, {}), report["programs"].get("nginx", {})
    for name, bar, then in BARS:
        if ours.get(name) is not None:
            print(f"{name}: {ours[name]:.3g}, at most {bar:g}: {verdict(ours[name], bar)}", end="")
            if nginx.get(name):
                times = ours[name] / nginx[name]
                print(f"; {times:.1f} times nginx", end="")
                if then is not None:
                    print(f", at most {bar / then:.1f}: {verdict(times, bar / then)}", end="")
            print()
    for what, figures in report.get("two processes", {}).items():
        for name, value in figures.items():
            print(f"two processes, a {what}, {name}: {value:,.2f}")
    for name, value in report.get("real engine", {}).items():
        print(
            f"real engine, {name}: {value:.3f}"
            if isinstance(value, float)
            else f"real engine, {name}: {value}"
        )


def machine() -> str:
    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model
        )
    kernel = platform.release().split("-")[0]
    return f"{model}, {os.cpu_count()} cores, Linux {kernel}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each case on each program")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one turn")
    parser.add_argument("--peers", type=Path, help="folder with a virtual environment for each peer")
    parser.add_argument("--only", default="", help="peers by name, e.g. nginx,smg; 'none' for no peer")
    parser.add_argument("--cases", default="", help="e.g. 'full,paced 512'")
    parser.add_argument("--skip-engine", action="store_true", help="no real engine")
    parser.add_argument("--skip-pair", action="store_true", help="no second gateway process")
    parser.add_argument("--skip-wire", action="store_true", help="the real engine only")
    parser.add_argument("--engine-rounds", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=48, help="of an answer of the real engine")
    parser.add_argument("--weights", default="", help="a GGUF file; the small model of the extra by default")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing stays behind
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "load": [os.getloadavg()[0]],
        "programs": {},
        "skipped": {},
        "failed": {},
    }
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        if not args.skip_wire:
            compile_c(folder, "engine", "load")
            stands, report["skipped"] = start(stack, folder, args)
            report["failed"] = measure(folder, stands, args)
            report["programs"] = rows(stands)
            if not args.skip_pair:
                report["two processes"] = pair.measure(folder, stands[0].port, args.rounds)
            stack.close()
        if not args.skip_engine:
            place = folder / "real"
            place.mkdir()
            report["real engine"] = real.measure(place, args.engine_rounds, args.tokens, args.weights)
    report["load"].append(os.getloadavg()[0])
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)


if __name__ == "__main__":
    main()
