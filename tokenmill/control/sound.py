"""What no factory may say, whoever sent it: what would send the core in circles, or give what is not there.

``spec`` checks what people write, with file and line, and much more; a factory that comes over the admin API
has not been there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from tokenmill.domain.codec import to_plain
from tokenmill.domain.factory import Factory

NAMED = ("sites", "tenants", "models", "deployments", "lines", "jobs", "peers")
MAY_BE_NEGATIVE = ("priority", "params", "canary", "trigger")  # numbers below zero mean something there
REASONS_MOST = 20


def unsound(factory: Factory) -> tuple[str, ...]:
    """Everything that is wrong, by field; empty for a factory that may be applied."""
    found = [*_twice(factory), *_negative(to_plain(factory), ""), *_parents(factory), *_missing(factory)]
    served = factory.deployments
    found += [f"deployment {one.name} has {one.slots} slots: one or more" for one in served if one.slots < 1]
    more = len(found) - REASONS_MOST
    return (*found[:REASONS_MOST], *([f"and {more} more"] if more > 0 else []))


def _twice(factory: Factory) -> Iterator[str]:
    for kind in NAMED:
        counts = Counter(one.name for one in getattr(factory, kind))
        for name, count in sorted(counts.items()):
            if count > 1:
                yield f"{kind}: {name!r} is there {count} times"


def _negative(value: Any, at: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in MAY_BE_NEGATIVE:
                yield from _negative(inner, f"{at}.{name}" if at else name)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _negative(inner, f"{at}.{number}")
    elif isinstance(value, int) and value < 0:
        yield f"{at} is {value}: zero or more"


def _parents(factory: Factory) -> Iterator[str]:
    """Parents that are not there, circles of them, and tenants that are promised more than they may hold."""
    parents = {tenant.name: tenant.parent for tenant in factory.tenants}
    for tenant in factory.tenants:
        if tenant.parent and tenant.parent not in parents:
            yield f"tenant {tenant.name} has the parent {tenant.parent!r}, which is not there"
        trail, name = [tenant.name], tenant.parent
        while name in parents and name not in trail:
            trail.append(name)
            name = parents[name]
        if name == tenant.name:
            yield f"tenant {tenant.name} is its own parent: {' -> '.join((*trail, name))}"
        if tenant.limit is not None and max(tenant.guarantee, tenant.reserve) > tenant.limit:
            yield f"tenant {tenant.name} is promised more than its limit of {tenant.limit}"


def _missing(factory: Factory) -> Iterator[str]:
    """Names of what is not in the factory."""
    models, lines = ({one.name for one in kind} for kind in (factory.models, factory.lines))
    tenants = {one.name for one in factory.tenants}
    for deployment in factory.deployments:
        if deployment.model and not deployment.url and deployment.model not in models:
            yield f"deployment {deployment.name} serves model {deployment.model!r}, which is not there"
        if deployment.line and deployment.line not in lines:
            yield f"deployment {deployment.name} serves line {deployment.line!r}, which is not there"
    for line in factory.lines:
        if line.base not in models:
            yield f"line {line.name} tunes model {line.base!r}, which is not there"
    owned = [(one.name, one.tenant) for one in factory.lines]
    for name, tenant in owned + [(one.name, one.tenant) for one in factory.jobs]:
        if tenant not in tenants:
            yield f"{name} is of tenant {tenant!r}, which is not there"
