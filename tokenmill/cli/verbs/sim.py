"""``tokenmill sim``: the control core in seeded worlds with faults. Needs no factory and changes nothing."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from tokenmill.cli.options import AsJson
from tokenmill.cli.output import examples, print_json, stdout
from tokenmill.domain.codec import to_plain
from tokenmill.domain.errors import UsageError
from tokenmill.twin.sim.batch import EVENTS, Batch, Lived, live, summed

app = typer.Typer(add_completion=False)

SEEDS_MOST = 10_000_000


@app.command(
    epilog=examples(
        "tokenmill sim --seed 7",
        "tokenmill sim --seeds 0..300",
        "tokenmill sim --seeds 0..100000 --workers 8 --json",
        "tokenmill sim --seed 7 --thorough",
    )
)
def sim(
    seed: Annotated[int | None, typer.Option(help="Live through this one world.", min=0)] = None,
    seeds: Annotated[str, typer.Option(help="First and last seed (not included), as 0..300.")] = "0..20",
    events: Annotated[
        int, typer.Option(help="Things that happen in each world.", min=1, max=100_000)
    ] = EVENTS,
    workers: Annotated[int, typer.Option(help="Processes.", min=1, max=256)] = 1,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Derive all again after every event, replay after every crash.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Try to break the control core: worlds with faults, invariants checked after every event.

    Exits with 1 when an invariant did not hold; the seed that is printed shows it again.
    """
    chosen = range(seed, seed + 1) if seed is not None else seeds_of(seeds)
    began = time.perf_counter()
    lived: list[Lived] = []
    for one in _each(chosen, partial(live, events=events, thorough=thorough), workers):
        lived.append(one)
        if sys.stderr.isatty() and len(lived) % 10 == 0:
            sys.stderr.write(f"\r{len(lived)} of {len(chosen)} worlds, {_rate(lived, began)}")
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    found = summed(lived)
    if as_json:
        print_json({**to_plain(found), "seconds": round(time.perf_counter() - began, 3)})
    else:
        _show(stdout(), found, _rate(lived, began))
    if found.failures:
        raise typer.Exit(1)


def _show(console: Console, found: Batch, rate: str) -> None:
    console.print(f"{found.worlds} worlds, {found.handled} events, {found.events} of them journaled, {rate}")
    for title, missing in (
        ("kinds of event", found.events_missing),
        ("faults", found.faults_missing),
        ("refusals", found.refusals_missing),
    ):
        if missing:
            names = escape("; ".join(missing[:5]))
            console.print(f"[dim]{len(missing)} {title} never occurred: {names}[/dim]")
    for one in found.failures:
        console.print(f"[red]seed {one.seed}[/red] after {one.events} events: {escape(one.error)}")
    if not found.failures:
        console.print("[green]Every invariant held.[/green]")


def seeds_of(text: str) -> range:
    """``A..B`` as a range without its end."""
    match = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", text)
    if match is None or not int(match[1]) < int(match[2]) <= int(match[1]) + SEEDS_MOST:
        raise UsageError(
            f"{text!r} is no range of seeds",
            expected="FIRST..LAST, the last not included",
            fix="Write 0..300.",
        )
    return range(int(match[1]), int(match[2]))


def _each(seeds: range, lived: Callable[[int], Lived], workers: int) -> Iterator[Lived]:
    if workers == 1:
        yield from map(lived, seeds)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(lived, seeds, chunksize=4)


def _rate(lived: list[Lived], began: float) -> str:
    spent = max(1e-9, time.perf_counter() - began)
    return f"{sum(one.handled for one in lived) / spent:,.0f} events/s"
