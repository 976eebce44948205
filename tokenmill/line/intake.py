"""Intake: one data file becomes rows. What cannot be read is quarantined with line and reason, never lost.

Drops nothing that can be read: whether a row is any good is curate's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from tokenmill.domain.errors import DataError
from tokenmill.domain.stations import IntakeParams
from tokenmill.domain.work import JobResult
from tokenmill.line.files import RAW_CHARACTERS, Record, Source
from tokenmill.line.job import StationJob
from tokenmill.line.rows import ROLES, Refused, Row, row_of, write_jsonl
from tokenmill.line.template import columns_of, fill

SHOWN_REASONS = 5
COLUMN_CHARACTERS = 1000  # of one extra column that travels with a row


def run(job: StationJob) -> JobResult:
    """Read the file that ``path`` names. Raises ``DataError`` when too much of it is broken."""
    params = job.params
    assert isinstance(params, IntakeParams)
    source = Source(job.factory_dir / params.path, params)
    first: list[Refused] = []
    rows_path, quarantine_path = job.work / "rows.jsonl", job.work / "quarantine.jsonl"

    def rows(quarantine: IO[bytes]) -> Iterator[Row]:
        for item in read_source(source):
            if isinstance(item, Row):
                yield item
            else:
                quarantine.write(msgspec.json.encode(item) + b"\n")
                first.extend([item] if len(first) < SHOWN_REASONS else [])
            if source.records % 1000 == 0:
                job.report(source.records, source.records + 1, "rows", source.path.name)

    with quarantine_path.open("wb") as quarantine:
        kept = write_jsonl(rows_path, rows(quarantine))
    refused = source.records - kept
    _check_broken(source, refused, first)
    job.report(source.records, source.records, "rows", f"{kept} rows, {refused} quarantined")
    return JobResult(
        outputs={
            "rows": job.artifacts.put_file(rows_path, move=True),
            "intake_quarantine": job.artifacts.put_file(quarantine_path, move=True),
        },
        metrics={
            "rows_in": source.records,
            "rows": kept,
            "quarantined": refused,
            "blank_lines": source.blank_lines,
            "bytes": source.bytes_read,
            "sha": f"sha256:{source.sha.hexdigest()}",
            "first_reasons": [f"line {r.line}: {r.reason}" for r in first],
        },
        evidence={"source": {"name": Path(params.path).name, "sha": f"sha256:{source.sha.hexdigest()}"}},
    )


def read_source(source: Source) -> Iterator[Row | Refused]:
    """Every record of ``source`` as a row or as refused. Raises ``DataError`` for the file as a whole."""
    params = source.params
    wanted = columns_of(params.prompt) + columns_of(params.completion) + columns_of(params.system)
    checked = False
    for item in source.read():
        if isinstance(item, Refused):
            yield item
            continue
        if source.header and not checked:
            _check_header(source, wanted)
            checked = True
        try:
            messages, used = _messages(item, params)
            yield row_of(item.n, item.line, messages, _kept_columns(item.values, used))
        except _BrokenRowError as error:
            yield Refused(item.n, item.line, str(error), str(item.values)[:RAW_CHARACTERS])


class _BrokenRowError(Exception):
    """A record that is no training row; the text is the reason."""


def _messages(record: Record, params: IntakeParams) -> tuple[list[Mapping[str, str]], tuple[str, ...]]:
    """The record's messages, and the columns that are spent on them."""
    values = record.values
    if params.prompt:
        try:
            prompt, completion = fill(params.prompt, values), fill(params.completion, values)
            system = fill(params.system, values)
        except KeyError as error:
            raise _BrokenRowError(f"column {error.args[0]!r} is missing") from error
        return _chat(system, prompt, completion), ()
    if "messages" in values:
        messages = _checked_messages(values["messages"])
        if params.system and messages[0]["role"] not in ("system", "developer"):
            messages = [{"role": "system", "content": params.system}, *messages]
        return messages, ("messages",)
    if "prompt" in values and "completion" in values:
        prompt, completion = values["prompt"], values["completion"]
        if not isinstance(prompt, str) or not isinstance(completion, str):
            raise _BrokenRowError("'prompt' and 'completion' must be texts")
        return _chat(params.system, prompt, completion), ("prompt", "completion")
    raise _BrokenRowError("neither 'messages' nor 'prompt' and 'completion', and intake has no templates")


def _chat(system: str, prompt: str, completion: str) -> list[Mapping[str, str]]:
    said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return [{"role": "system", "content": system}, *said] if system else [*said]


def _checked_messages(messages: Any) -> list[Mapping[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise _BrokenRowError("'messages' is not a list with messages")
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise _BrokenRowError(f"messages[{at}] has no role out of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise _BrokenRowError(f"messages[{at}].content is not a text")
    if messages[-1]["role"] != "assistant":
        raise _BrokenRowError("the last message is not the assistant's")
    if not any(m["role"] == "user" for m in messages[:-1]):
        raise _BrokenRowError("there is no user message before the answer")
    return messages


def _kept_columns(values: Mapping[str, Any], used: tuple[str, ...]) -> dict[str, Any]:
    """The scalar columns that were not spent on messages; they serve to group and to split."""
    kept = {}
    for name, value in values.items():
        if name not in used and isinstance(value, str | int | float | bool):
            kept[name] = value[:COLUMN_CHARACTERS] if isinstance(value, str) else value
    return kept


def _check_header(source: Source, wanted: tuple[str, ...]) -> None:
    missing = [name for name in wanted if name not in source.header]
    if missing:
        raise DataError(
            f"the templates use columns that the file does not have: {', '.join(missing)}",
            where=f"{source.path}:1",
            expected=f"columns out of {', '.join(source.header)}",
            fix="Correct prompt, completion or system of the intake station.",
        )


def _check_broken(source: Source, refused: int, first: list[Refused]) -> None:
    allowed = source.params.max_broken_fraction
    shown = "; ".join(f"{source.path.name}:{r.line}: {r.reason}" for r in first)
    if refused == source.records:
        raise DataError(
            f"the file has no usable row{': ' if shown else ''}{shown}",
            where=str(source.path),
            expected='rows such as {"messages": [...]}, {"prompt": ..., "completion": ...} or mapped columns',
            fix="Correct the file, its format, or the templates of the intake station.",
        )
    if refused > allowed * source.records:
        raise DataError(
            f"{refused:,} of {source.records:,} rows are broken; the first: {shown}",
            where=f"{source.path}:{first[0].line}",
            expected=f"at most {allowed:.1%} broken rows (max_broken_fraction)",
            fix="Correct these rows, or raise max_broken_fraction.",
        )
