"""The fixture of the control tests."""

from __future__ import annotations

import pytest
from control_mill import Mill

from tokenmill.domain import events as ev


@pytest.fixture
def mill() -> Mill:
    """A controller that has just taken the lease of an empty factory."""
    made = Mill()
    made.tell(ev.ControllerStarted, 1)
    return made
