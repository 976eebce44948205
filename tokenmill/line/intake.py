"""Intake: data files become rows. What cannot be read is quarantined with line and reason, never lost.

Drops nothing that can be read: whether a row is any good is curate's business.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from tokenmill.domain.errors import DataError, ResourceError
from tokenmill.domain.profile import Profile
from tokenmill.domain.stations import IntakeParams
from tokenmill.domain.work import JobResult
from tokenmill.line.captured import Seen, captured_file
from tokenmill.line.conversation import BrokenRowError, chat, conversation
from tokenmill.line.files import RAW_CHARACTERS, Record, Source
from tokenmill.line.job import StationJob
from tokenmill.line.rows import Refused, Row, row_of, write_jsonl
from tokenmill.line.sources import local_files
from tokenmill.line.template import columns_of, fill
from tokenmill.spec.capture_files import CAPTURE

SHOWN_REASONS = 5
COLUMN_CHARACTERS = 1000  # of one extra column that travels with a row


def run(job: StationJob) -> JobResult:
    """Read what ``path`` names. Raises ``DataError`` when too much of it is broken."""
    params = job.params
    assert isinstance(params, IntakeParams)
    paths, seen = _paths(job, params)
    _check_room(job, params, paths)
    sources = [Source(path, params) for path in paths]
    first: list[Refused] = []
    rows_path, quarantine_path = job.work / "rows.jsonl", job.work / "quarantine.jsonl"

    def rows(quarantine: IO[bytes]) -> Iterator[Row]:
        for source, item in read_sources(sources):
            if isinstance(item, Row):
                yield item
            else:
                quarantine.write(msgspec.json.encode(item) + b"\n")
                first.extend([item] if len(first) < SHOWN_REASONS else [])
            if source.records % 1000 == 0:
                job.report(source.records, source.records + 1, "rows", source.path.name)

    with quarantine_path.open("wb") as quarantine:
        kept = write_jsonl(rows_path, rows(quarantine))
    records = sources[-1].records
    refused = records - kept
    _check_broken(sources, params.path, refused, first)
    job.report(records, records, "rows", f"{kept} rows, {refused} quarantined")
    shutil.rmtree(job.work / "fetched", ignore_errors=True)
    sha = digest_of_files(sources)
    profile = seen.profile if seen is not None else Profile()
    for source in sources if seen is None else ():
        profile.join(source.profile)
    return JobResult(
        outputs={
            "rows": job.artifacts.put_file(rows_path, move=True),
            "intake_quarantine": job.artifacts.put_file(quarantine_path, move=True),
        },
        metrics={
            "files": len(sources),
            "rows_in": records,
            "rows": kept,
            "quarantined": refused,
            "blank_lines": sum(source.blank_lines for source in sources),
            "bytes": sum(source.bytes_read for source in sources),
            "sha": sha,
            "profile": profile.lengths,
            "words": profile.words,
            **({"read_until_us": seen.until_us} if seen is not None else {}),
            "first_reasons": [f"line {r.line}: {r.reason}" for r in first],
        },
        evidence={"source": {"name": Path(params.path).name, "sha": sha}},
    )


def _paths(job: StationJob, params: IntakeParams) -> tuple[list[Path], Seen | None]:
    """The files to read, here; and of captured traffic what they were chosen from."""
    fetched = job.work / "fetched"
    if params.path.startswith(CAPTURE):
        path, seen = captured_file(job.captures, params, fetched)
        return [path], seen
    paths = local_files(
        params.path,
        job.factory_dir,
        job.artifacts,
        fetched,
        params.max_bytes,
        lambda message: job.report(0, 1, "files", message),
    )
    return paths, None


def _check_room(job: StationJob, params: IntakeParams, paths: Sequence[Path]) -> None:
    """Refuse what is too large as it lies there before a byte of it is read or written."""
    size = sum(path.stat().st_size for path in paths if path.is_file())
    if size > params.max_bytes:
        raise DataError(
            f"the data has {size:,} bytes, and max_bytes allows {params.max_bytes:,}",
            where=params.path,
            expected="data within max_bytes",
            fix="Raise max_bytes of the intake station, or name fewer or smaller files.",
        )
    free = shutil.disk_usage(job.work).free
    if size > free:
        raise ResourceError(
            f"the data has {size:,} bytes, and the disk has room for {free:,} more",
            where=str(job.work),
            expected="room for the rows beside the data",
            fix="Free some space, then run the line again; nothing was read.",
        )


def digest_of_files(sources: Sequence[Source]) -> str:
    """The digest of one file's bytes; of several, that of their digests in order."""
    if len(sources) == 1:
        return f"sha256:{sources[0].sha.hexdigest()}"
    whole = hashlib.sha256("".join(source.sha.hexdigest() for source in sources).encode())
    return f"sha256:{whole.hexdigest()}"


