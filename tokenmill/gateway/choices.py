"""Long lists of texts in a JSON schema, as llama.cpp can follow them.

It holds an answer to an ``enum`` by trying every value against the whole vocabulary for each token: 2,000
values take seconds, and all who share the engine wait. What the values begin with in common is said once
here, as a ``pattern`` of the same texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tokenmill.gateway.errors import bad_request

FEW = 16
"""Values that cost nothing to speak of as they are."""

AS_THEY_ARE_MOST = 250
"""Values that are no plain texts of a moderate length: these cost about as much as the answer itself."""

MOST = 5_000
LENGTH_MOST = 80
"""So deep may a pattern be nested. Of one of a hundred llama.cpp makes any text, without a word."""

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_SPECIAL = re.compile(r"[.^$*+?()\[\]{}|]")
_DATA = frozenset(("const", "default", "enum", "example", "examples"))
"""Where a schema holds values, in which an ``enum`` means nothing."""


def check_choices(schema: Any, where: str) -> None:
    """Raise ``ApiError`` 400 for lists that would keep the engine from all others."""
    for values in _lists(schema):
        most = MOST if _is_plain(values) else AS_THEY_ARE_MOST
        if len(values) > most:
            text = f"An 'enum' in '{where}' has {len(values)} values; the engine follows {MOST} plain texts"
            rest = f" of at most {LENGTH_MOST} characters, or {AS_THEY_ARE_MOST} values of other kinds."
            raise bad_request(text + rest, where)


def told_once(schema: Any) -> Any:
    """``schema`` with its long lists of plain texts as patterns, each of the same texts."""
    if isinstance(schema, list):
        return [told_once(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    told = {key: value if key in _DATA else told_once(value) for key, value in schema.items()}
    values = schema.get("enum")
    if not isinstance(values, list) or len(values) <= FEW or "pattern" in schema or not _is_plain(values):
        return told
    if schema.get("type", "string") != "string":
        return told
    del told["enum"]
    return {**told, "type": "string", "pattern": f"^{_either(sorted(set(values)))}$"}


def _lists(schema: Any) -> Iterator[list[Any]]:
    if isinstance(schema, dict):
        if isinstance(schema.get("enum"), list):
            yield schema["enum"]
        for key, value in schema.items():
            if key not in _DATA:
                yield from _lists(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _lists(item)


def _is_plain(values: list[Any]) -> bool:
    return all(isinstance(v, str) and len(v) <= LENGTH_MOST and _PLAIN.fullmatch(v) for v in values)


def _either(values: list[str]) -> str:
    """A pattern of one or more sorted texts, each of which occurs once."""
    pairs = zip(values[0], values[-1], strict=False)
    alike = next((n for n, (one, other) in enumerate(pairs) if one != other), len(values[0]))
    rests = [value[alike:] for value in values]
    begun: dict[str, list[str]] = {}
    for rest in rests:
        if rest:
            begun.setdefault(rest[0], []).append(rest)
    said = _SPECIAL.sub(r"\\\g<0>", values[0][:alike])
    if not begun:
        return said
    others = "|".join(_either(group) for group in begun.values())
    return f"{said}({others}){'' if rests[0] else '?'}"
