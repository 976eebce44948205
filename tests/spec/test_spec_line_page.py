"""The commented factory file in docs/line.md loads as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from tokenmill.spec.factory_file import load

PAGE = Path(__file__).parents[2] / "docs" / "line.md"


def test_the_excerpt_is_a_factory_file_without_a_problem(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    path = tmp_path / "factory.yaml"
    path.write_text(text)
    (line,) = load([path], {}).lines
    assert line.trigger is not None
    assert (line.trigger.new_rows, line.trigger.drift_milli) == (500, 250)
    assert line.trigger.cron == "30 2 * * 1-5"
    assert dict(line.stations[4].params)["bounds"][2] == "ttft_ms_p95 <= 1.5 x base"
