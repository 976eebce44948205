"""Whatever is given as an id, each verb says that there is no such thing, and never of a path."""

from __future__ import annotations

from typing import Any

import pytest

ODD = ("no/such", "../status", "..", "a b", "a?b=c", "a#b", "a%2Fb", "é", "[red]x", "x\x1b[2J", "/", "")

VERBS = (
    ("jobs show", "there is no job"),
    ("jobs cancel -y", "there is no job"),
    ("cancel -y", "there is no job"),
    ("runs show", "there is no run"),
    ("runs cancel -y", "there is no run"),
    ("runs pause", "there is no run"),
    ("runs resume", "there is no run"),
    ("rerun --from tune", "there is no run"),
    ("run", "there is no line"),
    ("keys disable", "there is no key"),
    ("keys rotate", "there is no key"),
    ("recall -y --reason leaked", "there is no release"),
    ("cordon -y", "there is no node"),
    ("promote -y", "there is no alias"),
    ("rollback -y", "there is no alias"),
    ("trace", "no answer is called"),
    ("why", "nothing is called"),
)


@pytest.mark.parametrize(("words", "said"), VERBS, ids=[words for words, _ in VERBS])
def test_an_odd_id_is_named_as_what_is_not_there(factory: Any, words: str, said: str) -> None:
    for name in ODD:
        assert f"{said} {name!r}" in factory(*words.split(), name, code=4).stderr


def test_an_odd_name_of_a_log_is_refused(factory: Any) -> None:
    for name in ODD:
        assert f"{name!r} is not the name of a log" in factory("logs", name, code=2).stderr
