"""What a line's document must fit: its base, its stations' parameters, and what they need of one another."""

from __future__ import annotations

from typing import Any

from tokenmill.domain.stations import FREE_KINDS, STATION_KINDS, station_problems
from tokenmill.domain.units import did_you_mean
from tokenmill.spec import build
from tokenmill.spec import documents as docs
from tokenmill.spec.capture_files import CAPTURE
from tokenmill.spec.index import Index, owner_problems, resource_kind
from tokenmill.spec.source import FieldPath, Found
from tokenmill.spec.validate import Entry


def line_problems(line: docs.LineDocument, entry: Entry, index: Index) -> list[Found]:
    found = owner_problems(line, entry, index) + index.missing(entry, ("base",), "model", line.base)
    base = index.of("model").get(line.base)
    if base is not None and isinstance(base.model, docs.ModelDocument) and base.model.type != "chat":
        found.append(entry.found(("base",), f"{line.base} is an {base.model.type} model", "a chat model"))
    found += resource_kind(line.resources, entry, ("resources",), index)
    found += _capture_problems(line, entry, index)
    return found + (_long_line(line, entry, index) if line.stations else _short_line(line, entry))


def _capture_problems(line: docs.LineDocument, entry: Entry, index: Index) -> list[Found]:
    """What a line reads of captured traffic, its own project must have agreed to keep."""
    owner = index.of("tenant").get(line.tenant)
    if owner is None or not isinstance(owner.model, docs.TenantDocument):
        return []  # the tenant has problems of its own
    agreed = [p.capture for p in owner.model.projects if p.name == line.project and p.capture is not None]
    kept = [alias for capture in agreed for alias in capture.aliases]
    found = []
    for path, text in _data_paths(line):
        if not isinstance(text, str) or not text.startswith(CAPTURE):
            continue
        alias = text.removeprefix(CAPTURE)
        if alias not in kept:
            message = f"the project {line.tenant}/{line.project} does not capture {alias!r}"
            expected = f"one of {', '.join(kept)}" if kept else "a project with `capture`"
            fix = did_you_mean(alias, kept) or "Add `capture: {aliases, consent}` to the project."
            found.append(entry.found(path, message, expected, fix))
    return found


def _data_paths(line: docs.LineDocument) -> list[tuple[FieldPath, Any]]:
    """Where a line says what it reads, and what that is."""
    if line.stations:
        return [
            (("stations", number, "params", "path"), station.params.get("path"))
            for number, station in enumerate(line.stations)
            if station.kind == "intake"
        ]
    if "path" in line.intake:
        return [(("intake", "path"), line.intake["path"])]
    place: FieldPath = ("data", "path") if isinstance(line.data, dict) else ("data",)
    return [(place, build.short_params(line, "intake").get("path"))]


def _short_line(line: docs.LineDocument, entry: Entry) -> list[Found]:
    if line.data is None and not line.intake:
        expected = "`data: FILE`, or `stations`"
        return [entry.found((), "does not say where its data is", expected)]
    found: list[Found] = []
    for kind in (kind for kind in STATION_KINDS if kind not in FREE_KINDS):
        where = "data" if kind == "intake" and line.data is not None else kind
        found += _params(entry, kind, build.short_params(line, kind), (where,))
    return found


def _long_line(line: docs.LineDocument, entry: Entry, index: Index) -> list[Found]:
    found: list[Found] = []
    for name in ("data", *STATION_KINDS):
        if name in line.model_fields_set:
            fix = "Write it as `params` of a station."
            message = "cannot be written beside `stations`"
            found.append(entry.found((name,), message, "the short form or the long one", fix, key=True))
    needs: dict[str, list[str]] = {}
    kinds = {station.name: station.kind for station in line.stations}
    for number, station in enumerate(line.stations):
        path: FieldPath = ("stations", number)
        if station.name in needs:
            message = f"two stations are named {station.name!r}"
            found.append(entry.found((*path, "name"), message, "each name once"))
        needs[station.name] = station.needs
        for place, need in enumerate(station.needs):
            if need not in kinds:
                message, expected = f"there is no station {need!r}", f"one of {', '.join(kinds)}"
                fix = did_you_mean(need, kinds)
                found.append(entry.found((*path, "needs", place), message, expected, fix))
        found += _params(entry, station.kind, station.params, (*path, "params"))
        found += resource_kind(station.resources, entry, (*path, "resources"), index)
    circle = circle_in(needs)
    if circle:
        message = f"the stations need one another in a circle: {' -> '.join(circle)}"
        found.append(entry.found(("stations",), message, "an order", "Remove one of these needs.", key=True))
    else:
        found += _missing_inputs(line, entry, kinds, needs)
    return found


def _missing_inputs(
    line: docs.LineDocument, entry: Entry, kinds: dict[str, str], needs: dict[str, list[str]]
) -> list[Found]:
    """A station must need, itself, a station of each kind whose outputs its own kind reads."""
    found: list[Found] = []
    for number, station in enumerate(line.stations):
        has = {kinds[need] for need in needs[station.name] if need in kinds}
        unknown = any(need not in kinds for need in station.needs)
        absent = [kind for kind in dict(build.CHAIN).get(station.kind, ()) if kind not in has]
        if absent and not unknown:
            message = f"a station of kind {station.kind} needs one of kind {' and '.join(absent)}"
            found.append(entry.found(("stations", number, "needs"), message, "", "Add it to `needs`."))
    return found


def _params(entry: Entry, kind: str, params: dict[str, Any], path: FieldPath) -> list[Found]:
    found: list[Found] = []
    for problem in station_problems(kind, params):
        steps: FieldPath = (*path, *problem.field.split(".")) if problem.field else path
        if path == ("data",) and steps not in entry.document.places:
            intake = ("intake", *steps[1:])
            steps = intake if intake in entry.document.places else steps
            if isinstance(entry.document.value.get("data"), str) and steps[-1] == "path":
                steps = path
        unknown = problem.message == "unknown parameter"
        near = did_you_mean(str(steps[-1]), _known_params(problem.expected)) if unknown else ""
        found.append(entry.found(steps, problem.message, problem.expected, near or problem.fix, key=unknown))
    return found


def _known_params(expected: str) -> list[str]:
    return expected.removeprefix("one of ").split(", ")


def circle_in(needs: dict[str, list[str]]) -> list[str]:
    """The first circle of a directed graph, as names from one back to itself; empty when there is none."""
    done: set[str] = set()
    for start in needs:
        trail: list[str] = []
        stack: list[tuple[str, int]] = [(start, 0)]
        while stack:
            name, turn = stack.pop()
            if turn == 0:
                if name in trail:
                    return [*trail[trail.index(name) :], name]
                if name in done or name not in needs:
                    continue
                trail.append(name)
            if turn < len(needs[name]):
                stack += [(name, turn + 1), (needs[name][turn], 0)]
            else:
                done.add(trail.pop())
    return []
