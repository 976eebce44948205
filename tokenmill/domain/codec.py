"""Domain values to plain JSON values and back. Used by the journal, the table file and the API."""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeVar, get_args

import msgspec

from tokenmill.domain import effects, events
from tokenmill.domain.errors import DataError

T = TypeVar("T")

EVENT_TYPES: dict[str, type] = {t.__name__: t for t in get_args(events.Event)}
EFFECT_TYPES: dict[str, type] = {t.__name__: t for t in get_args(effects.Effect)}


def to_plain(value: Any) -> Any:
    """Turn a dataclass (or a tuple, mapping, enum of such) into dicts, lists, strings and numbers."""
    return msgspec.to_builtins(value)


def from_plain(value: Any, kind: type[T]) -> T:
    """Rebuild a ``kind`` from what ``to_plain`` gave. Raises ``DataError`` when it does not fit."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise DataError(
            f"a stored {kind.__name__} cannot be read: {error}",
            expected="a value written by this version or an older one",
            fix="Upgrade Tokenmill, or restore the store from a backup.",
        ) from error


def parse_json(raw: bytes) -> Any:
    """The values of JSON that somebody else wrote. Raises ``DataError`` that says why it is none.

    The parser has errors of its own for bytes that are no UTF-8, and for nesting without end.
    """
    try:
        return msgspec.json.decode(raw)
    except UnicodeDecodeError:
        why = "it is not UTF-8 text"
    except RecursionError:
        why = "it is nested too deeply"
    except msgspec.DecodeError as error:
        why = str(error)
    raise DataError(f"not JSON: {why}")


def encode_event(event: events.Event) -> tuple[str, bytes]:
    """Return the event's kind and its body as JSON bytes."""
    return type(event).__name__, msgspec.json.encode(event)


def decode_event(kind: str, body: bytes | str) -> events.Event:
    """Rebuild an event. Raises ``DataError`` for a kind or body that this version does not know."""
    event_type = EVENT_TYPES.get(kind)
    if event_type is None:
        raise DataError(
            f"the journal holds an event of unknown kind {kind!r}",
            expected=f"one of {', '.join(sorted(EVENT_TYPES))}",
            fix="Upgrade Tokenmill to the version that wrote it.",
        )
    decoded: events.Event = from_plain(msgspec.json.decode(body), event_type)
    return decoded


def digest_of(value: Any) -> str:
    """``sha256:<hex>`` of a value's canonical JSON: sorted keys, no spaces, UTF-8."""
    text = json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
