"""One document against the model of its kind: pydantic's errors, put into words and places."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tokenmill.domain.errors import Problem
from tokenmill.domain.units import did_you_mean
from tokenmill.spec.documents import KINDS
from tokenmill.spec.source import Document, FieldPath, Found, path_text
from tokenmill.spec.strict import Strict

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list, for example [a, b]",
    "dict_type": "a mapping of fields",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
    "tuple_type": "a list",
    "literal_error": "",
    "too_short": "at least one",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One document with its place. ``model`` is None when it does not fit its kind."""

    kind: str
    name: str
    document: Document
    model: Strict | None

    @property
    def title(self) -> str:
        return f"{self.kind} {self.name}".strip()

    def found(
        self, path: FieldPath, message: str, expected: str = "", fix: str = "", *, key: bool = False
    ) -> Found:
        """A problem with one field of this document."""
        field = ": ".join(part for part in (self.title, path_text(path)) if part)
        return Found(self.document.place(path, key=key), Problem(message, "", field, expected, fix))


_QUOTA_OF = ("tenant", "project", "model")


def identity(document: Document) -> tuple[str, str]:
    """``(kind, name)`` as far as they can be told; prices and quotas are named by what they are about."""
    kind = document.value.get("kind")
    name = document.value.get("model" if kind == "price" else "name")
    if kind == "price" and name and document.value.get("from"):
        name = f"{name} from {document.value['from']}"
    if kind == "quota":
        name = "/".join(str(document.value[part]) for part in _QUOTA_OF if document.value.get(part))
    kind_text = kind if isinstance(kind, str) else ""
    return kind_text, name if isinstance(name, str | int) and kind_text != "factory" else ""  # type: ignore[return-value]


def validate(document: Document, kinds: Mapping[str, type[Strict]] = KINDS) -> tuple[Entry, list[Found]]:
    """The document's model, or everything that is wrong with it. ``kinds`` may be written."""
    kind, name = identity(document)
    entry = Entry(kind, str(name), document, None)
    if kind not in kinds:
        return entry, [_no_kind(document, kinds)]
    found: list[Found] = []
    value = _without_empty(document.value, (), entry, found)
    try:
        model = kinds[kind].model_validate(value)
    except ValidationError as error:
        missing = {one.problem.field for one in found}
        for detail in error.errors(include_url=False):
            if detail["type"] == "literal_error" and isinstance(detail["input"], list):
                continue  # the word that may stand in the list's place; the list has its own problems
            one = _worded(detail, entry, kinds[kind])
            if one.problem.field not in missing and not document.is_bad(
                _written_path(detail["loc"], document)
            ):
                found.append(one)
        return entry, found
    return (
        Entry(kind, str(name), document, None) if found else Entry(kind, str(name), document, model)
    ), found


def _no_kind(document: Document, kinds: Mapping[str, type[Strict]]) -> Found:
    allowed = f"one of {', '.join(kinds)}" if len(kinds) > 1 else next(iter(kinds))
    if "kind" not in document.value:
        problem = Problem("the document has no `kind`", expected=f"kind: {allowed}")
        return Found(document.start, problem)
    written = document.value["kind"]
    fix = did_you_mean(str(written), kinds)
    if written == "traffic":
        fix = "A traffic file is no part of a factory: plan FACTORY --traffic FILE."
    problem = Problem(f"there is no kind {written!r}", "", "kind", allowed, fix)
    return Found(document.place(("kind",)), problem)


def _without_empty(value: Any, path: FieldPath, entry: Entry, found: list[Found]) -> Any:
    """The value without fields that were left empty, each of which is a problem of its own."""
    if isinstance(value, dict):
        kept: dict[str, Any] = {}
        for key, item in value.items():
            if item is None and entry.document.is_bad((*path, key)):
                continue
            if item is None:
                fix = "Write a value, or remove the field."
                found.append(entry.found((*path, key), "is empty", "a value", fix, key=True))
            else:
                kept[key] = _without_empty(item, (*path, key), entry, found)
        return kept
    if isinstance(value, list):
        for index, item in enumerate(value):
            if item is None:
                found.append(entry.found((*path, index), "is empty", "a value"))
        return [_without_empty(v, (*path, i), entry, found) for i, v in enumerate(value) if v is not None]
    return value


def _worded(detail: ErrorDetails, entry: Entry, model: type[BaseModel]) -> Found:
    kind = detail["type"]
    path = _written_path(detail["loc"], entry.document)
    if kind == "extra_forbidden":
        known = _fields_at(model, detail["loc"][:-1])
        written = str(path[-1])
        fix = did_you_mean(written, known, 0.7) or _described(written, _model_at(model, detail["loc"][:-1]))
        fix = fix or did_you_mean(written, known) or f"Its fields are {', '.join(known)}."
        return entry.found(path, "there is no such field", "", fix, key=True)
    if kind == "missing":
        known_field = _field_at(model, detail["loc"])
        return entry.found(path, "is missing", _expected_of(known_field), "")
    context = detail.get("ctx", {})
    if kind == "field":
        return entry.found(path, context["message"], context["expected"], context["fix"])
    if kind == "literal_error":
        return entry.found(path, f"{_shown(detail['input'])} does not fit", context.get("expected", ""))
    expected = _EXPECTED.get(kind)
    message = f"{_shown(detail['input'])} does not fit" if kind != "too_short" else "is empty"
    return entry.found(path, message if expected else detail["msg"], expected or "")


def _expected_of(description: str) -> str:
    text = description.rstrip(".").replace("Name of", "the name of")
    return text[:1].lower() + text[1:]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else repr(value)[:80]


def _written_path(location: tuple[int | str, ...], document: Document) -> FieldPath:
    """The location without the steps that pydantic adds for unions and that short forms leave out."""
    path: FieldPath = ()
    for index, step in enumerate(location):
        last = index == len(location) - 1
        if (*path, step) in document.places or last:
            path = (*path, step)
    if path and isinstance(path[-1], str) and ("[" in path[-1] or "literal" in path[-1]):
        path = path[:-1]
    return path


def _model_at(model: Any, location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The nested model that a location leads to."""
    current: type[BaseModel] | None = model
    for step in location:
        if isinstance(step, int) or current is None or step not in current.model_fields:
            continue
        current = _model_in(current.model_fields[step].annotation)
    return current


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (inner := _model_in(argument)) is not None:
            return inner
    return None


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    nested = _model_at(model, location)
    return list(nested.model_fields) if nested else []


def _described(word: str, model: type[BaseModel] | None) -> str:
    """The first field whose description has this word: ``rate`` is what ``requests_per_second`` is."""
    for name, field in model.model_fields.items() if model and len(word) > 3 else ():
        if word.lower() in re.findall(r"\w+", (field.description or "").lower()):
            return f"Did you mean {name}?"
    return ""


def _field_at(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    nested = _model_at(model, location[:-1])
    info = nested.model_fields.get(str(location[-1])) if nested else None
    return (info.description or "") if info else ""
