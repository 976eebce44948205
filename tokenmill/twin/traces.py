"""Readers of published request traces, line by line: Azure 2023 and 2024, BurstGPT, Mooncake.

A row that cannot be read or cannot be is refused with its file, line and field; none is skipped. Times
begin at the first row. ``spread`` undoes clocks that were rounded to seconds; ``columns`` in
``trace_columns`` makes arrays of rows for the compiled core.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from tokenmill.domain.calendar import date_of, day_of
from tokenmill.domain.errors import DataError
from tokenmill.twin.faults import stream

MAX_TOKENS = 16_777_216
MAX_BLOCKS = 65_536
MOONCAKE_BLOCK = 512
MOMENT = re.compile(
    r"(\d{4})-(\d\d?)-(\d\d?)[T ](\d\d?):(\d\d):(\d\d(?:\.\d*)?)(?: ?(?:Z|UTC|([+-])(\d\d):?(\d\d)?))?"
)


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request. ``prefix`` names the blocks of its prompt: equal ids are the same text from its start."""

    at_s: float
    input_tokens: int
    output_tokens: int
    prefix: tuple[int, ...] = ()
    session: str = ""


def azure(lines: Iterable[str], name: str) -> Iterator[TraceRow]:
    """Azure's LLM inference traces of 2023 and 2024: ``TIMESTAMP,ContextTokens,GeneratedTokens``, or the
    same as ``arrival_s,input_tokens,output_tokens``."""
    layouts = (
        {"at": "TIMESTAMP", "input": "ContextTokens", "output": "GeneratedTokens"},
        {"at": "arrival_s", "input": "input_tokens", "output": "output_tokens"},
    )
    return _csv_rows(lines, name, layouts, "an Azure trace")


def burstgpt(lines: Iterable[str], name: str) -> Iterator[TraceRow]:
    """BurstGPT: ``Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type``, newer files with a
    ``Session ID``. A failed request has no response tokens and counts here as one."""
    layout = {"at": "Timestamp", "input": "Request tokens", "output": "Response tokens"}
    with_session = {**layout, "session": "Session ID"}
    return _csv_rows(lines, name, (with_session, layout), "BurstGPT")


def mooncake(lines: Iterable[str], name: str) -> Iterator[TraceRow]:
    """Mooncake's traces: JSON lines with ``timestamp`` (ms), ``input_length``, ``output_length`` and
    ``hash_ids``, one for each block of 512 tokens of the prompt. The last block may be part full."""
    first: float | None = None
    for number, line in enumerate(lines, 1):
        where = f"{name}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            what = f"the line cannot be read: {error}"
            raise DataError(what, expected="a JSON object", where=where) from None
        if not isinstance(row, dict):
            raise DataError("the line cannot be read: no object", expected="a JSON object", where=where)
        at_s = _value(row, "timestamp", float, where) / 1000
        first = at_s if first is None else first
        tokens = _tokens(row, "input_length", where), _tokens(row, "output_length", where)
        yield TraceRow(_after(first, at_s, "timestamp", where), *tokens, _blocks(row, tokens[0], where))


