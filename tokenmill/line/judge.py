"""A language model as the judge: any deployment that speaks OpenAI's chat protocol grades answers from 0 to
10.

The judge sees question, wanted answer and given answer in fixed places and not whose answer it is. What it
says besides one whole number is not a grade, and an answer without a grade fails the station: missing
evidence is never filled in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

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


def grades(
    params: EvaluateParams,
    asked: Sequence[tuple[str, str, str]],
    report: Callable[[int], None] = lambda done: None,
    transport: httpx.BaseTransport | None = None,
) -> list[int]:
    """Grades in thousandths for (question, wanted, answer) triples. Raises ``EngineError`` for a judge that
    fails.
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


def _grade(client: httpx.Client, model: str, text: str) -> int:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 8,
        "seed": 0,
    }
    try:
        response = client.post("chat/completions", json=body)
        response.raise_for_status()
        said = str(response.json()["choices"][0]["message"]["content"])
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        raise EngineError(
            f"the judge {model} does not answer: {error}", where=str(client.base_url)
        ) from error
    found = re.fullmatch(r"\s*(10|\d)\s*[.!]?\s*", said)
    if found is None:
        raise EngineError(
            f"the judge {model} said {said[:60]!r}, which is no grade",
            expected="one whole number from 0 to 10",
            fix="Use a more capable model as the judge, or a simpler rubric.",
        )
    return int(found.group(1)) * 100


def _key(reference: str) -> str:
    name = reference.removeprefix(SECRET)
    value = os.environ.get(name, "") if reference.startswith(SECRET) else ""
    if not value:
        raise DataError(
            "the judge's key is not there", where=reference, expected="secret://env/NAME that is set"
        )
    return value
