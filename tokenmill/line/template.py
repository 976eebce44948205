"""Templates over a row's columns: ``"{subject}: {text}"``. Names only: no attributes, indexes or formats."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tokenmill.domain.errors import DataError

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NAME = re.compile(r"[^\s{}.\[\]!:][^{}.\[\]!:]*")


def columns_of(template: str) -> tuple[str, ...]:
    """Names of the columns that ``template`` uses. Raises ``DataError`` for one that cannot be read."""
    names = []
    for part in _PART.finditer(template):
        if part.group(0) in ("{{", "}}"):
            continue
        name = part.group(1)
        if name is None or not _NAME.fullmatch(name):
            raise DataError(
                f"{part.group(0)!r} in the template {template!r} is not a column",
                expected="{column} with a plain name",
                fix="Write {{ and }} for braces that are part of the text.",
            )
        names.append(name)
    return tuple(names)


def fill(template: str, columns: Mapping[str, Any]) -> str:
    """``template`` with every column's text. Raises ``KeyError`` naming a column that is missing."""

    def value(part: re.Match[str]) -> str:
        if part.group(0) in ("{{", "}}"):
            return part.group(0)[0]
        found = columns[part.group(1)]
        if found is None:
            raise KeyError(part.group(1))
        return found if isinstance(found, str) else str(found)

    return _PART.sub(value, template)