def read_sources(sources: Sequence[Source]) -> Iterator[tuple[Source, Row | Refused]]:
    """Every record of every file, numbered through; of rows with the same ``id``, the first one only."""
    params = sources[0].params
    seen: dict[int, int] = {}  # hash of an id -> number of its row
    before: Source | None = None
    for source in sources:
        if before is not None:
            source.go_on_from(before)
        for item in read_source(source):
            if isinstance(item, Row) and params.id:
                reason = _repeated(item, params.id, seen)
                if reason:
                    yield source, Refused(item.n, item.line, reason, item.completion[:RAW_CHARACTERS])
                    continue
            if isinstance(item, Refused) and len(sources) > 1:
                item = msgspec.structs.replace(item, reason=f"{source.path.name}: {item.reason}")
            yield source, item
        before = source


def _repeated(row: Row, column: str, seen: dict[int, int]) -> str:
    """Why ``row`` cannot be told from another by its ``column``; empty when it can."""
    value = row.columns.get(column)
    if value is None or value == "":
        return f"has no {column!r} to name it"
    key = int.from_bytes(hashlib.blake2b(repr(value).encode("utf-8", "replace"), digest_size=8).digest())
    if key in seen:
        return f"{column} {str(value)[:80]!r} is that of row {seen[key]} already"
    seen[key] = row.n
    return ""


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
            messages, rejected, used = _messages(item, params)
            yield row_of(item.n, item.line, messages, _kept_columns(item.values, used), rejected)
        except BrokenRowError as error:
            yield Refused(item.n, item.line, str(error), str(item.values)[:RAW_CHARACTERS])


def _messages(record: Record, params: IntakeParams) -> tuple[list[dict[str, str]], str, tuple[str, ...]]:
    """The record's messages, its worse answer if any, and the columns that are spent on them."""
    values = record.values
    if not params.prompt:
        return conversation(values, params.system)
    try:
        prompt, completion = fill(params.prompt, values), fill(params.completion, values)
        return chat(fill(params.system, values), prompt, completion), "", ()
    except KeyError as error:
        raise BrokenRowError(f"column {error.args[0]!r} is missing") from error


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


def _check_broken(sources: Sequence[Source], path: str, refused: int, first: list[Refused]) -> None:
    source = sources[-1]
    where = str(source.path) if len(sources) == 1 else path
    allowed = source.params.max_broken_fraction
    shown = "; ".join(f"line {r.line}: {r.reason}" for r in first)
    if refused == source.records:
        raise DataError(
            f"the file has no usable row{': ' if shown else ''}{shown}",
            where=where,
            expected='rows such as {"messages": [...]}, {"prompt": ..., "completion": ...} or mapped columns',
            fix="Correct the file, its format, or the templates of the intake station.",
        )
    if refused > allowed * source.records:
        raise DataError(
            f"{refused:,} of {source.records:,} rows are broken; the first: {shown}",
            where=f"{where}:{first[0].line}",
            expected=f"at most {allowed:.1%} broken rows (max_broken_fraction)",
            fix="Correct these rows, or raise max_broken_fraction.",
        )
