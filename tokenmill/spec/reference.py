"""The reference pages of the settings and of the factory file, made from the code that reads them.

``python -m tokenmill.spec.reference DOCS`` writes them; a test holds what is there to what this makes.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from tokenmill.domain.stations import STATION_KINDS
from tokenmill.spec import prose
from tokenmill.spec.catalogue import catalogue
from tokenmill.spec.catalogue.listing import LISTED
from tokenmill.spec.catalogue.load import NOUNS
from tokenmill.spec.catalogue.rows import fields_of, required_of
from tokenmill.spec.factory_file import template
from tokenmill.spec.schema import json_schema
from tokenmill.spec.settings import SETTINGS, Setting

MADE = "<!-- Made by `python -m tokenmill.spec.reference docs` from the code. Do not edit. -->\n"


def settings_page() -> str:
    """docs/settings.md"""
    rows = [
        (f"`{s.env}`", _kind(s), f"`{s.default}`" if s.default else "", s.help + _bounds(s)) for s in SETTINGS
    ]
    return "\n".join(
        [
            MADE,
            "# Settings",
            "",
            "A setting is an environment variable. One that is not in this table but begins with",
            "`TOKENMILL_` is refused, as is a value that cannot be read; the error lists them all.",
            "What the factory *is* is written in the [factory file](factory-file.md), not here.",
            "",
            _table(("variable", "type", "default", "what it does"), rows),
            "",
            "Sizes are written as `64MiB` or `2GB`, durations as `50ms`, `30s` or `10m`.",
            "",
            "Names that begin with `TOKENMILL_JOB_` are set for jobs; those with `TOKENMILL_TEST_`,",
            "`TOKENMILL_SHARED_DATA` and `TOKENMILL_REQUIRE_ALL` are for the test suite.",
            "",
        ]
    )


def factory_page() -> str:
    """docs/factory-file.md"""
    schema = json_schema()
    parts = [MADE, prose.INTRODUCTION]
    for name, one in schema["$defs"].items():
        if name.endswith("_document"):
            parts.append(_section(f"kind: {name.removesuffix('_document')}", one, "##"))
    parts.append("## Parts of documents\n")
    used = {params.__name__ for params in STATION_KINDS.values()} | {"SplitParams"}
    for name, one in schema["$defs"].items():
        if not name.endswith("_document") and name not in used:
            parts.append(_section(_part_title(name), one, "###"))
    parts.append(prose.STATIONS)
    parts += [_station_section(kind, params) for kind, params in STATION_KINDS.items()]
    parts.append(_catalogue_section())
    parts.append(_rows_section())
    parts.append(f"## A first file\n\n`tokenmill init` writes this one:\n\n```yaml\n{template()}```\n")
    return "\n".join(parts)


def schema_text() -> str:
    """docs/factory.schema.json"""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def pages() -> dict[str, str]:
    """Every generated file, by its name in docs/."""
    return {
        "settings.md": settings_page(),
        "factory-file.md": factory_page(),
        "factory.schema.json": schema_text(),
    }


def _kind(setting: Setting) -> str:
    return " or ".join(f"`{c}`" for c in setting.choices) if setting.choices else setting.type


def _bounds(setting: Setting) -> str:
    if setting.type in ("integer", "number") and setting.high is not None:
        return f" From {setting.low or 0:g} to {setting.high:g}."
    return ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _part_title(name: str) -> str:
    words = name.removesuffix("Fields").removesuffix("Params")
    return {"ReplicaRange": "replicas", "Quota": "quota", "Resource": "resources", "Rack": "racks"}.get(
        words, words.lower()
    )


def _section(title: str, schema: dict[str, Any], level: str) -> str:
    required = schema.get("required", [])
    rows = [
        (f"`{name}`", _type_of(one), "yes" if name in required else "", one.get("description", ""))
        for name, one in schema["properties"].items()
        if name != "kind" or level == "###"
    ]
    table = _table(("field", "value", "required", "what it is"), rows)
    return f"{level} {title}\n\n{schema.get('description', '')}\n\n{table}\n"


def _type_of(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type_of(one) for one in schema["anyOf"]))
    if "$ref" in schema:
        return "mapping, see " + _part_title(schema["$ref"].rpartition("/")[2])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "examples" in schema:
        return f"such as `{schema['examples'][0]}`"
    if schema.get("type") == "array":
        inner = _type_of(schema.get("items", {}))
        return f"list of {inner}" if inner else "list"
    if "minimum" in schema and "maximum" in schema:
        return f"{schema['minimum']} to {schema['maximum']}"
    return {"string": "text", "object": "mapping"}.get(
        str(schema.get("type", "")), str(schema.get("type", ""))
    )


def _station_section(kind: str, params: type) -> str:
    return f"### {kind}\n\n{' '.join((params.__doc__ or '').split())}\n\n{_params_table(params, '')}\n"


def _params_table(params: type, prefix: str) -> str:
    return _table(("parameter", "value", "default", "what it does"), _params_rows(params, prefix))


def _params_rows(params: type, prefix: str) -> list[tuple[str, ...]]:
    hints = get_type_hints(params)
    rows: list[tuple[str, ...]] = []
    for field in dataclasses.fields(params):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            rows += _params_rows(hint, f"{prefix}{field.name}.")  # type: ignore[arg-type]
            continue
        choices = field.metadata["choices"]
        value = ", ".join(f"`{c}`" for c in choices) if choices else _word(hint)
        missing = field.default is dataclasses.MISSING
        default = "required" if missing else f"`{json.dumps(field.default)}`"
        rows.append((f"`{prefix}{field.name}`", value, default, field.metadata["doc"]))
    return rows


def _word(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return "list of text"
    return {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}.get(hint, "")


def _catalogue_section() -> str:
    known = catalogue()
    parts = [prose.CATALOGUE]
    for noun, (columns, cells) in LISTED.items():
        rows = [(f"`{one.id}`", *cells(one), one.source) for one in getattr(known, noun).values()]
        heads = (noun, *(column.removeprefix(">") for column in columns), "check against")
        parts.append(_table(heads, rows) + "\n")
    return "\n".join(parts)


def _rows_section() -> str:
    """The fields of each noun's rows, with their units."""
    parts = [prose.ROWS]
    for noun, (kind, _, _) in NOUNS.items():
        required = required_of(kind)
        rows = [
            (f"`{field}`", expected, "yes" if field in required or field == "source" else "")
            for field, expected in fields_of(kind).items()
        ]
        table = _table(("field", "value", "required"), rows)
        parts.append(f"### {noun} of a catalogue\n\n{table}\n")
    return "\n".join(parts)


def main(arguments: Sequence[str]) -> int:
    """Write the pages into the directory that the only argument names."""
    target = Path(arguments[0] if arguments else "docs")
    for name, text in pages().items():
        (target / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
