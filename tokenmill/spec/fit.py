"""Replicas and gangs that no set of the stated nodes could ever hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenmill.domain import factory as nouns
from tokenmill.spec import build
from tokenmill.spec import documents as docs
from tokenmill.spec.source import FieldPath, Found
from tokenmill.spec.validate import Entry


def check_fit(entries: Sequence[Entry], nodes: Sequence[nouns.Node]) -> list[Found]:
    """Replicas and gangs that no set of the stated nodes could ever hold."""
    if not nodes:
        return []
    shapes: dict[tuple[int, int, str, int], int] = {}
    for node in nodes:
        kind = node.accelerators[0].kind if node.accelerators else ""
        shape = (node.cpu_millis, node.memory_bytes, kind, len(node.accelerators))
        shapes[shape] = shapes.get(shape, 0) + 1
    found: list[Found] = []
    for entry in entries:
        for path, asked, workers in _asked(entry):
            room = sum(_holds(shape, asked) * count for shape, count in shapes.items())
            if room < workers:
                message = f"can never run: the stated nodes have room for {room} of {workers}"
                fix = "Ask for less, or state larger nodes. " + _largest(shapes)
                found.append(entry.found(path, message, _wanted(asked), fix))
    return found


def _asked(entry: Entry) -> Iterable[tuple[FieldPath, nouns.Resources, int]]:
    """``(field, resources, how many at once)`` of everything in a document that runs."""
    match entry.model:
        case docs.DeploymentDocument() as document if document.engine != "openai":
            built = build.deployment(document)
            yield ("resources",), built.resources, max(1, built.replicas)
        case docs.JobDocument() as document:
            yield ("resources",), build.job(document).resources, document.workers
        case docs.LineDocument() as document:
            for number, station in enumerate(build.line(document).stations):
                if station.kind != "gate" and (document.stations or number == 0):
                    path: FieldPath = (
                        ("stations", number, "resources") if document.stations else ("resources",)
                    )
                    yield path, station.resources, 1
        case _:
            return


def _holds(shape: tuple[int, int, str, int], asked: nouns.Resources) -> int:
    """How many workers one empty node of this shape holds."""
    cpu, memory, kind, accelerators = shape
    if asked.accelerator_kind and asked.accelerators and asked.accelerator_kind != kind:
        return 0
    pairs = ((cpu, asked.cpu_millis), (memory, asked.memory_bytes), (accelerators, asked.accelerators))
    return min((have // want for have, want in pairs if want), default=10**6)


def _wanted(asked: nouns.Resources) -> str:
    parts = [f"{asked.cpu_millis / 1000:g} cores"]
    parts += [f"{asked.memory_bytes / 1e9:g} GB"] if asked.memory_bytes else []
    kind = asked.accelerator_kind or ("accelerator" if asked.accelerators == 1 else "accelerators")
    parts += [f"{asked.accelerators} {kind}"] if asked.accelerators else []
    return "room for " + ", ".join(parts) + " on each"


def _largest(shapes: dict[tuple[int, int, str, int], int]) -> str:
    cpu, memory, kind, accelerators = max(shapes, key=lambda s: (s[3], s[0], s[1], s[2]))
    gpus = f", {accelerators} {kind}" if accelerators else ""
    return f"The largest has {cpu / 1000:g} cores, {memory / 1e9:g} GB{gpus}."
