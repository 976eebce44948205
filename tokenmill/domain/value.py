"""``@value``: a frozen, slotted dataclass that is cheap to make.

A frozen dataclass sets each field through ``object.__setattr__``, 90 ns a field in CPython 3.11; a step of
the control core makes hundreds of fields. Here a new object is for the length of its ``__init__`` of an open
class with the same slots, which sets a field in 5 ns, and of its own frozen class from then on. All else is
``dataclasses``' own: ``fields``, ``==``, ``hash``, and the error of who tries to change one. ``replace`` here
reads all fields in one call, where that of ``dataclasses`` asks for each by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")

_turn: Callable[[object, type], None] = object.__dict__["__class__"].__set__


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """Make a frozen, slotted dataclass of ``cls``. It has no base and no ``__post_init__``."""
    made: Any = dataclass(frozen=True, slots=True)(cls)
    open_class = type(f"Open{made.__name__}", (), {"__slots__": made.__slots__})
    made.__init__ = _init(made, open_class)
    names = [one.name for one in fields(made)]
    made._values = staticmethod(
        attrgetter(*names) if len(names) > 1 else lambda one: (getattr(one, names[0]),)
    )
    made._place_of = {name: place for place, name in enumerate(names)}
    return made  # type: ignore[no-any-return]


def replace(known: T, /, **changes: Any) -> T:
    """Another ``@value`` of the same class, with ``changes``; ``KeyError`` for a field that it lacks."""
    made: Any = type(known)
    values = [*made._values(known)]
    place_of = made._place_of
    for name, now in changes.items():
        values[place_of[name]] = now
    other: T = made(*values)
    return other


def _init(made: Any, open_class: type) -> Callable[..., None]:
    """The ``__init__`` that ``dataclass`` would write, on an object that is open meanwhile."""
    known: dict[str, Any] = {"turn": _turn, "open_class": open_class, "made": made, "MISSING": MISSING}
    asked: list[str] = []
    lines: list[str] = []
    for one in fields(made):
        asked.append(one.name + _default(one, known))
        if one.default_factory is not MISSING:
            lines.append(f"if {one.name} is MISSING: {one.name} = make_{one.name}()")
        lines.append(f"self.{one.name} = {one.name}")
    body = "\n    ".join(["turn(self, open_class)", *lines, "self.__class__ = made"])
    exec(f"def __init__(self, {', '.join(asked)}):\n    {body}", known)  # noqa: S102 - as dataclasses does it
    init: Any = known["__init__"]
    init.__qualname__ = f"{made.__qualname__}.__init__"
    init.__module__ = made.__module__
    return init  # type: ignore[no-any-return]


def _default(one: Field[Any], known: dict[str, Any]) -> str:
    if one.default_factory is not MISSING:
        known[f"make_{one.name}"] = one.default_factory
        return "=MISSING"
    if one.default is not MISSING:
        known[f"default_{one.name}"] = one.default
        return f"=default_{one.name}"
    return ""
