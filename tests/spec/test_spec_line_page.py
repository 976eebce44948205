"""The commented factory files in docs/line.md load as they stand."""

from __future__ import annotations

import re
from pathlib import Path

from tokenmill.spec.factory_file import load

PAGE = Path(__file__).parents[2] / "docs" / "line.md"


def excerpts() -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def test_captured_traffic_fits_in_place_of_the_same_documents(tmp_path: Path) -> None:
    whole, part = excerpts()
    replaced = ("kind: tenant", "kind: line")
    kept = [one for one in whole.split("---\n") if not one.startswith(replaced)]
    path = tmp_path / "factory.yaml"
    path.write_text("---\n".join((*kept, part)))
    factory = load([path], {})
    capture = factory.tenants[0].projects[0].capture
    assert capture is not None
    assert (capture.aliases, capture.keep_us, capture.share_milli) == (("cards",), 30 * 86_400_000_000, 200)
    assert dict(factory.lines[0].stations[0].params) == {"path": "capture:cards", "opinion": "good"}


def test_the_excerpt_is_a_factory_file_without_a_problem(tmp_path: Path) -> None:
    text = excerpts()[0]
    path = tmp_path / "factory.yaml"
    path.write_text(text)
    (line,) = load([path], {}).lines
    assert line.trigger is not None
    assert (line.trigger.new_rows, line.trigger.drift_milli) == (500, 250)
    assert line.trigger.cron == "30 2 * * 1-5"
    assert dict(line.stations[4].params)["bounds"][2] == "ttft_ms_p95 <= 1.5 x base"
