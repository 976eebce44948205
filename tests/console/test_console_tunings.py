"""``/v1/fine_tuning/jobs`` over a simulated floor: shapes, refusals, tenants apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from console_bed import Bed
from test_console_files import secret_of, upload

from tokenmill.console.tenant.tuning_view import WAITS, job_view

ROW = b'{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}\n'
REQUIRED = {
    *("id", "object", "model", "created_at", "finished_at", "fine_tuned_model", "organization_id"),
    *("result_files", "status", "validation_file", "training_file", "hyperparameters", "trained_tokens"),
    *("error", "seed"),
}


class Client:
    def __init__(self, bed: Bed, tenant: int = 0) -> None:
        self.bed = bed
        self.auth = secret_of(bed, tenant)
        self.file = upload(bed, self.auth, ROW * 12, purpose="fine-tune").json()["id"]

    def make(self, **body: Any) -> Any:
        asked = {"model": "smollm2", "training_file": self.file, **body}
        return self.bed.client.post("/v1/fine_tuning/jobs", json=asked, headers=self.auth)

    def get(self, path: str, **params: Any) -> Any:
        return self.bed.client.get(f"/v1/fine_tuning/jobs{path}", headers=self.auth, params=params)

    def post(self, path: str) -> Any:
        return self.bed.client.post(f"/v1/fine_tuning/jobs{path}", headers=self.auth)


@pytest.fixture
def mine(served: Bed) -> Client:
    return Client(served)


def test_a_job_from_its_file_to_its_model(served: Bed, mine: Client) -> None:
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}}
    made = mine.make(suffix="Tickets", seed=7, method=method, metadata={"team": "a"})
    assert made.status_code == 200, made.text
    job = made.json()
    assert set(job) >= REQUIRED
    assert (job["object"], job["seed"], job["hyperparameters"]["n_epochs"]) == ("fine_tuning.job", 7, 2)
    served.until(lambda: mine.get(f"/{job['id']}").json()["status"] == "succeeded")
    job = mine.get(f"/{job['id']}").json()
    model = job["fine_tuned_model"]
    assert model.startswith("ft:smollm2:support:tickets:")
    served.until(lambda: any(a.name == model and a.targets for a in served.runtime.state.table.aliases))
    entry = next(a for a in served.runtime.state.table.aliases if a.name == model)
    assert entry.tenants == ("acme",)
    events = mine.get(f"/{job['id']}/events", limit=100).json()
    messages = [event["message"] for event in events["data"]]
    assert messages[-1].startswith("Created fine-tuning job")
    assert any(model in message for message in messages)
    assert all({"id", "created_at", "level", "message", "object"} <= set(event) for event in events["data"])
    again = mine.get(f"/{job['id']}/events", limit=2, after=events["data"][0]["id"]).json()
    assert [event["id"] for event in again["data"]] == [event["id"] for event in events["data"][1:3]]
    assert again["has_more"]
    (checkpoint,) = mine.get(f"/{job['id']}/checkpoints").json()["data"]
    assert checkpoint["fine_tuned_model_checkpoint"] == model
    assert mine.get("", **{"metadata[team]": "a"}).json()["data"][0]["id"] == job["id"]
    assert mine.get("", **{"metadata[team]": "b"}).json()["data"] == []
    assert mine.post(f"/{job['id']}/cancel").status_code == 400
    gone = served.client.delete(f"/v1/models/{model}", headers=mine.auth)
    assert gone.json() == {"id": model, "object": "model", "deleted": True}
    assert mine.get(f"/{job['id']}").json()["fine_tuned_model"] is None
    assert served.client.delete(f"/v1/models/{model}", headers=mine.auth).status_code == 404


def test_pause_resume_cancel(served: Bed, mine: Client) -> None:
    served.floor.held.add("tune")
    job = mine.make().json()["id"]
    served.until(lambda: mine.get(f"/{job}").json()["status"] in ("running", "queued"))
    assert mine.post(f"/{job}/pause").json()["status"] == "paused"
    assert mine.post(f"/{job}/pause").status_code == 400
    assert mine.post(f"/{job}/resume").json()["status"] in ("running", "queued")
    assert mine.post(f"/{job}/cancel").json()["status"] == "cancelled"
    assert mine.get(f"/{job}").json()["error"] is None


def test_a_job_without_room_says_that_it_waits(served: Bed, mine: Client) -> None:
    served.floor.held.add("command")
    room = {"tenant": "globex", "project": "web", "command": ["true"], "resources": {"cpu_millis": 7000}}
    other = served.client.post("/api/jobs", json=room).json()["job"]
    job = mine.make().json()["id"]

    def said() -> list[str]:
        return [event["message"] for event in mine.get(f"/{job}/events", limit=100).json()["data"]]

    served.until(lambda: WAITS in said())
    assert "Validating training file" not in said()
    served.client.post(f"/api/jobs/{other}/cancel")
    served.until(lambda: mine.get(f"/{job}").json()["status"] == "succeeded")
    assert "Validating training file" in said()
    assert WAITS not in said()


def test_a_station_that_fails_is_the_jobs_error(served: Bed, mine: Client) -> None:
    served.floor.failing.add("intake")
    job = mine.make().json()["id"]
    served.until(lambda: mine.get(f"/{job}").json()["status"] == "failed")
    error = mine.get(f"/{job}").json()["error"]
    assert error["code"] == "invalid_training_file"
    assert mine.get(f"/{job}/events").json()["data"][0]["level"] == "error"


def test_an_error_names_the_clients_file_and_not_where_it_lies(served: Bed, mine: Client) -> None:
    served.floor.failing.add("intake")
    job = mine.make().json()["id"]
    served.until(lambda: mine.get(f"/{job}").json()["status"] == "failed")
    state = served.runtime.state
    tuning = state.tunings[job]
    path = tuning.line.stations[0].params["path"]
    run = replace(state.runs[tuning.run], reason=f"station intake failed: {path}:4: not JSON")
    view = job_view(replace(state, runs=state.runs.set(run.id, run)), {}, tuning, 0)
    assert view["error"]["message"] == f"station intake failed: {mine.file}:4: not JSON"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
        ({"model": "nothing"}, "model"),
        ({"model": 5}, "model"),
        ({"model": "minilm"}, "model"),
        ({"training_file": "file-none"}, "training_file"),
        ({"validation_file": "file-none"}, "validation_file"),
        ({"suffix": "a b"}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"rank": 4}}, "hyperparameters.rank"),
        ({"method": {"type": "reinforcement"}}, "method"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"colour": 1}, "colour"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(mine: Client, body: dict[str, Any], param: str) -> None:
    found = mine.make(**body)
    assert found.status_code in (400, 404)
    assert found.json()["error"]["param"] == param
    assert mine.get("").json()["data"] == []


def test_a_file_of_another_purpose_and_jobs_of_others(served: Bed, mine: Client) -> None:
    batch = upload(served, mine.auth, ROW).json()["id"]
    assert mine.make(training_file=batch).json()["error"]["code"] == "invalid_file_purpose"
    job = mine.make().json()["id"]
    other = Client(served, 1)
    assert other.get(f"/{job}").status_code == 404
    assert other.post(f"/{job}/cancel").status_code == 404
    assert other.get("").json()["data"] == []
    assert other.make(training_file=mine.file).status_code == 400
