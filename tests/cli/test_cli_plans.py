"""Saved plans: applied as they were written, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from console_bed import Bed


@pytest.fixture
def saved(factory: Any, bed: Bed, tmp_path: Path) -> Path:
    """A plan that would change a deployment."""
    bed.file.write_text(bed.file.read_text().replace("slots: 4", "slots: 2", 1))
    factory("plan", "--out", "plan.json")
    return tmp_path / "plan.json"


@pytest.mark.parametrize(
    "edit",
    [
        lambda made: made["changes"].pop(),
        lambda made: made["factory"]["deployments"][0].update(replicas=9),
        lambda made: made.update(base_version=made["base_version"] + 1),
        lambda made: made.pop("seal"),
        lambda made: made.pop("forecast"),
    ],
)
def test_a_plan_that_was_changed_by_hand_is_not_applied(
    factory: Any, bed: Bed, saved: Path, edit: Any
) -> None:
    made = json.loads(saved.read_text())
    edit(made)
    saved.write_text(json.dumps(made))
    before = bed.runtime.state
    found = factory("apply", "plan.json", "-y", code=10).stderr
    assert "not as tokenmill plan wrote it" in found
    assert "plan again" in found
    assert "plan.json" in found
    assert bed.runtime.state is before


@pytest.mark.parametrize("text", [b'{"format": "\xe9"}', b"[" * 100_000, b"{", b"[]"])
def test_what_is_no_plan_is_named(factory: Any, saved: Path, text: bytes) -> None:
    saved.write_bytes(text)
    found = factory("apply", "plan.json", "-y", code=10).stderr
    assert "this is not a plan" in found
    assert "plan.json" in found


def test_a_plan_that_is_only_laid_out_anew_is_applied(factory: Any, saved: Path) -> None:
    made = json.loads(saved.read_text())
    saved.write_text(json.dumps(dict(reversed(made.items()))))
    assert factory.json("apply", "plan.json", "-y")["version"] == 2


def test_a_plan_without_changes_is_stale_too_once_the_factory_moved_on(factory: Any, bed: Bed) -> None:
    factory("plan", "--out", "plan.json")
    assert factory.json("apply", "plan.json") == {"version": 1, "changed": False}
    bed.file.write_text(bed.file.read_text().replace("slots: 4", "slots: 2", 1))
    factory("apply", "-y")
    assert "Plan again" in factory("apply", "plan.json", code=5).stderr