def spread(rows: Sequence[TraceRow], seed: int) -> tuple[TraceRow, ...]:
    """Rows whose times were rounded down, spread evenly at random up to the next time that occurs.

    Rows of one time keep their order; those of the last time spread over the median step.
    """
    times = sorted({row.at_s for row in rows})
    if len(times) < 2:
        return tuple(rows)
    steps = sorted(after - before for before, after in pairwise(times))
    after = dict(zip(times, [*times[1:], times[-1] + steps[len(steps) // 2]], strict=True))
    draw = stream(seed, "spread")
    groups: dict[float, list[TraceRow]] = {}
    for row in rows:
        groups.setdefault(row.at_s, []).append(row)
    found: list[TraceRow] = []
    for at_s in times:
        width = after[at_s] - at_s
        moments = sorted(at_s + draw.random() * width for _ in groups[at_s])
        found += [replace(row, at_s=moment) for row, moment in zip(groups[at_s], moments, strict=True)]
    return tuple(found)


def _csv_rows(
    lines: Iterable[str], name: str, layouts: Sequence[dict[str, str]], kind: str
) -> Iterator[TraceRow]:
    """Rows with times from that of the first on."""
    fields: dict[str, str] = {}
    names: list[str] = []
    first: float | None = None
    for number, cells in enumerate(csv.reader(lines), 1):
        where = f"{name}:{number}"
        if not cells:
            continue
        if not fields:
            names = [cell.strip() for cell in cells]
            found = [layout for layout in layouts if set(layout.values()) <= set(names)]
            if not found:
                expected = ",".join(layouts[0].values())
                raise DataError(f"the header is not that of {kind}", expected=expected, where=where)
            fields = found[0]
            continue
        if len(cells) != len(names):
            raise DataError(
                f"the row has {len(cells)} fields", expected=f"{len(names)}: {','.join(names)}", where=where
            )
        row = dict(zip(names, cells, strict=True))
        at_s = _value(row, fields["at"], seconds_of, where)
        first = at_s if first is None else first
        tokens = _tokens(row, fields["input"], where), _tokens(row, fields["output"], where)
        yield TraceRow(
            _after(first, at_s, fields["at"], where), *tokens, session=row.get(fields.get("session", ""), "")
        )


def _after(first: float, at_s: float, field: str, where: str) -> float:
    """Seconds from the first row on."""
    if at_s < first:
        what, fix = f"{field} lies {first - at_s:g} s before the first row's", f"Sort the rows by {field}."
        raise DataError(what, expected="rows in order of time", fix=fix, where=where)
    return at_s - first


def _value(row: dict[str, Any], field: str, read: Callable[[Any], float], where: str) -> float:
    """A number that is finite and not negative, or an error that names the field."""
    value = row.get(field)
    if value is None:
        raise DataError(f"{field} is missing", expected="a time of zero or more", where=where)
    try:
        found = read(value)
    except (ValueError, TypeError):
        wanted = "a number" if read is float else "a date and time, or seconds"
        raise DataError(f"{field} is {value!r}", expected=wanted, where=where) from None
    if not (math.isfinite(found) and found >= 0):
        raise DataError(f"{field} is {found}", expected="zero or more", where=where)
    return found


def _tokens(row: dict[str, Any], field: str, where: str) -> int:
    count = _value(row, field, float, where)
    if count != int(count) or count > MAX_TOKENS:
        expected = f"a whole number of tokens, 0 to {MAX_TOKENS}"
        raise DataError(f"{field} is {row[field]}", expected=expected, where=where)
    return max(1, int(count))


def _blocks(row: dict[str, Any], tokens: int, where: str) -> tuple[int, ...]:
    found = row.get("hash_ids", [])
    if not isinstance(found, list) or not all(type(one) is int and one >= 0 for one in found):
        raise DataError("hash_ids is not a list of numbers", expected="one id for each block", where=where)
    if found and len(found) != -(-tokens // MOONCAKE_BLOCK):
        expected = f"{-(-tokens // MOONCAKE_BLOCK)}, one for each {MOONCAKE_BLOCK} of {tokens} tokens"
        raise DataError(f"hash_ids has {len(found)} ids", expected=expected, where=where)
    if len(found) > MAX_BLOCKS:
        raise DataError(f"hash_ids has {len(found)} ids", expected=f"at most {MAX_BLOCKS}", where=where)
    return tuple(found)


def seconds_of(text: str) -> float:
    """Seconds of a plain number, or of "2023-11-16 18:15:46.6805900-05:00", counted from a day of its own.

    A time without a zone is taken for one of UTC. Raises ``ValueError`` for what is no time.
    """
    if "-" not in text.lstrip("-"):
        return float(text)
    found = MOMENT.fullmatch(text.strip())
    if found is None:
        raise ValueError(text)
    year, month, day, hours, minutes = (int(part) for part in found.groups()[:5])
    date = day_of(year, month, day)
    if date_of(date) != (year, month, day) or hours > 23 or minutes > 59 or float(found[6]) >= 61:
        raise ValueError(text)
    away = 0
    if found[7]:
        away = (3600 * int(found[8]) + 60 * int(found[9] or 0)) * (1 if found[7] == "+" else -1)
    return date * 86_400 + hours * 3600 + minutes * 60 + float(found[6]) - away
