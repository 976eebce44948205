"""A factory file is applied, fenced by the version it was planned for; imports, aliases, runs follow it."""

from __future__ import annotations

from tokenmill.control import deployments, jobs, releases, runs
from tokenmill.control.draft import Draft
from tokenmill.control.sound import unsound
from tokenmill.control.state import State
from tokenmill.domain.errors import ConflictError, RefusedError
from tokenmill.domain.events import SpecApplied
from tokenmill.domain.factory import Factory
from tokenmill.domain.work import JobSpec


def check_applied(state: State, event: SpecApplied) -> None:
    """Raise when the file was planned against a version that is not the current one, or is not sound."""
    if event.base_version != state.version:
        raise ConflictError(
            f"the plan was made for version {event.base_version}, the factory is at version {state.version}",
            expected="a plan made for the current version",
            fix="Plan again and apply that.",
        )
    check_sound(event.factory)


def check_sound(factory: Factory) -> None:
    """Raise ``RefusedError`` with every field that no factory may have."""
    wrong = unsound(factory)
    if wrong:
        raise RefusedError("no factory can be like this", wrong, fix="Correct these, or apply a file.")


def applied(draft: Draft, event: SpecApplied) -> None:
    """The new spec is the desired state from now on."""
    old = draft.factory
    old_lines = draft.index.lines
    draft.factory = event.factory
    draft.version += 1
    draft.reindex()
    releases.request_imports(draft)
    deployments.follow_spec(draft, old, event.at_us)
    runs.follow_spec(draft, old_lines, event.at_us)
    # A changed source may have made a base model fit that an open run waits for.
    draft.touched_runs.update(draft.open_runs)
    known = {template.name for template in old.jobs}
    for template in event.factory.jobs:
        if template.name not in known:
            spec = JobSpec(
                kind="command",
                tenant=template.tenant,
                project=template.project,
                command=template.command,
                resources=template.resources,
                workers=template.workers,
                priority=template.priority,
                timeout_us=template.timeout_us,
                name=template.name,
                runtime_us=template.runtime_us,
                min_run_us=template.min_run_us,
                preemptible=template.preemptible,
            )
            jobs.submit(draft, draft.new_id("j"), spec, event.at_us)
