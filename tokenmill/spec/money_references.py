"""What prices and quotas say about other documents: names that must exist, one currency, no bound in vain."""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.domain.units import did_you_mean
from tokenmill.spec import build
from tokenmill.spec import documents as docs
from tokenmill.spec.index import Index, in_catalogue
from tokenmill.spec.source import FieldPath, Found
from tokenmill.spec.validate import Entry

BUDGETS = ("money_per_day", "money_per_month")


def price(document: docs.PriceDocument, entry: Entry, index: Index) -> list[Found]:
    """What it prices exists, in one currency, and no other price of it begins at the same time."""
    found: list[Found] = []
    named = build.currencies(document)
    if len(named) > 1:
        found.append(entry.found((), f"mixes {' and '.join(named)}", "one currency in the whole factory"))
    targets = {**index.of("deployment"), **index.of("model")}
    if document.model != "*" and document.model not in targets:
        expected = f'a deployment, a model or "*": {", ".join(sorted(targets)[:20]) or "none is there"}'
        message = f"there is no deployment or model {document.model!r}"
        found.append(entry.found(("model",), message, expected, did_you_mean(document.model, targets)))
    hours = document.accelerator_hour
    for kind in hours:
        if kind != "*":
            path: FieldPath = ("accelerator_hour", kind)
            found += in_catalogue(entry, path, "accelerator", kind, index.types.accelerators)
    if "*" not in hours:
        message = "has no price of accelerators of all other types"
        found.append(
            entry.found(("accelerator_hour",), message, "an amount for *", 'Add "*": 0 USD, or more.')
        )
    for other in index.of("price").values():
        if other is entry:
            break
        same = other.model
        if not isinstance(same, docs.PriceDocument) or same.model != document.model:
            continue
        if same.valid_from == document.valid_from:
            message = f"begins when {other.title} in {other.document.start} begins"
            found.append(entry.found(("from",), message, "each date once for each model"))
    return found


def quota(document: docs.QuotaDocument, entry: Entry, index: Index) -> list[Found]:
    """Its tenant, project and deployment exist, and the tenant may call it: else it would bind nobody."""
    found = index.missing(entry, ("tenant",), "tenant", document.tenant)
    owner = index.of("tenant").get(document.tenant)
    if owner is not None and isinstance(owner.model, docs.TenantDocument) and document.project:
        projects = [project.name for project in owner.model.projects]
        if document.project not in projects:
            message = f"the tenant {document.tenant} has no project {document.project!r}"
            fix = did_you_mean(document.project, projects)
            found.append(entry.found(("project",), message, f"one of {', '.join(projects)}", fix))
    names = set(index.of("deployment"))
    for peer in index.of("peer").values():
        names |= set(peer.model.aliases) if isinstance(peer.model, docs.PeerDocument) else set()
    if document.model not in names:
        expected = f"one of {', '.join(sorted(names)[:20])}" if names else "a document of kind deployment"
        message = f"there is no deployment {document.model!r}"
        found.append(entry.found(("model",), message, expected, did_you_mean(document.model, names)))
    served = index.of("deployment").get(document.model)
    if found or served is None or not isinstance(served.model, docs.DeploymentDocument):
        return found
    if served.model.tenants and document.tenant not in served.model.tenants:
        message = f"the tenant {document.tenant} may not call {document.model}, so this binds nobody"
        fix = f"Name the tenant in the deployment's `tenants` ({served.document.start})."
        found.append(entry.found(("tenant",), message, ", ".join(served.model.tenants), fix))
    return found


def currencies(entries: Sequence[Entry]) -> list[Found]:
    """One currency in the whole factory, budgets included, and prices wherever there is a budget."""
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
    for entry, path, fields in _quotas(entries):
        for name in BUDGETS:
            amount = getattr(fields, name)
            if amount is None:
                continue
            if first is None:
                message = "nothing has a price, so this bound would never be reached"
                found.append(entry.found((*path, name), message, "a document of kind price"))
            elif amount[1] and amount[1] != first[0]:
                expected = f"{first[0]}, as {first[1].title} in {first[1].document.start}"
                message = f"is in {amount[1]}"
                found.append(entry.found((*path, name), message, expected, "Use one currency."))
    return found


def _quotas(entries: Sequence[Entry]) -> list[tuple[Entry, FieldPath, docs.QuotaFields]]:
    """Every quota, with where it was written."""
    found: list[tuple[Entry, FieldPath, docs.QuotaFields]] = []
    for entry in entries:
        if isinstance(entry.model, docs.QuotaDocument):
            found.append((entry, (), entry.model))
        elif isinstance(entry.model, docs.TenantDocument):
            found.append((entry, ("quota",), entry.model.quota))
            for number, project in enumerate(entry.model.projects):
                found.append((entry, ("projects", number, "quota"), project.quota))
    return found
