"""The order of training rows, and what is read from files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.domain.errors import DataError
from tokenmill.engine import examples


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=200), st.integers(1, 17), st.integers(0, 3))
def test_each_epoch_has_every_row_once(lengths: list[int], batch: int, seed: int) -> None:
    ordered = examples.order(lengths, batch, 2, seed)
    assert Counter(ordered) == dict.fromkeys(range(len(lengths)), 2)
    assert ordered == examples.order(lengths, batch, 2, seed)


def test_half_an_epoch_has_half_of_the_rows() -> None:
    ordered = examples.order([5] * 100, 8, 0.5, 0)
    assert len(ordered) == len(set(ordered)) == 50


def test_rows_of_a_batch_have_about_the_same_length() -> None:
    lengths = [1 + (i * 37) % 200 for i in range(640)]
    ordered = examples.order(lengths, 16, 1, 1)
    padded = sum(max(lengths[i] for i in ordered[s : s + 16]) * 16 for s in range(0, 640, 16))
    assert padded / sum(lengths) < 1.1


def test_another_seed_gives_another_order() -> None:
    assert examples.order([5] * 50, 4, 1, 0) != examples.order([5] * 50, 4, 1, 1)


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"messages": []}', '{"messages": [{"role": "user", "content": "x"}]}', '{"messages": [{}]}'],
)
def test_a_broken_row_names_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"messages": [{"role": "assistant", "content": "x"}]}\n' + line + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        examples.read_rows(path)


def test_labels_cover_the_completion_only() -> None:
    row = examples.Example((1, 2, 3, 4), (2, 2)).row()
    assert row == {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]}


def test_labels_of_a_conversation_skip_what_is_given_in_between() -> None:
    row = examples.Example((1, 2, 3, 4, 5), (1, 1, 2, 1)).row()
    assert row["labels"] == [-100, 2, -100, -100, 5]
