"""What documents say about one another: names that must exist, things that must fit, circles.

A document that does not fit its kind still counts as there, so that one mistake gives one problem.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tokenmill.domain.catalogue import Catalogue
from tokenmill.spec import build
from tokenmill.spec import documents as docs
from tokenmill.spec import money_references as money
from tokenmill.spec.fabrics import check_fabrics
from tokenmill.spec.index import Index, in_catalogue, owner_problems, resource_kind
from tokenmill.spec.lines import line_problems
from tokenmill.spec.source import FieldPath, Found
from tokenmill.spec.validate import Entry

MAX_NODES = 20_000
ADDRESS_FLAGS = ("--host", "--port")
"""Not for `engine_args`: an engine that others reach serves them without a key, a quota or a bill."""


def check_references(entries: Sequence[Entry], types: Catalogue) -> list[Found]:
    """Everything wrong between documents, and within one beyond its single fields."""
    index = Index(entries, types)
    checks: dict[str, Callable[[Any, Entry, Index], list[Found]]] = {
        "site": _site,
        "tenant": _tenant,
        "price": money.price,
        "quota": money.quota,
        "deployment": _deployment,
        "line": line_problems,
        "job": _job,
    }
    found: list[Found] = []
    for entry in entries:
        if entry.model is not None and entry.kind in checks:
            found += checks[entry.kind](entry.model, entry, index)
    return found + _mixed_machines(index) + money.currencies(entries) + check_fabrics(entries, types)


def _site(site: docs.SiteDocument, entry: Entry, index: Index) -> list[Found]:
    found: list[Found] = []
    known = index.types
    total = 0
    for number, rack in enumerate(site.racks):
        total += rack.count * known.racks[rack.type].nodes if rack.type in known.racks else 0
        found += in_catalogue(entry, ("racks", number, "type"), "rack type", rack.type, known.racks)
        size = known.racks[rack.type].nodes if rack.type in known.racks else rack.schedulable
        if rack.schedulable and size and rack.schedulable > size:
            path: FieldPath = ("racks", number, "schedulable")
            found.append(entry.found(path, f"a {rack.type} has {size} nodes", f"at most {size}"))
    if not isinstance(site.nodes, str):
        for number, node in enumerate(site.nodes):
            total += node.count
            found += _node(node, entry, ("nodes", number), index)
    found += _unknown_power(site, entry, index)
    if total > MAX_NODES:
        found.append(entry.found((), f"states {total} nodes", f"at most {MAX_NODES} nodes"))
    names = [node.id for node in build.nodes(site, known)] if total <= MAX_NODES else []
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        found.append(
            entry.found((), f"two nodes are named {double!r}", "each name once", "Name racks apart.")
        )
    return found


def _node(node: docs.NodeFields, entry: Entry, path: FieldPath, index: Index) -> list[Found]:
    known = index.types
    found: list[Found] = []
    if node.type is not None:
        found += in_catalogue(entry, (*path, "type"), "node type", node.type, known.nodes)
        for name in ("cpu", "memory", "accelerators", "accelerator", "idle_power", "max_power"):
            if getattr(node, name) is not None:
                message = "cannot be written beside `type`, which states it"
                found.append(entry.found((*path, name), message, "`type`, or the sizes", key=True))
    elif node.cpu is None or node.memory is None:
        expected = "`type: hgx-h200`, or `cpu` and `memory`"
        found.append(entry.found(path, "does not say what the node holds", expected))
    if node.accelerator is not None:
        found += in_catalogue(
            entry, (*path, "accelerator"), "accelerator", node.accelerator, known.accelerators
        )
    elif node.accelerators and node.type is None:
        found.append(
            entry.found((*path, "accelerators"), "does not say of which type", "`accelerator: TYPE`")
        )
    if node.type is None and (node.idle_power is None) != (node.max_power is None):
        expected = "`idle_power` and `max_power`, or neither"
        found.append(entry.found(path, "says half of what it draws", expected))
    elif node.idle_power and node.max_power and node.idle_power > node.max_power:
        field: FieldPath = (*path, "idle_power")
        found.append(entry.found(field, "is more than `max_power`", "at most `max_power`"))
    return found


def _unknown_power(site: docs.SiteDocument, entry: Entry, index: Index) -> list[Found]:
    """Nodes that would count as nothing against a bound of power, which so would not hold."""
    bounds = [name for name in ("power_cap", "power_ramp") if getattr(site, name) is not None]
    if bounds and site.nodes == "this-machine":
        message = "nobody knows beforehand what this machine draws, so it cannot be held"
        return [entry.found((bounds[0],), message, "stated nodes", "Remove it, or state the node.", key=True)]
    racks = {rack.name for rack in build.racks(site, index.types) if rack.power_cap_mw or rack.ramp_mw}
    return [
        entry.found(
            ("nodes", number),
            f"does not say what it draws, and is under a {bounds[0] if bounds else 'power_cap of its rack'}",
            "`idle_power` and `max_power`, or a `type`",
        )
        for number, node in enumerate(site.nodes)
        if isinstance(node, docs.NodeFields) and node.type is None and not (node.max_power or node.idle_power)
        if bounds or f"{site.name}/{node.rack}" in racks
    ]


def _tenant(tenant: docs.TenantDocument, entry: Entry, index: Index) -> list[Found]:
    found: list[Found] = []
    seen: set[str] = set()
    for number, project in enumerate(tenant.projects):
        if project.name in seen:
            path: FieldPath = ("projects", number, "name")
            found.append(entry.found(path, f"two projects are named {project.name!r}", "each name once"))
        seen.add(project.name)
        for place, alias in enumerate(project.capture.aliases if project.capture else ()):
            where: FieldPath = ("projects", number, "capture", "aliases", place)
            found += index.missing(entry, where, "deployment", alias)
    return found + (
        [] if tenant.parent is None else index.missing(entry, ("parent",), "tenant", tenant.parent)
    )


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
    for number, argument in enumerate(deployment.engine_args):
        if _moves(argument):
            message = f"{argument!r} would move the engine away from where only the gateway reaches it"
            found.append(entry.found(("engine_args", number), message, "", "Remove it, and its value."))
    return found + resource_kind(deployment.resources, entry, ("resources",), index)


def _moves(argument: str) -> bool:
    """Whether an engine reads ``argument`` as its address, cut short too, as argparse allows."""
    flag = argument.partition("=")[0].replace("_", "-")
    return len(flag) > 2 and any(known.startswith(flag) for known in ADDRESS_FLAGS)


def _job(job: docs.JobDocument, entry: Entry, index: Index) -> list[Found]:
    return owner_problems(job, entry, index) + resource_kind(job.resources, entry, ("resources",), index)


def _mixed_machines(index: Index) -> list[Found]:
    sites = [e for e in index.of("site").values() if isinstance(e.model, docs.SiteDocument)]
    here = [e for e in sites if isinstance(e.model, docs.SiteDocument) and e.model.nodes == "this-machine"]
    stated = [
        e for e in sites if isinstance(e.model, docs.SiteDocument) and build.nodes(e.model, index.types)
    ]
    found: list[Found] = []
    if here and stated:
        fix = f"Site {stated[0].name} states its nodes: state all, or none."
        found.append(here[0].found(("nodes",), "`this-machine` is the only node of a factory", "", fix))
    found += [
        e.found(("nodes",), "`this-machine` is written for a second site", "one site") for e in here[1:]
    ]
    return found
