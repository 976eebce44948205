"""Parameters of stations: defaults, bounds, and what is said about those that do not fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tokenmill.domain.errors import DataError
from tokenmill.domain.stations import (
    STATION_KINDS,
    CurateParams,
    IntakeParams,
    SplitParams,
    TuneParams,
    station_params,
    station_problems,
)

NEEDED: dict[str, dict[str, Any]] = {
    "intake": {"path": "x"},
    "command": {"command": ["true"]},
    "python": {"entry": "mine:run"},
}


def test_what_is_not_written_has_its_default() -> None:
    assert station_params("intake", {"path": "a.csv"}) == IntakeParams(path="a.csv")
    assert station_params("tune", {}) == TuneParams()
    written = {"labels": ["a"], "split": {"train": 0.5, "validation": 0, "test": 0.5}}
    params = station_params("curate", written)
    assert isinstance(params, CurateParams)
    assert params.split == SplitParams(0.5, 0.0, 0.5)
    assert params.labels == ("a",)


@pytest.mark.parametrize(
    ("kind", "params", "field", "expected"),
    [
        ("intake", {}, "path", "Data file"),
        ("intake", {"path": 3}, "path", "a text"),
        ("intake", {"path": "a", "prompt": "{x}"}, "completion", "both templates"),
        ("intake", {"path": "a", "delimiter": "ab"}, "delimiter", "one character"),
        ("intake", {"path": "a", "format": "xml"}, "format", "one of auto, jsonl, csv"),
        ("curate", {"split": 0.8}, "split", "named values"),
        ("curate", {"split": {"train": 0.8, "tests": 0.2}}, "split.tests", "one of train, validation, test"),
        ("curate", {"split": {"train": 0.5}}, "split", "parts that sum to 1"),
        ("curate", {"labels": ["a", 1]}, "labels", "a list of texts"),
        ("curate", {"redact_pii": 1}, "redact_pii", "true or false"),
        ("tune", {"rank": 0}, "rank", "at least 1"),
        ("tune", {"rank": True}, "rank", "a whole number"),
        ("tune", {"rank": 1.5}, "rank", "a whole number"),
        ("tune", {"lr": float("nan")}, "lr", "a number"),
        ("tune", {"rang": 4}, "rang", "rank"),
        ("gate", {"against": "nobody"}, "against", "one of base, champion, both"),
        ("gate", {"bounds": ["latency is good"]}, "bounds", "NAME >= NUMBER"),
        ("evaluate", {"metric": "regex"}, "pattern", "for the metric regex"),
        ("evaluate", {"metric": "regex", "pattern": "("}, "pattern", "one"),
        ("evaluate", {"also": ["beauty"]}, "also", "one of exact_match"),
        ("python", {"entry": "mine"}, "entry", "module:function"),
        ("python", {"entry": "mine:run", "settings": "[]"}, "settings", "{...}"),
        ("sell", {}, "kind", "one of intake"),
    ],
)
def test_a_bad_parameter_is_named_with_what_was_expected(
    kind: str, params: dict[str, Any], field: str, expected: str
) -> None:
    (problem,) = station_problems(kind, params)
    assert problem.field == field
    assert expected in problem.expected
    with pytest.raises(DataError):
        station_params(kind, params)


def test_every_bad_parameter_is_found_at_once() -> None:
    found = station_problems("tune", {"rank": 0, "alpha": "x", "unknown": 1})
    assert [p.field for p in found] == ["rank", "alpha", "unknown"]


def test_every_parameter_is_documented_and_its_default_fits() -> None:
    for kind, params_type in STATION_KINDS.items():
        defaults = {}
        for field in dataclasses.fields(params_type):
            assert field.metadata["doc"].endswith("."), (kind, field.name)
            if field.default is not dataclasses.MISSING and not dataclasses.is_dataclass(field.default):
                defaults[field.name] = field.default
        assert station_problems(kind, {**NEEDED.get(kind, {}), **defaults}) == ()
