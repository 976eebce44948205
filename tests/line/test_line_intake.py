"""Intake: rows of every form, and every way in which a row or a file can be broken."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.domain.errors import DataError, ResourceError
from tokenmill.domain.stations import IntakeParams
from tokenmill.line.files import Source
from tokenmill.line.intake import read_source
from tokenmill.line.intake import run as run_intake
from tokenmill.line.job import StationJob
from tokenmill.line.rows import Refused, Row, read_rows

GOOD = {"prompt": "hello", "completion": "greeting"}

JobOf = Callable[..., StationJob]


def read(path: Path, **params: Any) -> tuple[Source, list[Row | Refused]]:
    source = Source(path, IntakeParams(path=path.name, **params))
    return source, list(read_source(source))


def test_chat_and_prompt_rows_are_read_and_numbered(tmp_path: Path) -> None:
    chat = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        "kind": "x",
    }
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{json.dumps(chat)}\n{json.dumps(GOOD)}")
    source, items = read(path, system="Be brief.")
    first, second = items
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert (first.n, first.line, second.n, second.line) == (1, 2, 2, 3)
    assert first.columns == {"kind": "x"}
    assert [m["role"] for m in first.messages] == ["system", "user", "assistant"]
    assert second.prompt == "hello"
    assert second.completion == "greeting"
    assert source.blank_lines == 1
    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "a", "compl', "not JSON"),
        (b"[1, 2]", "a JSON list instead of an object"),
        (b'{"text": "a"}', "neither 'messages' nor"),
        (b'{"prompt": 1, "completion": "a"}', "must be texts"),
        (b'{"messages": []}', "not a list with messages"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "not the assistant's"),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', "no user message"),
        (b'{"messages": [{"role": "robot", "content": "a"}]}', "no role out of"),
        (b'{"messages": [{"role": "user", "content": null}]}', "content is not a text"),
        (b'{"prompt": "caf\xe9", "completion": "a"}', "byte 61 of the file is not utf-8"),
        (b'{"prompt": "' + b"a" * 600 + b'"}', "longer than 500 bytes"),
    ],
)
def test_a_broken_jsonl_row_is_quarantined_with_its_line_and_reason(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(GOOD).encode()
    path.write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
    source, items = read(path, max_row_bytes=500)
    assert [type(i) for i in items] == [Row, Refused, Row]
    assert isinstance(items[1], Refused)
    assert items[1].line == 2
    assert reason in items[1].reason
    assert source.records == 3


def test_csv_takes_quotes_newlines_and_templates(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'\xef\xbb\xbftext,label\r\n"a, ""b""\r\nc",x\r\nplain,y\r\n')
    _, items = read(path, prompt="Say: {text}", completion="{label}")
    assert [i.prompt for i in items if isinstance(i, Row)] == ['Say: a, "b"\r\nc', "Say: plain"]
    assert [i.line for i in items] == [2, 4]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b'"never closed,x', "never closed"),
        (b'"closed" badly,x', "broken quotes"),
        (b"one", "1 columns where the header has 2"),
        (b"a,b,c", "3 columns"),
        (b"caf\xe9,x", "is not utf-8"),
    ],
)
def test_a_broken_csv_row_costs_only_itself(tmp_path: Path, broken: bytes, reason: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"text,label\nfirst,x\n" + broken + b"\nsecond,y\nthird,z\n")
    source, items = read(path, prompt="{text}", completion="{label}")
    refused = [i for i in items if isinstance(i, Refused)]
    assert [(r.line, r.n) for r in refused] == [(3, 2)]
    assert reason in refused[0].reason
    assert [i.prompt for i in items if isinstance(i, Row)] == ["first", "second", "third"]
    assert source.records == 4


def test_a_packed_file_is_read_and_a_cut_one_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    packed = gzip.compress(b"".join(json.dumps({**GOOD, "i": i}).encode() + b"\n" for i in range(500)))
    path.write_bytes(packed)
    assert len(read(path)[1]) == 500
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="packed file is broken"):
        read(path)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_rows": 2}, "more than 2 rows"),
        ({"max_bytes": 50}, "more than 50 bytes"),
        ({"prompt": "{missing}", "completion": "{label}"}, "columns that the file does not have: missing"),
        ({"prompt": "{text.__class__}", "completion": "{label}"}, "is not a column"),
    ],
)
def test_limits_and_templates_refuse_the_file(tmp_path: Path, params: dict[str, Any], message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "some text,x\n" * 20)
    with pytest.raises(DataError, match=message):
        read(path, **{"prompt": "{text}", "completion": "{label}", **params})


def test_header_errors_name_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,text\na,b\n")
    with pytest.raises(DataError, match="empty or repeated names") as caught:
        read(path)
    assert caught.value.problem.where.endswith("rows.csv:1")


def test_too_many_broken_rows_fail_with_the_first_places(tmp_path: Path, job_of: JobOf) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(GOOD)] * 8 + ["{", "nope"]))
    with pytest.raises(DataError, match=r"2 of 10 rows are broken; the first: line 9: not JSON"):
        run_intake(job_of("intake", {"path": "rows.jsonl", "max_broken_fraction": 0.1}))
    job = job_of("intake", {"path": "rows.jsonl", "max_broken_fraction": 0.2})
    result = run_intake(job)
    assert (result.metrics["rows_in"], result.metrics["rows"], result.metrics["quarantined"]) == (10, 8, 2)
    rows = list(read_rows(job.artifacts.path(result.outputs["rows"])))
    quarantine = job.artifacts.path(result.outputs["intake_quarantine"]).read_text().splitlines()
    assert sorted([r.n for r in rows] + [json.loads(q)["n"] for q in quarantine]) == list(range(1, 11))


def test_a_missing_or_empty_file_says_so(tmp_path: Path, job_of: JobOf) -> None:
    with pytest.raises(DataError, match="no such data file"):
        run_intake(job_of("intake", {"path": "absent.jsonl"}))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no usable row"):
        run_intake(job_of("intake", {"path": "empty.jsonl"}))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=30), st.sampled_from(["jsonl", "csv"]))
def test_no_line_is_ever_lost(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], form: str
) -> None:
    """Whatever bytes come, each record comes out once, as a row or with a reason, in order."""
    path = tmp_path_factory.mktemp("any") / f"rows.{form}"
    head = b"prompt,completion\n" if form == "csv" else b""
    path.write_bytes(head + b"\n".join(line.replace(b"\n", b"") for line in lines))
    source, items = read(path, max_row_bytes=64)
    assert [i.n for i in items] == list(range(1, source.records + 1))
    assert all(i.reason for i in items if isinstance(i, Refused))
    starts = [i.line for i in items]
    assert starts == sorted(set(starts))
    if form == "jsonl":
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        assert source.records == sum(1 for line in content.split(b"\n") if line.strip())


def chat_row(**more: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    return {"messages": said, **more}


def test_tools_and_calls_become_text_that_can_be_learnt(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"city": "Rome"}'}}
    row = {
        "messages": [
            {"role": "system", "content": "Help."},
            {"role": "user", "content": [{"type": "text", "text": "Hotels in Rome?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0},
            {"role": "tool", "tool_call_id": "c1", "content": "[]"},
            {"role": "assistant", "content": "None."},
        ],
        "tools": [{"type": "function", "function": {"name": "find", "parameters": {}}}],
    }
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    (found,) = read(path)[1]
    assert isinstance(found, Row)
    assert [m["role"] for m in found.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert found.messages[0]["content"].startswith("Help.\n\nYou can call")
    assert (
        '<tools>\n{"name": "find", "description": "", "parameters": {}}\n</tools>'
        in found.messages[0]["content"]
    )
    expected = '<tool_call>{"name": "find", "arguments": {"city": "Rome"}}</tool_call>'
    assert found.messages[2] == {"role": "assistant", "content": expected, "weight": "0"}
    assert not found.columns


def test_preference_rows_keep_the_worse_answer(tmp_path: Path) -> None:
    def pair(better: str, worse: str) -> str:
        sides = {
            "preferred_output": [{"role": "assistant", "content": better}],
            "non_preferred_output": [{"role": "assistant", "content": worse}],
        }
        return json.dumps({"input": {"messages": [{"role": "user", "content": "q"}]}, **sides})

    path = tmp_path / "rows.jsonl"
    path.write_text(f"{pair('good', 'bad')}\n{pair('same', 'same')}\n")
    first, second = read(path)[1]
    assert isinstance(first, Row)
    assert (first.completion, first.rejected) == ("good", "bad")
    assert isinstance(second, Refused)
    assert "are equal" in second.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0] has no role out of"),
        (
            {"messages": [{"role": "assistant", "content": " "}, *chat_row()["messages"]]},
            "messages[0] is an empty turn of the assistant",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "type 'image_url'"),
        (
            {"messages": [chat_row()["messages"][0], {"role": "assistant", "content": "a", "weight": 0}]},
            "has weight 0",
        ),
        (
            {"messages": [chat_row()["messages"][0], {"role": "assistant", "tool_calls": [{}]}]},
            "tool_calls[0] names no function",
        ),
        ({"tools": {}} | {"tools": [1]}, "'tools' is not a list of functions"),
    ],
)
def test_a_bad_conversation_says_where(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(chat_row(**change)))
    (found,) = read(path)[1]
    assert isinstance(found, Refused)
    assert reason in found.reason


def test_a_second_row_of_the_same_id_is_quarantined(tmp_path: Path, job_of: JobOf) -> None:
    rows = [chat_row(key=name) for name in ("a", "b", "a", "c")] + [chat_row()]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    job = job_of("intake", {"path": "rows.jsonl", "id": "key", "max_broken_fraction": 0.5})
    result = run_intake(job)
    assert (result.metrics["rows"], result.metrics["quarantined"]) == (3, 2)
    assert result.metrics["first_reasons"] == [
        "line 3: key 'a' is that of row 1 already",
        "line 5: has no 'key' to name it",
    ]


def test_parquet_a_folder_and_an_uploaded_file(tmp_path: Path, job_of: JobOf) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    folder = tmp_path / "in"
    folder.mkdir()
    table = pa.table({"text": [f"t{i}" for i in range(3000)], "label": ["x"] * 3000})
    pq.write_table(table, folder / "a.parquet")
    (folder / "b.csv").write_text("text,label\nlast,y\n,\n")
    (folder / ".hidden.csv").write_text("not data")
    (folder / "notes.md").write_text("not data either")
    job = job_of("intake", {"path": "in", "prompt": "{text}", "completion": "{label}"})
    result = run_intake(job)
    assert (result.metrics["files"], result.metrics["rows"], result.metrics["quarantined"]) == (2, 3002, 0)
    numbers = [row.n for row in read_rows(job.artifacts.path(result.outputs["rows"]))]
    assert numbers == list(range(1, 3003))
    digest = job.artifacts.put_file(folder / "a.parquet")
    job = job_of("intake", {"path": f"artifact:{digest}", "prompt": "{text}", "completion": "{label}"})
    assert run_intake(job).metrics["rows"] == 3000
    (folder / "a.parquet").write_bytes((folder / "a.parquet").read_bytes()[:500])
    with pytest.raises(DataError, match="Parquet file is broken"):
        run_intake(job_of("intake", {"path": "in/*.parquet", "prompt": "{text}", "completion": "{label}"}))


def test_a_remote_store_is_read_through_fsspec(job_of: JobOf) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for name, text in (("one.jsonl", "q1"), ("two.jsonl", "q2")):
        row = chat_row()
        row["messages"][0]["content"] = text
        memory.pipe(f"/data/{name}", json.dumps(row).encode())
    job = job_of("intake", {"path": "memory://data"})
    result = run_intake(job)
    assert [r.prompt for r in read_rows(job.artifacts.path(result.outputs["rows"]))] == ["q1", "q2"]
    assert not (job.work / "fetched").exists()
    with pytest.raises(DataError, match="cannot be read"):
        run_intake(job_of("intake", {"path": "memory://data/three.jsonl"}))
    with pytest.raises(DataError, match="no file system is known"):
        run_intake(job_of("intake", {"path": "gopher://data/three.jsonl"}))
    with pytest.raises(ResourceError, match="more bytes than max_bytes"):
        run_intake(job_of("intake", {"path": "memory://data", "max_bytes": 100}))


def test_a_wide_encoding_is_named(tmp_path: Path, job_of: JobOf) -> None:
    (tmp_path / "rows.jsonl").write_bytes(json.dumps(chat_row()).encode("utf-16"))
    with pytest.raises(DataError, match="begins like UTF-16"):
        run_intake(job_of("intake", {"path": "rows.jsonl"}))


def test_what_is_too_large_is_refused_before_a_byte_is_read(tmp_path: Path, job_of: JobOf) -> None:
    """Sparse files: the first of two gigabytes, the second of more than the disk has room for."""
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.truncate(2 << 30)
    job = job_of("intake", {"path": "rows.jsonl", "max_bytes": 1 << 30})
    with pytest.raises(DataError, match=r"has 2,147,483,648 bytes, and max_bytes allows 1,073,741,824"):
        run_intake(job)
    with path.open("wb") as file:
        file.truncate(shutil.disk_usage(tmp_path).free + (1 << 30))
    job = job_of("intake", {"path": "rows.jsonl", "max_bytes": 1 << 40})
    with pytest.raises(ResourceError, match="the disk has room for"):
        run_intake(job)
    assert not list(job.work.iterdir())
    path.write_text(json.dumps(chat_row()) + "\n")
    assert run_intake(job).metrics["rows"] == 1
