"""Reads a batch's input file: one request a line, every problem found before anything is done.

A line is ``{"custom_id", "method", "url", "body"}``. Nothing is sent from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.domain.codec import parse_json
from tokenmill.domain.errors import DataError
from tokenmill.domain.tenancy import BatchProblem

LINES_MOST = 50_000
LINE_BYTES = 4 * 2**20
CUSTOM_ID_MOST = 512
PROBLEMS_MOST = 100
MODELS_MOST = 64
BYTE_ORDER_MARK = "\ufeff".encode()  # some editors write one before the first line


@dataclass(frozen=True, slots=True)
class InputLine:
    """One request. ``number`` counts from 1 over all lines of the file, the empty ones too."""

    number: int
    custom_id: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checked:
    """What an input holds: how many requests, and for which model where it is one."""

    total: int
    model: str
    problems: tuple[BatchProblem, ...]


def check(path: Path, endpoint: str) -> Checked:
    """Read the whole file. Stops after ``PROBLEMS_MOST`` problems or ``LINES_MOST`` requests."""
    problems: list[BatchProblem] = []
    seen: dict[str, int] = {}
    models: set[str] = set()
    for number, raw in _lines(path):
        if len(problems) >= PROBLEMS_MOST:
            break
        if len(seen) >= LINES_MOST:
            message = f"The file has more than {LINES_MOST} requests; split it."
            problems.append(BatchProblem("too_many_tasks", message, number))
            break
        found = _parse(number, raw, endpoint)
        if isinstance(found, BatchProblem):
            problems.append(found)
            continue
        first = seen.setdefault(found.custom_id, number)
        if first != number:
            message = f"The custom_id {found.custom_id[:100]!r} was used on line {first} already."
            problems.append(BatchProblem("duplicate_custom_id", message, number, "custom_id"))
        if len(models) < MODELS_MOST:
            models.add(str(found.body["model"]))
    if not seen and not problems:
        problems.append(BatchProblem("empty_file", "The input file has no requests."))
    return Checked(len(seen), models.pop() if len(models) == 1 else "", tuple(problems))


def requests(path: Path, endpoint: str) -> Iterator[InputLine]:
    """The requests of a file that was checked, in order, read as they are needed."""
    for number, raw in _lines(path):
        found = _parse(number, raw, endpoint)
        if isinstance(found, InputLine):
            yield found


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(LINE_BYTES + 1):
            number += 1
            if raw.strip():
                yield number, raw
            if len(raw) > LINE_BYTES and not raw.endswith(b"\n"):
                return  # its problem is reported, and what follows is the rest of the same line


def _parse(number: int, raw: bytes, endpoint: str) -> InputLine | BatchProblem:
    if len(raw) > LINE_BYTES:
        return BatchProblem("line_too_long", f"The line has more than {LINE_BYTES} bytes.", number)
    try:
        line = parse_json(raw.removeprefix(BYTE_ORDER_MARK) if number == 1 else raw)
    except DataError as error:
        return BatchProblem("invalid_json_line", f"The line is {error.problem.message}.", number)
    if not isinstance(line, dict):
        return BatchProblem("invalid_json_line", "The line is not a JSON object.", number)
    name, body = line.get("custom_id"), line.get("body")
    if not isinstance(name, str) or not 0 < len(name) <= CUSTOM_ID_MOST:
        message = f"custom_id must be a text of 1 to {CUSTOM_ID_MOST} characters."
        return BatchProblem("invalid_custom_id", message, number, "custom_id")
    if line.get("method", "POST") != "POST":
        return BatchProblem("invalid_method", "method must be POST.", number, "method")
    if line.get("url", endpoint) != endpoint:
        message = f"url must be {endpoint}, the endpoint of the batch."
        return BatchProblem("mismatched_url", message, number, "url")
    if not isinstance(body, dict) or not isinstance(body.get("model"), str) or not body["model"]:
        message = "body must be an object that names a model."
        return BatchProblem("invalid_body", message, number, "body.model")
    if body.get("stream"):
        return BatchProblem("stream_unsupported", "A batch cannot stream.", number, "body.stream")
    return InputLine(number, name, body)
