"""The unmodified ``openai`` client fine-tunes the real small model and uses the result.

Only the real client, trainer and engine show that the whole flow holds together: upload, job, events, the
model by its name, for its tenant alone, and the way from an answer back to the rows.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from tokenmill.domain.factory import Project, Resources, Tenant

pytestmark = [pytest.mark.live, pytest.mark.model, pytest.mark.timeout(400)]

COLOURS = ("red", "green", "blue", "black", "white")
THINGS = ("car", "boat", "house", "hat", "door")


def rows() -> bytes:
    said = [(f"a {colour} {thing}", colour.upper()) for colour in COLOURS for thing in THINGS]
    messages = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in said
    ]
    return "".join(json.dumps(row) + "\n" for row in messages).encode()


def job_processes(live: Any) -> list[int]:
    return [row["pid"] for row in live.api("GET", "/api/processes") if row["kind"] == "job"]


def tuning_steps(live: Any, run: str) -> bool:
    stations = live.api("GET", f"/api/runs/{run}")["stations"]
    tuned = next(s for s in stations if s["name"] == "tune")
    return tuned["status"] == "running" and tuned["progress"].get("unit") == "steps"


def test_the_sdk_fine_tunes_through_kills_and_uses_the_result(
    live: Any, until: Callable[..., None], converted: Callable[[Path], None]
) -> None:
    pytest.importorskip("peft")
    from live_bed import FACTORY

    own = replace(FACTORY.deployments[0], resources=Resources(cpu_millis=500, memory_bytes=1_000_000_000))
    tenants = (*FACTORY.tenants, Tenant("globex", (Project("default"),)))
    converted(live.paths.root)
    live.up(replace(FACTORY, tenants=tenants, deployments=(own,)))
    live.make_key()
    until(live.ready)
    until(live.answers)
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key=live.secret, max_retries=5)

    # 1. Upload and create; what is not there is refused in OpenAI's words.
    file = client.files.create(file=("colours.jsonl", rows()), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="integrations"):
        client.fine_tuning.jobs.create(
            model="smol", training_file=file.id, integrations=[{"type": "wandb", "wandb": {"project": "x"}}]
        )
    job = client.fine_tuning.jobs.create(
        model="smol",
        training_file=file.id,
        suffix="colours",
        seed=1,
        hyperparameters={"n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": 2},
        metadata={"team": "paint"},
    )
    assert job.status in ("validating_files", "queued", "running")

    # 2. In the middle of training the controller and the trainer are killed; the run goes on. The trainer is
    # frozen in the meantime, so that it cannot end before it is killed.
    run = live.api("GET", "/api/runs")[0]["id"]
    until(lambda: tuning_steps(live, run), 120)
    (trainer,) = job_processes(live)
    os.kill(trainer, signal.SIGSTOP)
    live.kill_controller()
    live.up()
    until(lambda: tuning_steps(live, run) and job_processes(live) == [trainer], 60)
    os.kill(trainer, signal.SIGKILL)
    until(lambda: client.fine_tuning.jobs.retrieve(job.id).status in ("succeeded", "failed"), 240)
    done = client.fine_tuning.jobs.retrieve(job.id)
    assert done.status == "succeeded", done.error
    assert done.trained_tokens
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert any("training loss" in message for message in messages)
    assert any("held-out rows" in message for message in messages)
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert checkpoint.step_number > 0
    assert client.fine_tuning.jobs.list(limit=1).data[0].id == job.id

    # 3. The model answers by its name, for its tenant alone.
    model = done.fine_tuned_model
    assert model
    assert model in {found.id for found in client.models.list()}
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "a green hat"}], max_tokens=6, temperature=0
    )
    assert answer.usage
    stranger = live.api("POST", "/api/keys", {"tenant": "globex", "project": "default"})["secret"]
    other = openai.OpenAI(base_url=f"{live.url}/v1", api_key=stranger)
    until(lambda: known(other))
    assert model not in {found.id for found in other.models.list()}
    with pytest.raises(openai.NotFoundError):
        other.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])

    # 4. From the answer back to the rows that made it.
    def traced() -> bool:
        return "chatcmpl" in answer.id and bool(find(live, answer.id))

    until(traced)
    found = find(live, answer.id)
    assert found["run"]["id"] == run
    assert found["data"]["rows"][0]["messages"][-1]["role"] == "assistant"
    assert found["energy"]["run_mj"] > 0
    assert found["missing"] == []
    client.models.delete(model)
    until(lambda: model not in {found.id for found in client.models.list()})
    live.down()
    assert live.left() == {}


def known(client: openai.OpenAI) -> bool:
    """Whether the gateway has heard of a new key."""
    try:
        client.models.list()
    except openai.AuthenticationError:
        return False
    return True


def find(live: Any, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = live.api("GET", f"/api/trace/{name}?rows=2")
    except AssertionError:
        return {}
    return found
