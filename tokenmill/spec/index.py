"""All documents by kind and name, and the problems that any document may have with what it names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenmill.domain.catalogue import Catalogue
from tokenmill.domain.units import did_you_mean
from tokenmill.spec import documents as docs
from tokenmill.spec.source import FieldPath, Found
from tokenmill.spec.validate import Entry


class Index:
    """All documents by kind and name, in file order, and the types that they may name."""

    def __init__(self, entries: Sequence[Entry], types: Catalogue) -> None:
        self.entries = entries
        self.types = types
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


def in_catalogue(entry: Entry, path: FieldPath, noun: str, name: str, known: dict[str, Any]) -> list[Found]:
    if name in known:
        return []
    expected = f"one of {', '.join(known)}"
    return [entry.found(path, f"the catalogue has no {noun} {name!r}", expected, did_you_mean(name, known))]


def resource_kind(resources: docs.ResourceFields, entry: Entry, path: FieldPath, index: Index) -> list[Found]:
    if resources.accelerator is None:
        return []
    known = index.types.accelerators
    return in_catalogue(entry, (*path, "accelerator"), "accelerator", resources.accelerator, known)


def owner_problems(document: Any, entry: Entry, index: Index) -> list[Found]:
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
