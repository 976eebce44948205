"""JSON Schema of the factory file, from the same models that validate it; editors use it to complete fields.

It says what one document may hold. That names exist and that things fit is only checked by ``load``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_origin, get_type_hints

from tokenmill.domain.stations import FREE_KINDS, STATION_KINDS
from tokenmill.spec.documents import KINDS

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema of one document: one of the kinds."""
    shared: dict[str, Any] = {}
    kinds: dict[str, Any] = {}
    for kind, model in KINDS.items():
        schema = _tidy(model.model_json_schema(ref_template="#/$defs/{model}"))
        shared.update(schema.pop("$defs", {}))
        kinds[f"{kind}_document"] = schema
    line = kinds["line_document"]["properties"]
    for kind, params in STATION_KINDS.items():
        _add_params(shared, params)
        if kind in FREE_KINDS:
            continue
        line[kind] = {"$ref": f"#/$defs/{params.__name__}", "description": f"Parameters of {kind}."}
        if kind == "intake":
            line["data"]["anyOf"] = [{"type": "string"}, {"$ref": f"#/$defs/{params.__name__}"}]
            # A short line may state the path as `data`, so that intake's other parameters stand alone.
            line[kind] = {"type": "object", "description": "Parameters of intake."}
    return {
        "$schema": DIALECT,
        "title": "Tokenmill factory file",
        "description": "One document of a factory file.",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in kinds],
        "$defs": {**kinds, **dict(sorted(shared.items()))},
    }


def _tidy(schema: Any) -> Any:
    """Without pydantic's titles, defaults and ``null``: an empty field is a problem, not a value."""
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {}
    for key, value in schema.items():
        if key == "properties":
            result[key] = {name: _tidy(item) for name, item in value.items()}
        elif key not in ("title", "default"):
            result[key] = _tidy(value)
    kept = [one for one in result.get("anyOf", []) if one != {"type": "null"}]
    if len(kept) == 1:
        del result["anyOf"]
        result = {**kept[0], **result}
    return result


def _add_params(shared: dict[str, Any], params: type) -> None:
    """The schema of a station's parameters, from its dataclass."""
    hints = get_type_hints(params)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for field in dataclasses.fields(params):
        hint, facts = hints[field.name], field.metadata
        if dataclasses.is_dataclass(hint):
            _add_params(shared, hint)  # type: ignore[arg-type]
            properties[field.name] = {"$ref": f"#/$defs/{hint.__name__}", "description": facts["doc"]}  # type: ignore[union-attr]
            continue
        one: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
        if get_origin(hint) is not tuple:
            one = {"type": {str: "string", int: "integer", float: "number", bool: "boolean"}[hint]}
        elif get_args(hint)[0] is not str:
            one = {"type": "array"}
        one |= {"enum": list(facts["choices"])} if facts["choices"] else {}
        one |= {"minimum": facts["least"]} if facts["least"] is not None else {}
        one |= {"maximum": facts["most"]} if facts["most"] is not None else {}
        properties[field.name] = one | {"description": facts["doc"]}
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            required.append(field.name)
    shared[params.__name__] = {
        "type": "object",
        "description": " ".join((params.__doc__ or "").split()),
        "properties": properties,
        "additionalProperties": False,
        **({"required": required} if required else {}),
    }
