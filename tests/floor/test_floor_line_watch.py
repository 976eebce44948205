"""What the floor sees of a line's data: only what is whole, and only what was added."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

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
    watch = LineWatch(tmp_path, tmp_path / "captures")

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
        (event,) = LineWatch(tmp_path, tmp_path / "captures").look([line(path)], EVERY_US)
        assert sum(event.profile) == 0


def test_packed_files_and_parquet_are_counted_by_rows_as_intake_counts_them(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    from tokenmill.domain.stations import IntakeParams
    from tokenmill.line.files import Source

    rows = [{"prompt": f"where is card {i}", "completion": "arrival"} for i in range(70)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text(text)
    with gzip.open(folder / "b.jsonl.gz", "wt") as file:
        file.write(text)
    pq.write_table(pa.Table.from_pylist(rows), folder / "c.parquet")
    watch = LineWatch(tmp_path, tmp_path / "captures")
    (event,) = watch.look([line("in")], EVERY_US)
    assert sum(event.profile) == 210
    lengths, words = [0] * len(event.profile), [0] * len(event.words)
    for path in sorted(folder.iterdir()):
        source = Source(path, IntakeParams(path="in"))
        assert len(list(source.read())) == 70
        lengths = [a + b for a, b in zip(lengths, source.profile.lengths, strict=True)]
        words = [a + b for a, b in zip(words, source.profile.words, strict=True)]
    assert (tuple(lengths), tuple(words)) == (event.profile, event.words)

    pq.write_table(pa.Table.from_pylist(rows[:10]), folder / "c.parquet")
    (folder / "d.parquet").write_bytes(b"PAR1 no")
    (event,) = watch.look([line("in")], 2 * EVERY_US)
    assert sum(event.profile) == 150
