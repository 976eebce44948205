"""API keys: made and disabled. Only digests are known here; what a key may do is the gateway's to check."""

from __future__ import annotations

from tokenmill.control.draft import Draft
from tokenmill.control.state import State
from tokenmill.domain.errors import ConflictError, NotFoundError, RefusedError
from tokenmill.domain.events import KeyCreated, KeyDisabled
from tokenmill.domain.factory import Tenant
from tokenmill.domain.value import replace

KEYS_MOST = 10_000
SCOPES = ("inference", "admin")
LATEST_US = 253_402_300_799_000_000  # the last second of 9999


def check_tenant(state: State, tenant: str, project: str) -> Tenant:
    """The tenant, if it exists and has the project. Raises ``NotFoundError`` naming those that do."""
    found = state.index.tenants.get(tenant)
    if found is None:
        names = ", ".join(t.name for t in state.factory.tenants) or "none"
        raise NotFoundError(
            f"there is no tenant {tenant!r}",
            expected=f"one of: {names}",
            fix="Name a tenant of the factory file, or add this one to it and apply.",
        )
    for one in found.projects:
        if one.name == project:
            return found
    names = ", ".join(p.name for p in found.projects) or "none"
    raise NotFoundError(
        f"tenant {tenant!r} has no project {project!r}",
        expected=f"one of: {names}",
        fix="Name a project of the tenant, or add this one to the factory file and apply.",
    )


def check_created(state: State, event: KeyCreated) -> None:
    """Raise unless the key may be made."""
    key = event.key
    check_tenant(state, key.tenant, key.project)
    if key.scope not in SCOPES:
        raise RefusedError(
            f"a key cannot have scope {key.scope!r}", (f"scopes are {', '.join(SCOPES)}",), fix="Choose one."
        )
    if key.expires_us and not event.at_us < key.expires_us <= LATEST_US:
        raise RefusedError(
            "a key cannot expire then",
            ("that is over already" if key.expires_us <= event.at_us else "the year 9999 is the last",),
            fix="Name a time to come, or none.",
        )
    if key.id in state.keys:
        raise ConflictError(f"key {key.id} exists already", fix="Ask for a key with another id.")
    if len(state.keys) >= KEYS_MOST:
        raise RefusedError("too many keys", (f"limit {KEYS_MOST}",), fix="Remove tenants' old keys.")


def check_disabled(state: State, event: KeyDisabled) -> None:
    """Raise unless the key exists and still works."""
    key = state.keys.get(event.key)
    if key is None:
        raise NotFoundError(f"there is no key {event.key!r}", fix="See `tokenmill keys`.")
    if key.disabled:
        raise ConflictError(f"key {event.key} is disabled already")


def created(draft: Draft, event: KeyCreated) -> None:
    """A key was made."""
    draft.changed = True
    draft.shown = True
    draft.keys = draft.keys.set(event.key.id, event.key)


def disabled(draft: Draft, event: KeyDisabled) -> None:
    """A key stops working with the next table."""
    draft.changed = True
    draft.shown = True
    draft.keys = draft.keys.set(event.key, replace(draft.keys[event.key], disabled=True))
