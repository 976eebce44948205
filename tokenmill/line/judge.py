"""A language model as the judge: any deployment that speaks OpenAI's chat protocol grades answers from 0 to
10.

The judge sees question, wanted answer and given answer in fixed places and not whose answer it is. What it
says besides one whole number is not a grade: it is asked once more, under a JSON schema where the deployment
takes one. An answer that has no grade then stays ungraded: missing evidence is never filled in, and the gate
says how much of it may be missing. A judge that does not answer at all fails the station.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from tokenmill.domain.errors import DataError, EngineError
from tokenmill.domain.station_params import EvaluateParams

URL = "TOKENMILL_URL"
SECRET = "secret://env/"  # noqa: S105 - the form of a reference
TIMEOUT_S = 120.0
RUBRIC = "10 when the answer means the same as the wanted answer, 0 when it is wrong or empty."
ASK = """Grade an answer with one whole number from 0 to 10: {rubric}

Question:
{question}

Wanted answer:
{wanted}

Given answer:
{answer}

Reply with the number only."""
STRICTER = """

Your reply was no grade. Reply with nothing but this JSON object, N being a whole number from 0 to 10:
{"grade": N}"""
SCHEMA = {
    "type": "object",
    "properties": {"grade": {"type": "integer", "enum": list(range(11))}},
    "required": ["grade"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "grade", "strict": True, "schema": SCHEMA}}
NO_SCHEMA = (400, 404, 415, 422, 501)  # how servers refuse a ``response_format`` that they do not know


def grades(
    params: EvaluateParams,
    asked: Sequence[tuple[str, str, str]],
    report: Callable[[int], None] = lambda done: None,
    transport: httpx.BaseTransport | None = None,
) -> list[int | None]:
    """Grades in thousandths for (question, wanted, answer) triples; ``None`` where the judge gave none.

    Raises ``EngineError`` for a judge that does not answer.
    """
    url = params.judge_url or os.environ.get(URL, "")
    if not url:
        raise DataError(
            "the judge has no address", expected="judge_url, or TOKENMILL_URL in the job's environment"
        )
    headers = {"Authorization": f"Bearer {_key(params.judge_key)}"} if params.judge_key else {}
    found = []
    with httpx.Client(
        base_url=url.rstrip("/") + "/", headers=headers, timeout=TIMEOUT_S, transport=transport
    ) as client:
        for done, (question, wanted, answer) in enumerate(asked, 1):
            text = ASK.format(rubric=params.rubric or RUBRIC, question=question, wanted=wanted, answer=answer)
            found.append(_grade(client, params.judge_model, text))
            report(done)
    return found


def _grade(client: httpx.Client, model: str, text: str) -> int | None:
    """The grade in thousandths, asked for twice at most."""
    first = _read(_said(client, model, text, 8))
    return first if first is not None else _read(_said_under_schema(client, model, text + STRICTER))


def _said_under_schema(client: httpx.Client, model: str, text: str) -> str:
    try:
        return _said(client, model, text, 32, {"response_format": FORMAT})
    except EngineError as error:
        cause = error.__cause__
        if not isinstance(cause, httpx.HTTPStatusError) or cause.response.status_code not in NO_SCHEMA:
            raise
    return _said(client, model, text, 32)


def _said(
    client: httpx.Client, model: str, text: str, max_tokens: int, more: Mapping[str, Any] | None = None
) -> str:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "seed": 0,
        **(more or {}),
    }
    try:
        response = client.post("chat/completions", json=body)
        response.raise_for_status()
        return str(response.json()["choices"][0]["message"]["content"])
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        raise EngineError(
            f"the judge {model} does not answer: {error}", where=str(client.base_url)
        ) from error


def _read(said: str) -> int | None:
    """A grade from 0 to 10, alone or as ``{"grade": N}``, in thousandths."""
    found = re.fullmatch(r"\s*(10|\d)\s*[.!]?\s*", said)
    if found:
        return int(found.group(1)) * 100
    try:
        value = json.loads(said)
    except (ValueError, RecursionError):
        return None
    grade = value.get("grade") if isinstance(value, dict) and len(value) == 1 else None
    return grade * 100 if type(grade) is int and 0 <= grade <= 10 else None


def _key(reference: str) -> str:
    name = reference.removeprefix(SECRET)
    value = os.environ.get(name, "") if reference.startswith(SECRET) else ""
    if not value:
        raise DataError(
            "the judge's key is not there", where=reference, expected="secret://env/NAME that is set"
        )
    return value
