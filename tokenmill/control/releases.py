"""Releases: what may serve. Imports that the operator brought, and what a line packed after its gate passed.

Also the imports themselves: which models must be brought, and what is known when they have come. Which
release an alias points at is ``control.deployments``' to say; this file tells it when there is a new one.
"""

from __future__ import annotations

from tokenmill.control.draft import Draft
from tokenmill.domain.effects import ImportModel, RecordRelease
from tokenmill.domain.events import ModelImported
from tokenmill.domain.factory import Deployment, Factory, Model
from tokenmill.domain.value import replace
from tokenmill.domain.work import Imported, Release


def remote(deployment: Deployment) -> bool:
    """Whether the deployment is a server that runs elsewhere, whose weights are not ours to import."""
    return deployment.engine == "openai" and bool(deployment.url)


def wanted_models(factory: Factory) -> tuple[Model, ...]:
    """Models whose weights the factory must have: all but those that only remote servers serve."""
    elsewhere = {d.model for d in factory.deployments if remote(d)}
    here = {d.model for d in factory.deployments if not remote(d)} | {line.base for line in factory.lines}
    return tuple(m for m in factory.models if m.name not in elsewhere or m.name in here)


def fits(model: Model, imported: Imported | None) -> bool:
    """Whether ``imported`` is what ``model`` asks for, without an error."""
    return (
        imported is not None
        and not imported.error
        and imported.source == model.source
        and (not model.digest or imported.digest == model.digest)
    )


def request_imports(draft: Draft) -> None:
    """Ask for the weights that are missing; those that failed before are tried again."""
    for model in wanted_models(draft.factory):
        imported = draft.models.get(model.name)
        if fits(model, imported):
            continue
        if imported is not None and imported.error:
            draft.changed = True
            draft.models = draft.models.delete(model.name)
        draft.effects.append(ImportModel(model))


def imported(draft: Draft, event: ModelImported) -> str:
    """Weights came, or could not. Returns the id of the release they make, or "" when nothing is new."""
    found = event.imported
    model = next((m for m in draft.factory.models if m.name == found.model), None)
    if model is None or (found.source and found.source != model.source):
        return ""
    found = replace(found, source=model.source)
    if not found.error and model.digest and found.digest != model.digest:
        error = f"the weights have digest {found.digest}, the factory file pins {model.digest}"
        found = replace(found, error=error)
    old = draft.models.get(model.name)
    if old == found or fits(model, old):
        return ""
    draft.changed = True
    draft.shown = True
    draft.models = draft.models.set(model.name, found)
    return "" if found.error else import_release(draft, found, event.at_us)


def import_release(draft: Draft, found: Imported, now_us: int) -> str:
    """The release of imported weights: ``import-<model>``, with their digest added when those changed."""
    release_id = f"import-{found.model}"
    for candidate in (release_id, f"{release_id}-{found.digest.removeprefix('sha256:')[:12]}"):
        known = draft.releases.get(candidate)
        if known is None:
            release = Release(
                id=candidate,
                model=found.model,
                weights=found.digest,
                adapter="",
                digest=found.digest,
                origin="import",
                created_us=now_us,
            )
            record(draft, release)
            return candidate
        if known.weights == found.digest:
            return candidate
    return release_id


def remote_release(draft: Draft, deployment: Deployment, now_us: int) -> str:
    """The release that stands for a server elsewhere. It has no weights that we could know."""
    release_id = f"remote-{deployment.name}-{deployment.model}"
    if release_id not in draft.releases:
        record(draft, Release(release_id, deployment.model, "", "", "", "import", created_us=now_us))
    return release_id


def record(draft: Draft, release: Release) -> None:
    """Keep a release and write it into the registry."""
    draft.changed = True
    draft.releases = draft.releases.set(release.id, release)
    draft.effects.append(RecordRelease(release))


def latest_of_line(draft: Draft, line: str) -> str:
    """The line's newest release that is not recalled, or ""."""
    made = [r for r in draft.releases.values() if r.line == line and r.id not in draft.recalls]
    return max(made, key=lambda r: (r.created_us, r.id)).id if made else ""
