"""What documents say about one another: names that must exist, things that must fit, circles, currencies.

A document that does not fit its kind still counts as there, so that one mistake gives one problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tokenmill.domain import factory as nouns
from tokenmill.domain.stations import FREE_KINDS, STATION_KINDS, station_problems
from tokenmill.domain.units import did_you_mean
from tokenmill.spec import build
from tokenmill.spec import documents as docs
from tokenmill.spec.catalogue import catalogue
from tokenmill.spec.source import FieldPath, Found
from tokenmill.spec.validate import Entry

MAX_NODES = 20_000


class Index:
    """All documents by kind and name, in file order."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.names: dict[str, dict[str, Entry]] = {}
        for entry in entries:
            self.names.setdefault(entry.kind, {})[entry.name] = entry

    def of(self, kind: str) -> dict[str, Entry]:
        return self.names.get(kind, {})

    def missing(self, entry: Entry, path: FieldPath, kind: str, name: str) -> list[Found]:
        """A problem when no document of ``kind`` has this name."""
        known = self.of(kind)
        if name in known:
            return []
        expected = f"one of {', '.join(sorted(known)[:20])}" if known else f"a document of kind {kind}"
        fix = did_you_mean(name, known) or f"Add `kind: {kind}` with `name: {name}`."
        return [entry.found(path, f"there is no {kind} {name!r}", expected, fix)]


def check_references(entries: Sequence[Entry]) -> list[Found]:
    """Everything wrong between documents, and within one beyond its single fields."""
    index = Index(entries)
    checks: dict[str, Callable[[Any, Entry, Index], list[Found]]] = {
        "site": _site,
        "tenant": _tenant,
        "price": _price,
        "deployment": _deployment,
        "line": _line,
        "job": _job,
    }
    found: list[Found] = []
    for entry in entries:
        if entry.model is not None and entry.kind in checks:
            found += checks[entry.kind](entry.model, entry, index)
    return found + _mixed_machines(index) + _mixed_currencies(entries) + _duplicate_fabrics(index)


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


def _site(site: docs.SiteDocument, entry: Entry, index: Index) -> list[Found]:
    found: list[Found] = []
    known = catalogue()
    total = 0
    for number, rack in enumerate(site.racks):
        total += rack.count * known.racks[rack.type].nodes if rack.type in known.racks else 0
        found += _in_catalogue(entry, ("racks", number, "type"), "rack type", rack.type, known.racks)
        size = known.racks[rack.type].nodes if rack.type in known.racks else rack.schedulable
        if rack.schedulable and size and rack.schedulable > size:
            path: FieldPath = ("racks", number, "schedulable")
            found.append(entry.found(path, f"a {rack.type} has {size} nodes", f"at most {size}"))
    if not isinstance(site.nodes, str):
        for number, node in enumerate(site.nodes):
            total += node.count
            found += _node(node, entry, ("nodes", number))
    if total > MAX_NODES:
        found.append(entry.found((), f"states {total} nodes", f"at most {MAX_NODES} nodes"))
    names = [node.id for node in build.nodes(site)] if total <= MAX_NODES else []
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        found.append(
            entry.found((), f"two nodes are named {double!r}", "each name once", "Name racks apart.")
        )
    return found


def _node(node: docs.NodeFields, entry: Entry, path: FieldPath) -> list[Found]:
    known = catalogue()
    found: list[Found] = []
    if node.type is not None:
        found += _in_catalogue(entry, (*path, "type"), "node type", node.type, known.nodes)
        for name in ("cpu", "memory", "accelerators", "accelerator"):
            if getattr(node, name) is not None:
                message = "cannot be written beside `type`, which states it"
                found.append(entry.found((*path, name), message, "`type`, or the sizes", key=True))
    elif node.cpu is None or node.memory is None:
        expected = "`type: hgx-h200`, or `cpu` and `memory`"
        found.append(entry.found(path, "does not say what the node holds", expected))
    if node.accelerator is not None:
        found += _in_catalogue(
            entry, (*path, "accelerator"), "accelerator", node.accelerator, known.accelerators
        )
    elif node.accelerators and node.type is None:
        found.append(
            entry.found((*path, "accelerators"), "does not say of which type", "`accelerator: TYPE`")
        )
    return found


def _in_catalogue(entry: Entry, path: FieldPath, noun: str, name: str, known: dict[str, Any]) -> list[Found]:
    if name in known:
        return []
    expected = f"one of {', '.join(known)}"
    return [entry.found(path, f"the catalogue has no {noun} {name!r}", expected, did_you_mean(name, known))]


def _tenant(tenant: docs.TenantDocument, entry: Entry, index: Index) -> list[Found]:
    found: list[Found] = []
    seen: set[str] = set()
    for number, project in enumerate(tenant.projects):
        if project.name in seen:
            path: FieldPath = ("projects", number, "name")
            found.append(entry.found(path, f"two projects are named {project.name!r}", "each name once"))
        seen.add(project.name)
    return found + (
        [] if tenant.parent is None else index.missing(entry, ("parent",), "tenant", tenant.parent)
    )


def _price(price: docs.PriceDocument, entry: Entry, index: Index) -> list[Found]:
    found: list[Found] = []
    named = build.currencies(price)
    if len(named) > 1:
        found.append(entry.found((), f"mixes {' and '.join(named)}", "one currency in the whole factory"))
    targets = {**index.of("deployment"), **index.of("model")}
    if price.model != "*" and price.model not in targets:
        expected = f'a deployment, a model or "*": {", ".join(sorted(targets)[:20]) or "none is there"}'
        message = f"there is no deployment or model {price.model!r}"
        found.append(entry.found(("model",), message, expected, did_you_mean(price.model, targets)))
    return found


