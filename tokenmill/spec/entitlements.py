"""What tenants are entitled to: one tree of parents, and bounds that can hold together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenmill.domain.factory import Node
from tokenmill.spec import documents as docs
from tokenmill.spec.source import Found
from tokenmill.spec.validate import Entry

TOTAL = "the factory's {} accelerators"


def check_entitlements(entries: Sequence[Entry], nodes: Sequence[Node]) -> list[Found]:
    """Circles of parents, a tenant's bounds against each other, sums against the parent's or the floor's."""
    tenants = {e.name: e for e in entries if isinstance(e.model, docs.TenantDocument)}
    models = {name: e.model for name, e in tenants.items() if isinstance(e.model, docs.TenantDocument)}
    found: list[Found] = []
    for name, entry in tenants.items():
        found += _own(models[name], entry) + _circle(name, models, entry)
    if found:
        return found
    for name, entry in tenants.items():
        found += _children(name, models, entry)
    total = sum(len(node.accelerators) for node in nodes)
    promised = [e for n, e in tenants.items() if not models[n].parent and _promised(models[n])]
    if nodes and sum(_promised(models[e.name]) for e in promised) > total:
        last = promised[-1]
        field = "guarantee" if models[last.name].guarantee else "reserve"
        message = f"together the tenants are promised more than {TOTAL.format(total)}"
        found.append(last.found((field,), message, "guarantees and reserves that the floor has"))
    return found


def _promised(tenant: docs.TenantDocument) -> int:
    return max(tenant.guarantee, tenant.reserve)


def _own(tenant: docs.TenantDocument, entry: Entry) -> list[Found]:
    found: list[Found] = []
    for field, count in (("guarantee", tenant.guarantee), ("reserve", tenant.reserve)):
        if tenant.limit is not None and count > tenant.limit:
            message = f"{count} is more than the limit of {tenant.limit}"
            found.append(entry.found((field,), message, "at most the tenant's `limit`"))
    return found


def _circle(name: str, models: Mapping[str, docs.TenantDocument], entry: Entry) -> list[Found]:
    """A circle of parents is said once, at the tenant in it whose name comes first."""
    trail = [name]
    while (parent := models[trail[-1]].parent) is not None and parent in models:
        if parent in trail:
            circle = [*trail[trail.index(parent) :], parent]
            if name != min(circle) or parent != name:
                return []
            message = f"the tenants are parents of one another in a circle: {' -> '.join(circle)}"
            return [entry.found(("parent",), message, "a tree", "Remove one of these parents.")]
        trail.append(parent)
    return []


def _children(name: str, models: Mapping[str, docs.TenantDocument], entry: Entry) -> list[Found]:
    parent = models[name]
    children = [child for child in models.values() if child.parent == name]
    promised = sum(_promised(child) for child in children)
    bound = parent.limit if parent.limit is not None else _promised(parent)
    if bound and promised > bound:
        field = "limit" if parent.limit is not None else "guarantee" if parent.guarantee else "reserve"
        message = f"its children are promised {promised} accelerators together, it has {bound}"
        return [entry.found((field,), message, f"at least {promised}")]
    return []
