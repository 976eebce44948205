"""Bounds as people write them."""

from __future__ import annotations

import pytest

from tokenmill.domain.bounds import Bound, parse_bound


@pytest.mark.parametrize(
    ("text", "at_most", "reference", "limit"),
    [
        ("safety_milli >= 900", False, "", 900),
        ("ttft_ms_p95<=1.5 x base", True, "base", 150),
        ("f1_milli >= champion - 20", False, "champion", 80),
        ("f1_milli >= base", False, "base", 100),
        ("loss <= base + 0.5", True, "base", 100.5),
        ("x >= -3", False, "", -3),
    ],
)
def test_a_bound_is_read(text: str, at_most: bool, reference: str, limit: float) -> None:
    found = parse_bound(text)
    assert isinstance(found, Bound)
    assert (found.at_most, found.reference, found.limit(100)) == (at_most, reference, limit)


@pytest.mark.parametrize(
    "text", ["", "f1", "f1 > 3", "f1 >= best", "f1 >= 3 base", "F1 >= 3", "f1 <= 1 x base - 2"]
)
def test_what_is_no_bound_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no bound"):
        parse_bound(text)
