"""``@value`` keeps all that a frozen, slotted dataclass promises; only it is made in another way."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace

import pytest

from tokenmill.domain.value import replace as cheap
from tokenmill.domain.value import value


@value
class Pair:
    left: int
    right: str = "r"
    more: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plain:
    left: int
    right: str = "r"
    more: Mapping[str, int] = field(default_factory=dict)


def test_it_is_frozen_and_slotted() -> None:
    pair = Pair(1)
    with pytest.raises(AttributeError):
        pair.left = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del pair.left
    assert not hasattr(pair, "__dict__")
    assert type(pair) is Pair


def test_fields_defaults_and_repr_are_those_of_a_dataclass() -> None:
    assert is_dataclass(Pair)
    assert [f.name for f in fields(Pair)] == [f.name for f in fields(Plain)]
    assert repr(Pair(1)) == repr(Plain(1)).replace("Plain", "Pair")
    assert Pair(1).more == {}
    assert Pair(1).more is not Pair(1).more
    assert Pair(1, more={"a": 1}).more == {"a": 1}
    assert Pair.__match_args__ == ("left", "right", "more")


def test_it_compares_and_hashes_by_its_fields() -> None:
    assert Pair(1) == Pair(1)
    assert Pair(1) != Pair(2)
    assert Pair(1) != Plain(1)

    @value
    class Point:
        x: int
        y: int = 0

    assert hash(Point(1, 2)) == hash(Point(1, 2))
    assert {Point(1): "a"}[Point(1)] == "a"


def test_it_is_replaced_copied_and_pickled() -> None:
    pair = Pair(1, "x", {"a": 1})
    assert replace(pair, left=2) == Pair(2, "x", {"a": 1})
    for again in (copy.copy(pair), copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):
        assert again == pair
        assert type(again) is Pair


@pytest.mark.parametrize(
    ("given", "named", "why"),
    [((), {}, "'left'"), ((1, "r", {}, 4), {}, "positional"), ((1,), {"no": 1}, "'no'")],
)
def test_a_wrong_call_is_refused(given: tuple[object, ...], named: dict[str, int], why: str) -> None:
    with pytest.raises(TypeError, match=why):
        Pair(*given, **named)  # type: ignore[arg-type]


def test_a_field_that_it_lacks_is_not_replaced() -> None:
    with pytest.raises(TypeError, match="no"):
        cheap(Pair(1), no=1)
    assert cheap(Pair(1), left=3) == Pair(3)
