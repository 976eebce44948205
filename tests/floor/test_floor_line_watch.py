"""What the floor sees of a line's data: only what is whole, and only what was added."""

from __future__ import annotations

from pathlib import Path

from tokenmill.domain.factory import Line, Station
from tokenmill.domain.trigger import Trigger
from tokenmill.floor.line_watch import EVERY_US, LineWatch

ANY = Trigger(new_rows=1)


def line(path: str, trigger: Trigger | None = ANY) -> Line:
    return Line("l", "t", "p", "base", (Station("intake", "intake", params={"path": path}),), trigger=trigger)


def test_rows_of_a_folder_are_counted_as_they_come(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text("{}\n\n{}\n{half")
    watch = LineWatch(tmp_path)

    def rows(turn: int) -> int:
        (event,) = watch.look([line("in"), line("in", None)], turn * EVERY_US)
        assert event.line == "l"
        return sum(event.profile)

    assert rows(1) == 2
    with (folder / "a.jsonl").open("a") as file:
        file.write("done}\n")
    (folder / "b.jsonl").write_text("{}\n")
    (folder / ".c.jsonl").write_text("{}\n")
    assert watch.look([line("in")], EVERY_US + 1) == []
    assert rows(2) == 4
    (folder / "a.jsonl").write_text("{}\n")
    assert rows(3) == 2


def test_what_is_not_there_or_elsewhere_has_no_rows(tmp_path: Path) -> None:
    for path in ("absent.jsonl", "s3://bucket/x.jsonl"):
        (event,) = LineWatch(tmp_path).look([line(path)], EVERY_US)
        assert sum(event.profile) == 0
