"""Many seeds: live each world through, and say what a batch reached and what it never did.

A world that fails is reported with its seed and the events that it had; the same seed fails again. What is
declared (every kind of event, fault and refusal) and never occurred in a batch is named, because such a
batch proves nothing about it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from importlib.resources import files

from tokenmill.domain.codec import EVENT_TYPES
from tokenmill.twin.sim.people import POST, STORE, WEATHER
from tokenmill.twin.sim.world import World

EVENTS = 400


@dataclass(frozen=True, slots=True)
class Lived:
    """One world that was lived through. ``error`` is empty when every invariant held.

    ``events`` are those of the journal. ``handled`` counts also what changed nothing (told twice, too late,
    refused, or a timer with nothing to do), and what happened to a process before the core was told of it.
    """

    seed: int
    events: int
    handled: int = 0
    error: str = ""
    seen: dict[str, int] = field(default_factory=dict)
    met: frozenset[str] = frozenset()
    reached: frozenset[str] = frozenset()
    refusals: frozenset[tuple[str, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of many worlds. The last three name what never occurred in any of them."""

    worlds: int
    events: int
    handled: int
    failures: tuple[Lived, ...]
    events_missing: tuple[str, ...]
    faults_missing: tuple[str, ...]
    refusals_missing: tuple[str, ...]


def world_of(seed: int, events: int = EVENTS) -> World:
    """Live one world through: chaos, then quiet until all has settled. Raises what an invariant raises."""
    world = World(seed)
    world.run(events)
    world.settle()
    return world


def live(
    seed: int, events: int = EVENTS, fail: tuple[int, str] | None = None, *, thorough: bool = False
) -> Lived:
    """The same, with a failure as a value. A world that fails is lived again thoroughly, which finds
    the event that broke it.
    """
    world = World(seed, fail, thorough=thorough)
    error = ""
    try:
        world.run(events)
        world.settle()
    except Exception as found:  # noqa: BLE001 - whatever breaks is the finding
        error = f"{type(found).__name__}: {found}".splitlines()[0][:500]
    if error and not thorough:
        again = live(seed, events, fail, thorough=True)
        return again if again.error else replace(again, error=f"{error} (not when lived again)")
    return Lived(
        seed,
        len(world.journal),
        world.handled,
        error,
        dict(world.seen),
        frozenset(world.met),
        frozenset(world.checkers.reached),
        frozenset(world.refusals),
    )


def batch(
    seeds: Iterable[int], events: int = EVENTS, tell: Callable[[Lived], None] = lambda _: None
) -> Batch:
    """Live all of these worlds through, one after the other; ``tell`` is called after each."""
    lived: list[Lived] = []
    for seed in seeds:
        lived.append(live(seed, events))
        tell(lived[-1])
    return summed(lived)


def summed(lived: Iterable[Lived]) -> Batch:
    """What a batch reached, and what it did not."""
    worlds = list(lived)
    seen: dict[str, int] = {}
    met: set[str] = set()
    refused: set[tuple[str, int]] = set()
    for one in worlds:
        met |= one.met
        refused |= one.refusals
        for kind, count in one.seen.items():
            seen[kind] = seen.get(kind, 0) + count
    return Batch(
        len(worlds),
        sum(one.events for one in worlds),
        sum(one.handled for one in worlds),
        tuple(one for one in worlds if one.error),
        tuple(sorted(kind for kind in EVENT_TYPES if not seen.get(kind))),
        tuple(sorted({*WEATHER, *POST, *STORE} - met)),
        tuple(
            text
            for place, text in sorted(declared_refusals().items())
            if place not in refused and "too many" not in text  # limits are far above what a world holds
        ),
    )


def declared_refusals() -> dict[tuple[str, int], str]:
    """Every ``raise`` in a check of ``control``, by file and line: the refusals that the core declares."""
    found: dict[tuple[str, int], str] = {}
    for path in sorted(files("tokenmill.control").iterdir(), key=lambda path: path.name):
        if not path.name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.lstrip("_").startswith("check"):
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Raise) and isinstance(inner.exc, ast.Call):
                        text = ast.unparse(inner.exc.args[0]) if inner.exc.args else "?"
                        found[path.name, inner.lineno] = f"{path.name}:{inner.lineno} {text}"
    return found
