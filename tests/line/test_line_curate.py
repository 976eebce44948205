"""Curate: what is dropped and why, that nothing is lost, and that no group is in two splits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.domain.errors import DataError
from tokenmill.domain.redact import redacted
from tokenmill.domain.stations import CurateParams, SplitParams, station_params
from tokenmill.line.curate import curate, split_for
from tokenmill.line.curated import Curated
from tokenmill.line.duplicates import HASHES, RECALL, bands_for, near_pairs
from tokenmill.line.job import StationJob
from tokenmill.line.process import run_station
from tokenmill.line.rows import Row, RowFile, normalised, read_rows, row_of, write_jsonl

ALL_TRAIN = SplitParams(1.0, 0.0, 0.0)


def row(n: int, prompt: str, completion: str = "yes", **columns: Any) -> Row:
    said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return row_of(n, n, said, columns)


def outcome(result: Curated) -> dict[int, str]:
    """Row number -> split, or the kind of reason for which it was dropped."""
    where = {r.n: r.reason.split(":")[0] for r in result.dropped}
    where |= {r.n: name for name, rows in result.splits.items() for r in rows}
    return where


@pytest.mark.parametrize(
    ("completion", "params", "reason"),
    [
        (" ", {}, "empty completion"),
        ("x" * 50, {"max_completion_characters": 20}, "completion too long"),
        ("word " * 200, {"max_tokens": 100}, "too many tokens"),
        ("text", {"answer": "json"}, "completion is not a JSON object"),
        ('{"a":1,"a":2}', {"answer": "json"}, "completion is not a JSON object"),
        ('{"a":NaN}', {"answer": "json"}, "completion is not a JSON object"),
        ('{"a":1}', {"answer": "json", "fields": ["a", "b"]}, "completion has other fields"),
        ("maybe", {"answer": "label", "labels": ["yes", "no"]}, "label not allowed"),
    ],
)
def test_rows_that_break_a_rule_are_dropped_with_the_reason(
    completion: str, params: dict[str, Any], reason: str
) -> None:
    typed = station_params("curate", params)
    assert isinstance(typed, CurateParams)
    result = curate([row(1, "What is it?", completion)], typed)
    assert outcome(result) == {1: reason}


def test_duplicates_conflicts_and_near_duplicates() -> None:
    text = "please reset the password of my account for the customer database today"
    rows = [
        row(1, text),
        row(2, text.upper() + "!"),  # the same but for case and punctuation
        row(3, "Is it open?", "yes"),
        row(4, "is it open", "no"),  # the same question, another answer
        row(5, text + " ok"),  # nearly the same
        row(6, text + " no", "no"),  # nearly the same, but the answer differs: worth learning
    ]
    result = curate(rows, CurateParams(split=ALL_TRAIN))
    assert outcome(result) == {
        1: "train",
        2: "exact duplicate",
        3: "conflicting answers",
        4: "conflicting answers",
        5: "near duplicate",
        6: "train",
    }
    assert [c["rows"] for c in result.conflicts] == [[3, 4]]
    groups = {r.n: r.group for r in result.splits["train"]}
    assert groups[1] == groups[6]
    kept = curate(rows, CurateParams(split=ALL_TRAIN, conflicts="keep", near_duplicates="keep"))
    assert outcome(kept)[4] == outcome(kept)[5] == "train"


def test_a_column_can_name_the_split_and_leaks_are_dropped() -> None:
    rows = [
        row(1, "one question about the weather", "a", part="train"),
        row(2, "One question about the weather!", "b", part="test"),
        row(3, "something else entirely", "a", part="train"),
        row(4, "a third and other thing", "a", part="dev"),
    ]
    result = curate(rows, CurateParams(split_by="part", conflicts="keep"))
    assert outcome(result) == {1: "leaks into held-out rows", 2: "test", 3: "train", 4: "validation"}
    with pytest.raises(DataError, match="has the split 'later'"):
        curate([row(1, "q", "a", part="later")], CurateParams(split_by="part"))


def test_a_held_out_file_takes_its_rows_out_of_training(
    tmp_path: Path, job_of: Callable[..., StationJob]
) -> None:
    rows = [
        {"text": f"question number {i} about {'abcdefghij'[i % 10] * 9}", "label": "x"} for i in range(40)
    ]
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"{r['text']},x\n" for r in rows))
    (tmp_path / "test.csv").write_text(f"text,label\n{rows[3]['text']}?,x\nunseen and new,x\n")
    intake = run_station(job_of("intake", {"path": "train.csv", "prompt": "{text}", "completion": "{label}"}))
    params = {"test_path": "test.csv", "near_duplicates": "keep"}
    job = job_of("curate", params, {"intake": intake})
    result = run_station(job)
    tests = [r.prompt for r in read_rows(job.artifacts.path(result.outputs["test"]))]
    trained = [r.prompt for r in read_rows(job.artifacts.path(result.outputs["train"]))]
    assert tests == [rows[3]["text"] + "?", "unseen and new"]
    assert rows[3]["text"] not in trained
    assert result.metrics["dropped_by_reason"] == {"leaks into held-out rows": 1}
    assert result.metrics["rows_in"] == 42 == result.metrics["kept"] + result.metrics["dropped"]
    assert [e["station"] for e in result.evidence["trail"]] == ["intake", "curate"]
    card = json.loads((job.artifacts.path(result.outputs["card"]) / "card.json").read_text())
    assert card["splits"]["test"]["rows"] == 2
    assert card["source"]["name"] == "train.csv"
    assert (
        "No group of rows is in two splits"
        in (job.artifacts.path(result.outputs["card"]) / "card.md").read_text()
    )


def test_an_empty_split_is_an_error_that_says_what_was_dropped(
    job_of: Callable[..., StationJob], tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt":"a","completion":"b"}\n{"prompt":"c","completion":" "}\n')
    intake = run_station(job_of("intake", {"path": "rows.jsonl"}))
    with pytest.raises(DataError, match=r"no row is left for .*1 empty completion"):
        run_station(job_of("curate", {}, {"intake": intake}))


def test_a_group_column_must_be_there() -> None:
    with pytest.raises(DataError, match="no column 'family'"):
        curate([row(1, "q")], CurateParams(group_by="family"))


def test_max_rows_keeps_a_choice_that_does_not_depend_on_the_order() -> None:
    rows = [row(n, f"{n} times {'xyzuvw'[n % 6] * 8}") for n in range(1, 50)]
    params = CurateParams(split=ALL_TRAIN, max_rows=10, near_duplicates="keep")
    first = {r.prompt for r in curate(rows, params).splits["train"]}
    assert len(first) == 10
    assert first == {r.prompt for r in curate(rows[::-1], params).splits["train"]}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["", "reset my password now", "reset my pasword now", "Reset my password now!", "printer"]
            )
            | st.text("ab ", max_size=6),
            st.sampled_from(["", "yes", "no"]),
            st.integers(0, 5),
        ),
        max_size=40,
    ),
    st.sampled_from(["drop", "group", "keep"]),
    st.sampled_from(["drop", "keep"]),
    st.booleans(),
    st.integers(0, 3),
    st.integers(0, 9),
)
def test_no_row_is_lost_and_no_group_crosses(
    said: list[tuple[str, str, int]], near: str, conflicts: str, grouped: bool, cap: int, held: int
) -> None:
    """Every row ends in one split or in the quarantine with a reason, and no question is in two splits."""
    rows = [row(n, prompt, answer, family=f) for n, (prompt, answer, f) in enumerate(said, start=1)]
    params = CurateParams(
        near_duplicates=near,
        conflicts=conflicts,
        group_by="family" if grouped else "",
        split=SplitParams(0.5, 0.2, 0.3),
        max_rows=cap,
    )
    result = curate(rows[held:], params, rows[:held])
    assert result.rows_in == len(rows) == result.kept + len(result.dropped)
    everything = [r.n for rows in result.splits.values() for r in rows] + [r.n for r in result.dropped]
    assert sorted(everything) == list(range(1, len(rows) + 1))
    assert sum(result.reasons.values()) == len(result.dropped)
    assert all(r.reason for r in result.dropped)
    for key in (lambda r: r.group, lambda r: normalised(r.prompt)):
        where = Counter((key(r), name) for name, rows in result.splits.items() for r in rows)
        assert len({k for k, _ in where}) == len(where)
    if grouped:
        where = Counter((r.columns["family"], name) for name, rows in result.splits.items() for r in rows)
        assert len({k for k, _ in where}) == len(where)


def test_a_group_stays_in_its_split_when_rows_come_and_go() -> None:
    split = SplitParams(0.7, 0.1, 0.2)
    names = Counter(split_for(f"group-{i}", split, seed=3) for i in range(5000))
    assert names["test"] == pytest.approx(1000, abs=120)
    assert names["validation"] == pytest.approx(500, abs=90)
    few = curate(
        [row(n, f"{'abcdefgh'[n % 8] * 12} {n * 977}") for n in range(1, 40)], CurateParams(split=split)
    )
    more = curate(
        [row(n, f"{'abcdefgh'[n % 8] * 12} {n * 977}") for n in range(1, 80)], CurateParams(split=split)
    )
    assert {n: w for n, w in outcome(more).items() if n < 40} == outcome(few)


@given(st.lists(st.text("abcd", min_size=1, max_size=14), max_size=14), st.sampled_from([0.5, 0.7, 0.9, 1.0]))
@settings(max_examples=200, deadline=None)
def test_the_near_duplicate_join_finds_what_comparing_all_pairs_finds(texts: list[str], least: float) -> None:
    def shingles(text: str) -> set[str]:
        return {text[i : i + 5] for i in range(max(1, len(text) - 4))}

    expected = set()
    for later, text in enumerate(texts):
        for earlier in range(later):
            one, other = shingles(text), shingles(texts[earlier])
            if len(one & other) / len(one | other) >= least:
                expected.add((earlier, later))
    assert {(a, b) for a, b, _ in near_pairs(texts, least)} == expected


def test_redaction_finds_addresses_telephones_and_cards_only() -> None:
    text = "Mail a.b@x.co.uk, call +49 (30) 1234 5678; card 4111 1111 1111 1111, order 1234567, 2026-11-22."
    assert redacted(text)[0] == "Mail [EMAIL], call [PHONE]; card [CARD], order 1234567, 2026-11-22."
    assert redacted("card 4111 1111 1111 1112")[1] == Counter()  # the check digit is wrong
    said = [row(1, "I am x@y.org, help"), row(2, "plain")]
    result = curate(said, CurateParams(split=ALL_TRAIN, redact_pii=True))
    assert result.splits["train"][0].prompt == "I am [EMAIL], help"
    assert result.redactions == {"email": 1}
    assert curate(said, CurateParams(split=ALL_TRAIN)).splits["train"][0].prompt == "I am x@y.org, help"


def near_texts(count: int) -> list[str]:
    """Texts in threes: one, the same with a word changed, and the same with a third of it changed."""
    import random

    draw = random.Random(5)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 9))) for _ in range(3000)]
    texts = []
    for _ in range(count):
        text = draw.choices(words, k=40)
        once, often = list(text), list(text)
        once[draw.randrange(40)] = draw.choice(words)
        for at in draw.sample(range(40), 13):
            often[at] = draw.choice(words)
        texts += [" ".join(text), " ".join(once), " ".join(often)]
    return texts


def test_hashed_pairs_are_all_true_and_nearly_all_of_them() -> None:
    texts = near_texts(400)
    exact = set(near_pairs(texts, 0.85))
    hashed = set(near_pairs(texts, 0.85, exact_shingles=0))
    assert len(exact) >= 350
    assert hashed <= exact
    assert len(hashed) >= 0.99 * len(exact)


def test_bands_keep_what_they_promise() -> None:
    for similarity in (0.5, 0.7, 0.85, 0.95):
        bands, rows = bands_for(similarity)
        assert bands * rows <= HASHES
        assert 1 - (1 - similarity**rows) ** bands >= RECALL


def test_many_copies_of_one_text_cost_little() -> None:
    texts = ["the very same long text about a card that was lost " + str(i % 2) for i in range(3000)]
    met = {later for _, later, _ in near_pairs(texts, 0.85, exact_shingles=0)}
    assert met == set(range(1, 3000))


def test_other_languages_are_dropped_when_it_is_plain_that_they_are() -> None:
    rows = [
        row(1, "Wie kann ich meine gestohlene Karte so schnell wie möglich sperren lassen?"),
        row(2, "How can I block my stolen card as quickly as possible, please?"),
        row(3, "top up"),
    ]
    result = curate(rows, CurateParams(split=ALL_TRAIN, languages=("en",)))
    assert outcome(result) == {1: "other language", 2: "train", 3: "train"}
    with pytest.raises(DataError, match="no language 'xx'"):
        curate(rows, CurateParams(languages=("xx",)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("IBAN DE89 3704 0044 0532 0130 00 please", "IBAN [IBAN] please"),
        ("IBAN DE88 3704 0044 0532 0130 00 please", None),
        ("from 192.168.1.20 and 2001:db8:0:0:0:0:0:1.", "from [IP] and [IP]."),
        ("version 1.2.3.400", "version 1.2.3.400"),
        ("SSN 536-90-4399", "SSN [SSN]"),
    ],
)
def test_more_personal_data_of_fixed_form(text: str, expected: str | None) -> None:
    found = redacted(text)[0]
    assert found == expected if expected else "[IBAN]" not in found


@pytest.mark.parametrize(
    "text", ["+49 170 1234567", "+491701234567", "0170 1234567", "030/12345678", "+1 (415) 555-0134"]
)
def test_telephone_numbers_as_people_write_them(text: str) -> None:
    assert redacted(f"Call {text}.")[0] == "Call [PHONE]."


@pytest.mark.parametrize("text", ["0.123456789", "order 10002000300", "0x00001234567", "port 08400"])
def test_other_numbers_stay(text: str) -> None:
    assert redacted(f"See {text}.")[0] == f"See {text}."


def test_a_file_of_rows_is_read_lazily(tmp_path: Path) -> None:
    rows = [row(n, f"prompt number {n}") for n in range(1, 200)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    with closing(RowFile(tmp_path / "rows.jsonl")) as lazy:
        assert len(lazy) == 199
        assert lazy[7] == rows[7]
        assert lazy[3:5] == rows[3:5]
        result = curate(lazy, CurateParams(near_duplicates="keep"))
        assert sum(len(split) for split in result.splits.values()) == 199


@pytest.mark.live  # a process of its own, whose memory can be measured
def test_memory_does_not_grow_with_the_length_of_rows(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from tokenmill.line.rows import RowFile;"
        "from tokenmill.line.curate import curate;"
        "from tokenmill.domain.stations import CurateParams;"
        "curate(RowFile(__import__('pathlib').Path(sys.argv[1])), CurateParams(near_duplicates='keep',"
        "max_prompt_characters=10**6, max_tokens=10**6));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for size in (100, 20_000):
        path = tmp_path / f"{size}.jsonl"
        write_jsonl(path, (row(n, f"{n} " + "x y " * (size // 4)) for n in range(2000)))
        out = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, check=True)
        peaks.append(int(out.stdout) * 1024)
    assert path.stat().st_size > 40_000_000
    assert peaks[1] - peaks[0] < 15_000_000
