"""A controller that did not come up, as whoever started it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenmill.domain.errors import ResourceError
from tokenmill.floor import controller
from tokenmill.spec.paths import Paths

NO_PID = 1 << 30  # more than Linux gives


def test_its_last_words_cannot_drive_a_terminal(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.logs.mkdir()
    paths.log("control").write_text("started\n\x1b]0;owned\x07 no room for " + "x" * 1000 + "\n")
    with pytest.raises(ResourceError) as raised:
        controller.wait_ready(paths, NO_PID)
    said = raised.value.problem.message
    assert said.startswith(f"the controller (pid {NO_PID}) ended: ]0;owned")
    assert said.isprintable()
    assert len(said) < 400
