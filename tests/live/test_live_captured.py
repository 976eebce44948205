"""Traffic of a real engine becomes training data: asked, judged by clients, read by a line, erased.

Only the whole shows that what the gateway writes is what the line's own jobs read, and that nothing of a
project that did not agree, or of a person who is to be forgotten, gets that far.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from live_bed import FACTORY, LiveFactory, check_ended

from tokenmill.domain.calendar import DAY_US
from tokenmill.domain.factory import Capture, Line, Project, Resources, Station, Tenant
from tokenmill.store.artifacts import Artifacts

pytestmark = [pytest.mark.live, pytest.mark.model, pytest.mark.timeout(180)]

Until = Callable[..., None]

QUESTIONS = ("a card", "a loan", "an account", "a cheque", "a branch", "a transfer", "a deposit", "a fee")
LINE = Line(
    "learn",
    "acme",
    "default",
    "smol",
    (
        Station("intake", "intake", params={"path": "capture:smol"}),
        Station(
            "curate",
            "curate",
            ("intake",),
            {"near_duplicates": "keep", "split": {"train": 0.6, "validation": 0.0, "test": 0.4}},
        ),
    ),
)
CAPTURE = Capture(("smol",), "agreed with the works council", DAY_US)
PROJECTS = (Project("default", capture=CAPTURE), Project("silent"))
CAPTURING = replace(
    FACTORY,
    tenants=(Tenant("acme", PROJECTS),),
    deployments=(
        replace(FACTORY.deployments[0], resources=Resources(cpu_millis=500, memory_bytes=1_000_000_000)),
    ),
    lines=(LINE, replace(LINE, name="stranger", project="silent")),
)


def asks(client: openai.OpenAI, what: str, user: str, **more: Any) -> str:
    """Ask the model, to the end of a stream where it is one; returns the answer's id."""
    text = f"I am {user}@example.org. What is {what}?"
    answer = client.chat.completions.create(
        model="smol",
        messages=[{"role": "user", "content": text}],
        user=user,
        max_tokens=120,
        temperature=0,
        stop=[".", "\n"],
        **more,
    )
    if not more.get("stream"):
        assert answer.choices[0].finish_reason == "stop"
        return answer.id
    chunks = list(answer)
    assert chunks[-1].choices[0].finish_reason == "stop"
    return chunks[0].id


def kept(live: LiveFactory) -> dict[str, int]:
    """Rows by project, as ``tokenmill captures`` counts them."""
    shown = json.loads(live.tokenmill("captures", "--json"))["captures"]
    return {f"{one['tenant']}/{one['project']}": sum(one["aliases"].values()) for one in shown}


def curated(live: LiveFactory, run: dict[str, Any]) -> list[dict[str, Any]]:
    """Every row of every split that the run's curate station left."""
    assert run["status"] == "succeeded", run["reason"]
    job = next(station["job"] for station in run["stations"] if station["name"] == "curate")
    outputs = live.api("GET", f"/api/jobs/{job}")["result"]["outputs"]
    artifacts = Artifacts(live.paths.artifacts)
    texts = [artifacts.path(outputs[split]).read_text() for split in ("train", "validation", "test")]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def test_answers_become_rows_of_a_line_and_can_be_erased(live: LiveFactory, until: Until) -> None:
    live.up(CAPTURING)
    silent = live.api("POST", "/api/keys", {"tenant": "acme", "project": "silent"})["secret"]
    live.make_key()
    until(live.answers)
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key=live.secret)
    other = openai.OpenAI(base_url=f"{live.url}/v1", api_key=silent)

    # 1. Eight answers of two people, half of them streams; one more that its client declined, one elsewhere.
    ids = [
        asks(client, what, "ada" if n % 2 else "bob", stream=n % 4 > 1) for n, what in enumerate(QUESTIONS)
    ]
    asks(client, "a vault", "bob", store=False)
    asks(other, "a crypt", "bob")
    for number, rating in ((0, "good"), (7, "bad")):
        url, body = f"{live.url}/v1/feedback", {"id": ids[number], "rating": rating}
        said = httpx.post(url, json=body, headers=live.headers, timeout=20, trust_env=False)
        assert said.json()["counted"], said.text
    until(lambda: kept(live) == {"acme/default": len(QUESTIONS)})
    written = b"".join(path.read_bytes() for path in live.paths.captures.rglob("*") if path.is_file())
    assert b"example.org" not in written
    assert b"a crypt" not in written

    # 2. The line reads all but what was called bad; a line of the silent project finds nothing.
    rows = curated(live, live.ended(live.begin("learn")))
    asked = [row["messages"][0]["content"] for row in rows]
    assert sorted(asked) == sorted(f"I am [EMAIL]. What is {what}?" for what in QUESTIONS[:7])
    assert all(row["messages"][-1]["content"].strip() for row in rows)
    nothing = live.ended(live.begin("stranger"))
    assert nothing["status"] == "failed"
    assert "no answer of smol has been kept for acme/silent yet" in nothing["reason"]

    # 3. One person is forgotten; the next run is without them.
    assert "4 rows" in live.tokenmill("captures", "erase", "acme/default", "--user", "ada", "--yes")
    rows = curated(live, live.ended(live.begin("learn")))
    asked = [row["messages"][0]["content"] for row in rows]
    assert sorted(asked) == sorted(f"I am [EMAIL]. What is {what}?" for what in QUESTIONS[::2])
    check_ended(live)
