"""Tool calls in a stream as clients expect them, whatever the engine made of them.

An integer ``index`` of its own for each call, ``id`` and name in its first part and in no later one. Clients
that put the parts together rely on it, and engines differ: some leave ``index`` out, give all calls the same
one, repeat ``id`` and name, or send them empty. Parts that are right keep their bytes.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

import orjson

EVENTS = re.compile(rb"\r?\n\r?\n")
_HOLDS = re.compile(rb'"tool_calls"\s*:\s*\[\s*\{')


class Calls:
    """The calls of one stream so far. ``first`` says whether the last ``mend`` saw a call begin."""

    __slots__ = ("_ids", "_names", "_places", "first")

    def __init__(self) -> None:
        self.first = False
        self._ids: dict[int, list[str]] = {}  # by choice: the calls' ids, by their index
        self._names: set[tuple[int, int]] = set()  # the calls of which the name was sent
        self._places: dict[tuple[int, Any], int] = {}  # what the engine calls a call now, and its index

    def mend(self, payload: bytes) -> bytes:
        """Whole events; those with a part that is wrong are written anew."""
        self.first = False
        out, position = [], 0
        for match in EVENTS.finditer(payload):
            out.append(self._event(payload[position : match.end()]))
            position = match.end()
        out.append(payload[position:])
        return b"".join(out)

    def _event(self, event: bytes) -> bytes:
        if _HOLDS.search(event) is None or not event.startswith(b"data:"):
            return event
        try:
            chunk = orjson.loads(event[5:])
        except orjson.JSONDecodeError:
            return event
        choices = chunk.get("choices") if isinstance(chunk, dict) else None
        changed = False
        for choice in choices if isinstance(choices, list) else ():
            delta = choice.get("delta") if isinstance(choice, dict) else None
            if not isinstance(delta, dict):
                continue
            parts = delta.get("tool_calls")
            if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
                continue
            number = choice.get("index")
            mended = [self._part(number if isinstance(number, int) else 0, part) for part in parts]
            changed = changed or mended != parts
            delta["tool_calls"] = mended
        return b"data: " + orjson.dumps(chunk) + b"\n\n" if changed else event

    def _part(self, choice: int, part: dict[str, Any]) -> dict[str, Any]:
        found = part.get("function")
        if not isinstance(found, dict):
            return part  # another kind of tool
        function = dict(found)
        name = function.get("name")
        index, begins = self._place(choice, part.get("index"), part.get("id"), name)
        rest = {key: value for key, value in part.items() if key not in ("index", "id")}
        mended: dict[str, Any] = {"index": index}
        if begins:
            self.first = True
            mended |= {"id": self._ids[choice][index], "type": "function"}
        if name and (choice, index) not in self._names:
            self._names.add((choice, index))
        else:
            function.pop("name", None)
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            function["arguments"] = orjson.dumps(arguments).decode()
        elif arguments is None and (begins or "arguments" in function):
            function["arguments"] = ""
        return {**rest, **mended, "function": function}

    def _place(self, choice: int, index: Any, name_id: Any, name: Any) -> tuple[int, bool]:
        """Which call a part belongs to, and whether it begins it."""
        ids = self._ids.setdefault(choice, [])
        engine = index if isinstance(index, int) and not isinstance(index, bool) else None
        given = name_id if isinstance(name_id, str) else ""
        if given and given in ids:
            return self._at(choice, engine, ids.index(given)), False
        known = self._places.get((choice, engine))
        # Some engines make up a new id for every part; only the first has the name.
        if known is not None and (not name or (not given and engine is not None)):
            return known, False
        ids.append(given or f"call_{secrets.token_hex(12)}")
        return self._at(choice, engine, len(ids) - 1), True

    def _at(self, choice: int, engine: int | None, place: int) -> int:
        self._places[choice, engine] = place
        return place
