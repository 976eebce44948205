"""A trace file as arrivals: its layout, its windows, and what is refused."""

from __future__ import annotations

import gzip
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("numpy", reason="the twin's core needs the extra [twin]")

from tokenmill.domain.errors import DataError
from tokenmill.twin.replay import Replay, at_rate, read_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"{n * 0.5},100,{10 + n}\n" for n in range(40))
MOONCAKE = "".join(
    f'{{"timestamp": {3000 * (n // 10)}, "input_length": 600, "output_length": 9, "hash_ids": [1, {n}]}}\n'
    for n in range(40)
)


def trace(folder, text, name="trace.csv"):
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_a_table_that_a_spreadsheet_wrote_is_read(tmp_path, name):
    """With a byte order mark and carriage returns."""
    text = "\ufeffarrival_s,input_tokens,output_tokens\r\n0,10,5\r\n1,11,6\r\n"
    found = [(row.at_s, row.input_tokens) for row in read_trace(trace(tmp_path, text, name))]
    assert found == [(0.0, 10), (1.0, 11)]


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_windows_cut_a_trace_without_loss_and_go_on_from_its_start(tmp_path, name):
    replay = Replay(read_trace(trace(tmp_path, AZURE, name)), seed=1, alias=2)
    assert replay.per_second == pytest.approx(2.0)
    parts = [replay.window(1, at, at + 7.0) for at in np.arange(0, 42, 7.0)]
    whole = np.concatenate(parts)
    assert len(whole) == 84
    assert set(whole["alias"]) == {2}
    assert all(a <= b for a, b in pairwise(whole["at"]))
    assert list(whole["output"][:40]) == list(whole["output"][40:80])


def test_another_rate_stretches_it(tmp_path):
    replay = Replay(read_trace(trace(tmp_path, AZURE)), seed=1)
    fast = at_rate(replay, 8.0)
    assert fast.per_second == pytest.approx(8.0)
    assert fast.length_s == pytest.approx(replay.length_s / 4)


def test_rounded_clocks_are_spread_and_blocks_kept(tmp_path):
    replay = Replay(read_trace(trace(tmp_path, MOONCAKE)), seed=1, offset=1000)
    assert len(set(replay.requests["at"])) == 40
    assert replay.requests["key"].min() == 1000
    assert len(replay.units) == 80


@pytest.mark.parametrize(
    ("text", "said", "where"),
    [
        ("", "no trace that is known", ":1"),
        ("a,b\n1,2\n", "no trace that is known", ":1"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "has no requests", ":1"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n0,5,nan\n", "GeneratedTokens is nan", ":2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n0,5,6\n1,-2,6\n", "ContextTokens is -2", ":3"),
        ('{"timestamp": 0, "input_length": 5}\n', "output_length is missing", ":1"),
    ],
)
def test_a_bad_trace_is_refused_with_file_line_and_field(tmp_path, text, said, where):
    path = trace(tmp_path, text)
    with pytest.raises(DataError, match=said) as caught:
        read_trace(path)
    assert caught.value.problem.where == f"{path}{where}"


def test_impossible_speeds_and_files_are_refused(tmp_path):
    rows = read_trace(trace(tmp_path, AZURE))
    for speed in (0.0, float("nan"), -1.0):
        with pytest.raises(DataError, match="speed"):
            Replay(rows, 1, speed=speed)
    with pytest.raises(DataError, match="at one time"):
        Replay(rows[:1], 1)
    with pytest.raises(DataError, match="cannot be read"):
        read_trace(tmp_path / "none.csv")
