"""The simulated controller for the console's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from console_bed import Bed


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    with Bed(tmp_path).opened() as opened:
        yield opened


@pytest.fixture
def served(bed: Bed) -> Bed:
    """The bed with its factory file applied and its models ready."""
    bed.apply()
    return bed
