"""What every document model has in common: strictness, and the widening of short forms."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict

from tokenmill.spec.fields import fail


class Strict(BaseModel):
    """Unknown fields are refused, and nothing is coerced that a field type did not say."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def listed(value: Any) -> Any:
    return [value] if isinstance(value, dict | str) else value


def named(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [{"name": item} if isinstance(item, str) else item for item in value]


def also(*shorter: dict[str, Any]) -> Any:
    """The JSON Schema of a field that may also be written in a shorter form."""

    def widen(schema: dict[str, Any]) -> None:
        kept = {key: schema.pop(key) for key in ("type", "items", "$ref", "minItems") if key in schema}
        schema["anyOf"] = [kept, *shorter]

    return widen


def span(value: Any) -> Any:
    """2, "1..4" or {min, max} to {min, max}."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"min": value, "max": value}
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,9})(?:\s*\.\.\s*(\d{1,9}))?", value)):
        return {"min": int(match[1]), "max": int(match[2] or match[1])}
    if not isinstance(value, dict):
        fail(f"{value!r} is not a number of replicas", "a number or a range, for example 2 or 1..4")
    return value