def _deployment(deployment: docs.DeploymentDocument, entry: Entry, index: Index) -> list[Found]:
    found: list[Found] = []
    if deployment.model is not None and deployment.line is not None:
        found.append(entry.found(("line",), "`model` and `line` are both written", "one of them", key=True))
    if deployment.model is None and deployment.line is None:
        found.append(entry.found((), "says neither `model` nor `line`", "one of them"))
    if deployment.model is not None:
        found += index.missing(entry, ("model",), "model", deployment.model)
    if deployment.line is not None:
        found += index.missing(entry, ("line",), "line", deployment.line)
    for number, tenant in enumerate(deployment.tenants):
        found += index.missing(entry, ("tenants", number), "tenant", tenant)
    if deployment.engine == "openai" and deployment.url is None:
        found.append(entry.found((), "the engine openai needs `url`", "`url: http://HOST:PORT`"))
    if deployment.engine != "openai" and deployment.url is not None:
        fix = "Remove it, or write `engine: openai`."
        message = f"the engine {deployment.engine} takes no `url`: we start it"
        found.append(entry.found(("url",), message, "", fix, key=True))
    return found + _resource_kind(deployment.resources, entry, ("resources",))


def _resource_kind(resources: docs.ResourceFields, entry: Entry, path: FieldPath) -> list[Found]:
    if resources.accelerator is None:
        return []
    known = catalogue().accelerators
    return _in_catalogue(entry, (*path, "accelerator"), "accelerator", resources.accelerator, known)


def _owner(document: Any, entry: Entry, index: Index) -> list[Found]:
    """The tenant is there, and the project is one of its own."""
    found = index.missing(entry, ("tenant",), "tenant", document.tenant)
    owner = index.of("tenant").get(document.tenant)
    if owner is not None and isinstance(owner.model, docs.TenantDocument):
        projects = [project.name for project in owner.model.projects]
        if document.project not in projects:
            message = f"the tenant {document.tenant} has no project {document.project!r}"
            fix = did_you_mean(document.project, projects)
            found.append(entry.found(("project",), message, f"one of {', '.join(projects)}", fix))
    return found


def _job(job: docs.JobDocument, entry: Entry, index: Index) -> list[Found]:
    return _owner(job, entry, index) + _resource_kind(job.resources, entry, ("resources",))


def _line(line: docs.LineDocument, entry: Entry, index: Index) -> list[Found]:
    found = _owner(line, entry, index) + index.missing(entry, ("base",), "model", line.base)
    base = index.of("model").get(line.base)
    if base is not None and isinstance(base.model, docs.ModelDocument) and base.model.type != "chat":
        found.append(entry.found(("base",), f"{line.base} is an {base.model.type} model", "a chat model"))
    found += _resource_kind(line.resources, entry, ("resources",))
    return found + (_long_line(line, entry) if line.stations else _short_line(line, entry))


def _short_line(line: docs.LineDocument, entry: Entry) -> list[Found]:
    if line.data is None and not line.intake:
        expected = "`data: FILE`, or `stations`"
        return [entry.found((), "does not say where its data is", expected)]
    found: list[Found] = []
    for kind in (kind for kind in STATION_KINDS if kind not in FREE_KINDS):
        where = "data" if kind == "intake" and line.data is not None else kind
        found += _params(entry, kind, build.short_params(line, kind), (where,))
    return found


def _long_line(line: docs.LineDocument, entry: Entry) -> list[Found]:
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
        found += _resource_kind(station.resources, entry, (*path, "resources"))
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


def _mixed_machines(index: Index) -> list[Found]:
    sites = [e for e in index.of("site").values() if isinstance(e.model, docs.SiteDocument)]
    here = [e for e in sites if isinstance(e.model, docs.SiteDocument) and e.model.nodes == "this-machine"]
    stated = [e for e in sites if isinstance(e.model, docs.SiteDocument) and build.nodes(e.model)]
    found: list[Found] = []
    if here and stated:
        fix = f"Site {stated[0].name} states its nodes: state all, or none."
        found.append(here[0].found(("nodes",), "`this-machine` is the only node of a factory", "", fix))
    found += [
        e.found(("nodes",), "`this-machine` is written for a second site", "one site") for e in here[1:]
    ]
    return found


def _mixed_currencies(entries: Sequence[Entry]) -> list[Found]:
    found: list[Found] = []
    first: tuple[str, Entry] | None = None
    for entry in entries:
        if isinstance(entry.model, docs.PriceDocument) and len(build.currencies(entry.model)) <= 1:
            currency = build.price(entry.model).currency
            if first is None:
                first = (currency, entry)
            elif currency != first[0]:
                expected = f"{first[0]}, as {first[1].title} in {first[1].document.start}"
                found.append(entry.found((), f"is in {currency}", expected, "Use one currency."))
    return found


def _duplicate_fabrics(index: Index) -> list[Found]:
    found: list[Found] = []
    seen: dict[str, str] = {}
    for entry in index.of("site").values():
        for number, fabric in enumerate(
            entry.model.fabrics if isinstance(entry.model, docs.SiteDocument) else []
        ):
            if fabric.name in seen:
                message = f"the fabric {fabric.name!r} is already in site {seen[fabric.name]}"
                found.append(entry.found(("fabrics", number, "name"), message, "each name once"))
            seen.setdefault(fabric.name, entry.name)
    return found
