"""One field of a factory or traffic file set to another value, as a sweep does it: ``deployment.chat.slots``.

The value takes the place of what was written, before anything is checked: one that does not fit is refused
with the file and line of the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from tokenmill.domain.errors import UsageError
from tokenmill.domain.units import did_you_mean
from tokenmill.spec.source import Document, plain_scalar

TRAFFIC = "traffic"


@dataclass(frozen=True, slots=True)
class Override:
    """``field`` is KIND.NAME.PATH, or traffic.PATH; ``text`` the value as it would be written."""

    field: str
    text: str

    @property
    def of_traffic(self) -> bool:
        return self.field.partition(".")[0] == TRAFFIC


def overridden(
    layer: Mapping[tuple[str, str], Document], override: Override
) -> dict[tuple[str, str], Document]:
    """The documents with one field changed. Raises ``UsageError`` that names what there is."""
    kind, _, rest = override.field.partition(".")
    names = sorted(name for of, name in layer if of == kind)
    name = max((n for n in names if rest == n or rest.startswith(f"{n}.")), key=len, default=None)
    if name is None:
        known = [f"{of}.{one}" for of, one in sorted(layer) if one] + [TRAFFIC]
        raise UsageError(
            f"there is no document {override.field!r}",
            expected=f"KIND.NAME.FIELD, of {', '.join(known[:20])}",
            fix=did_you_mean(".".join(override.field.split(".")[:2]), known),
        )
    path = rest[len(name) :].removeprefix(".")
    return {**layer, (kind, name): changed(layer[kind, name], path, override)}


def changed(document: Document, path: str, override: Override) -> Document:
    """A copy of the document whose field at ``path`` (steps with dots) has the override's value."""
    steps = [int(step) if step.isdecimal() else step for step in path.split(".") if step]
    if not steps:
        raise UsageError(f"{override.field!r} names no field", expected="KIND.NAME.FIELD=VALUE,VALUE")
    value: Any = deepcopy(document.value)
    at = value
    for number, step in enumerate(steps[:-1]):
        at = _next(at, step, steps[number + 1], override)
    last = steps[-1]
    if not isinstance(at, dict):
        raise UsageError(f"{override.field}: {last!r} is no field", expected="a field of a mapping")
    at[last] = plain_scalar(override.text)
    return replace(document, value=value)


def _next(at: Any, step: str | int, then: str | int, override: Override) -> Any:
    """One step down; a mapping that is not written yet is made, an item of a list is not."""
    if isinstance(at, list):
        found = step if isinstance(step, int) else _named(at, step)
        if found is None or found >= len(at):
            raise UsageError(
                f"{override.field}: the list has no item {step!r}", expected=f"0 to {len(at) - 1}, or a name"
            )
        return at[found]
    if isinstance(at, dict):
        if step not in at and isinstance(then, int):
            raise UsageError(f"{override.field}: {step!r} is not written", expected="a field that is written")
        return at.setdefault(step, {})
    raise UsageError(f"{override.field}: {step!r} is below a value", expected="a field of a mapping")


def _named(items: list[Any], name: str) -> int | None:
    """The item of a list that has this name, or is for this deployment."""
    for number, item in enumerate(items):
        if isinstance(item, dict) and name in (item.get("name"), item.get("deployment")):
            return number
    return None
