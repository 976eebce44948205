"""The admin API over the real runtime and store: every endpoint, its errors and its limits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from console_bed import Bed, now_us

from tokenmill.console import commands
from tokenmill.floor import procfs
from tokenmill.spec.factory_file import template


def error_of(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    assert set(found) == {
        "kind",
        "message",
        "expected",
        "fix",
        "where",
        "reasons",
        "exit_code",
        "problems",
        "problem_count",
    }
    return found


def test_before_a_file_is_applied_it_says_so(bed: Bed) -> None:
    shown = bed.client.get("/api/status").json()
    assert shown["spec_version"] == 0
    assert not shown["ready"]
    assert "no factory file has been applied yet" in shown["reasons"]


def test_a_factory_that_sleeps_is_ready(tmp_path: Path) -> None:
    text = template().replace("model: smollm2\nslots: 4", "model: smollm2\nreplicas: 0..2\nslots: 4")
    with Bed(tmp_path, text).opened() as bed:
        bed.apply()
        bed.until(lambda: bed.client.get("/api/status").json()["ready"])
        shown = bed.client.get("/api/status").json()
        smol = next(d for d in shown["deployments"] if d["name"] == "smol")
        assert (shown["health"], smol["asleep"], smol["replicas"]) == ("ready", True, [])
        assert "asleep" in bed.client.get("/console/fragments/status").text
        why = bed.client.get("/api/why/smol").json()
        assert (why["status"], why["changes"]) == ("asleep", ["a request comes"])


def test_a_store_that_is_away_is_no_start(served: Bed) -> None:
    assert served.client.get("/api/status").json()["health"] == "ready"
    served.runtime.troubles["store"] = "the database server does not answer"
    shown = served.client.get("/api/status").json()
    assert (shown["ready"], shown["health"]) == (False, "degraded")
    assert "Degraded" in served.client.get("/").text
    del served.runtime.troubles["store"]


def test_status_says_how_many_answers_kept_what_is_promised(tmp_path: Path) -> None:
    text = template().replace(
        "model: smollm2\nslots: 4", "model: smollm2\nslo: {ttft: 1s, attainment: 90%}\nslots: 4"
    )
    with Bed(tmp_path, text).opened() as bed:
        bed.apply()

        def objective(name: str = "smol") -> Any:
            shown = bed.client.get("/api/status").json()["deployments"]
            return next(d for d in shown if d["name"] == name)["objective"]

        def answered(met: int, missed: int) -> None:
            body = msgspec.json.decode(bed.paths.gateway_file().read_bytes())
            body["deployments"] = {"smol": {"met": met, "missed": missed}}
            bed.paths.gateway_file().write_bytes(msgspec.json.encode(body))

        assert objective("desk") is None
        assert (objective()["attainment_milli"], objective()["attained_milli"]) == (900, None)
        answered(100, 0)
        bed.until(lambda: "smol" in bed.runtime.stats["answers"])
        answered(117, 3)
        bed.until(lambda: objective()["attained_milli"] == 850)
        assert "▼ 85.0 % in time, 90.0 % promised" in " ".join(
            bed.client.get("/console/fragments/status").text.split()
        )


def test_status_shows_what_is_served(served: Bed) -> None:
    shown = served.client.get("/api/status").json()
    assert shown["ready"]
    assert shown["reasons"] == []
    assert shown["factory"] == "first"
    assert shown["spec_version"] == 1
    assert shown["url"] == "http://127.0.0.1:8400"
    smol = next(d for d in shown["deployments"] if d["name"] == "smol")
    assert smol["ready_replicas"] == 1
    assert smol["kind"] == "chat"
    assert smol["weights"][0]["weight_milli"] == 1000
    desk = next(d for d in shown["deployments"] if d["name"] == "desk")
    assert desk["replicas"] == []
    assert desk["reason"]
    assert [s["status"] for s in shown["lines"][0]["stations"]] == ["waiting"] * len(
        shown["lines"][0]["stations"]
    )
    assert shown["energy"] == {"source": served.floor.account.source(), "watts": 14.2}
    assert shown["memory"]["control_bytes"] > 0


def test_a_dead_gateway_is_no_url(served: Bed) -> None:
    served.paths.gateway_file().write_bytes(msgspec.json.encode({"host": "h", "port": 1, "heartbeat_us": 1}))
    shown = served.client.get("/api/status").json()
    assert shown["url"] == ""
    assert "the gateway is not up yet" in shown["reasons"]


def test_a_gateway_that_runs_and_cannot_be_heard_is_not_said_to_be_down(served: Bed) -> None:
    own = procfs.stat(os.getpid())
    assert own is not None
    served.paths.processes.mkdir(parents=True, exist_ok=True)
    record = {"id": "gateway", "kind": "gateway", "pid": own.pid, "start_time": own.start_time}
    served.paths.process("gateway").write_bytes(msgspec.json.encode(record))
    word = {"host": "h", "port": 1, "heartbeat_us": now_us() - 40_500_000}
    served.paths.gateway_file().write_bytes(msgspec.json.encode(word))
    told = next(text for text in served.client.get("/api/status").json()["reasons"] if "gateway" in text)
    assert told.startswith(f"the gateway runs (pid {own.pid}), but its word is 4")
    assert str(served.paths.run) in told
    record["start_time"] += 1  # another process has its pid
    served.paths.process("gateway").write_bytes(msgspec.json.encode(record))
    assert "the gateway is not up yet" in served.client.get("/api/status").json()["reasons"]


def test_processes_lists_the_controller(served: Bed) -> None:
    rows = served.client.get("/api/processes").json()
    assert rows[0]["kind"] == "control"
    assert rows[0]["memory_bytes"] > 0


def test_a_record_of_a_dead_process_is_left_out(served: Bed) -> None:
    record = {"id": "r-000009", "kind": "engine", "pid": 2**22 - 3, "started_us": 1}
    (served.paths.processes / "r-000009.json").write_bytes(msgspec.json.encode(record))
    reused = {"id": "r-000010", "kind": "engine", "pid": 1, "start_time": -1, "started_us": 1}
    (served.paths.processes / "r-000010.json").write_bytes(msgspec.json.encode(reused))
    (served.paths.processes / "torn.json").write_bytes(b'{"id": ')
    assert [row["id"] for row in served.client.get("/api/processes").json()] == ["control"]


def test_a_run_from_data_to_release(served: Bed) -> None:
    run = served.run()
    assert run["status"] == "succeeded", run["reason"]
    assert all(s["status"] in ("done", "reused") for s in run["stations"])
    assert run["verdict"]["passed"]
    assert run["verdict"]["n"] == 100
    assert run["verdict"]["low_milli"] <= run["verdict"]["difference_milli"] <= run["verdict"]["high_milli"]
    assert run["release"]
    served.until(lambda: served.client.get(f"/api/runs/{run['id']}").json()["serving"] == ["desk"])
    models = served.client.get("/api/models").json()
    assert run["release"] in [release["id"] for release in models["releases"]]
    assert run["energy_mj"] > 0


def test_a_rejected_run_keeps_its_verdict(served: Bed) -> None:
    served.floor.reject = True
    run = served.run()
    assert run["status"] == "rejected"
    assert not run["verdict"]["passed"]
    assert run["verdict"]["reasons"]
    assert run["release"] == ""
    assert run["verdict"]["reference"] == "base"
    assert next(s["status"] for s in run["stations"] if s["kind"] == "gate") == "rejected"


def test_a_running_station_has_progress_and_time_to_go(served: Bed) -> None:
    served.floor.held.add("tune")
    run = served.run()
    tune = next(s for s in run["stations"] if s["kind"] == "tune")
    assert tune["status"] == "running"
    assert tune["progress"]["done"] == 48
    assert served.client.post(f"/api/runs/{run['id']}/cancel").json()["cancelled"]
    served.until(lambda: served.runtime.state.runs[run["id"]].status.value == "cancelled")


def test_a_station_whose_job_waits_says_for_what(served: Bed) -> None:
    """It runs as far as the run is concerned; that its job has no room is said beside it and in the list."""
    node = served.client.get("/api/status").json()["nodes"][0]["node"]["id"]
    served.floor.held.add("tune")
    assert (
        served.client.post("/api/cordon", json={"node": node, "reason": "a fan is broken"}).status_code == 200
    )
    run = served.client.post("/api/runs", json={"line": "desk"}).json()["run"]
    served.until(lambda: served.runtime.state.runs[run].stations[0].job)
    (first, *_) = served.client.get(f"/api/runs/{run}").json()["stations"]
    listed = next(job for job in served.client.get("/api/jobs").json() if job["id"] == first["job"])
    said = f"no node has room for a worker: {node} is cordoned: a fan is broken"
    assert (listed["status"], listed["reason"], first["reason"]) == ("pending", said, said)
    shown = served.client.get("/api/status").json()
    assert next(job for job in shown["jobs"] if job["id"] == first["job"])["reason"] == said


def test_a_second_run_at_the_same_time_is_a_conflict(served: Bed) -> None:
    served.floor.held.add("tune")
    served.run()
    answer = served.client.post("/api/runs", json={"line": "desk"})
    assert answer.status_code == 409
    assert error_of(answer)["exit_code"] == 5


def test_unknown_names_are_404(served: Bed) -> None:
    for method, path, body in (
        ("GET", "/api/runs/run-999999", None),
        ("GET", "/api/jobs/nope", None),
        ("GET", "/api/why/nope", None),
        ("GET", "/api/logs/nope", None),
        ("GET", "/api/nothing", None),
        ("POST", "/api/runs", {"line": "nope"}),
        ("POST", "/api/keys", {"tenant": "nope"}),
        ("DELETE", "/api/keys/nope", None),
        ("POST", "/api/rollback", {"alias": "nope"}),
    ):
        answer = served.client.request(method, path, json=body)
        assert answer.status_code == 404, (path, answer.text)
        assert error_of(answer)["kind"] == "not_found"


def test_a_key_is_shown_once(served: Bed) -> None:
    made = served.client.post("/api/keys", json={"tenant": "acme", "project": "support"}).json()
    assert made["secret"].startswith("tm-")
    assert len(made["secret"]) == 43
    listed = served.client.get("/api/keys").text
    assert made["id"] in listed
    assert made["secret"] not in listed
    assert "digest" not in listed
    events = served.client.get("/api/events").text
    assert made["id"] in events
    assert made["secret"] not in events
    assert '"digest"' not in events.split(made["id"])[1]
    gone = served.client.delete(f"/api/keys/{made['id']}").json()
    assert gone == {"id": made["id"], "disabled": True, "effective": True}
    assert served.client.delete(f"/api/keys/{made['id']}").status_code == 409


def test_a_new_key_waits_for_every_gateway_and_says_which_it_could_not_wait_for(
    served: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = served.paths.gateway_file()
    said = msgspec.json.decode(path.read_bytes())
    monkeypatch.setattr(commands, "TOLD_WITHIN_S", 0.1)

    def made(version: int) -> Any:
        path.write_bytes(msgspec.json.encode({**said, "table_version": version}))
        return served.client.post("/api/keys", json={"tenant": "acme"}).json()["effective"]

    version = served.runtime.state.table_version
    assert made(version + 1) is True
    assert made(version + 1) is False  # the second key made a second table
    path.write_bytes(msgspec.json.encode({**said, "heartbeat_us": 0, "table_version": version}))
    assert served.client.post("/api/keys", json={"tenant": "acme"}).json()["effective"] is True, "it is gone"


def test_bad_bodies_are_refused(served: Bed) -> None:
    post = served.client.post
    for answer in (
        post("/api/keys", content=b"{"),
        post("/api/keys", content=b"[1]"),
        post("/api/keys", json={"tenant": 3}),
        post("/api/keys", json={"scope": "root"}),
        post("/api/keys", json={"expires_us": -1}),
        post("/api/runs", json={"line": "x" * 300}),
        post("/api/jobs", json={"tenant": "acme", "project": "support", "command": []}),
        post("/api/jobs", json={"tenant": "acme", "project": "support", "kind": "station", "command": ["x"]}),
        post("/api/plan", json={"factory": {"nope": 1}}),
        served.client.get("/api/usage?by=shoe_size"),
        served.client.get("/api/events?limit=-3"),
        served.client.get("/api/events?limit=99999999"),
    ):
        assert answer.status_code == 400, answer.text
        assert error_of(answer)["message"]
    big = post("/api/keys", content=b" " * (4 * 2**20 + 1))
    assert big.status_code == 400
    assert "too large" in error_of(big)["message"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"resources": {"cpu_millis": -1}}, "resources.cpu_millis is -1"),
        ({"resources": {"cpu_millis": 1, "memory_bytes": -1}}, "resources.memory_bytes is -1"),
        ({"resources": {"cpu_millis": 1, "accelerators": -1}}, "resources.accelerators is -1"),
        ({"resources": {}}, "resources are nothing"),
        ({"workers": 0}, "workers is 0: 1 to 100000"),
        ({"max_attempts": 10**9}, "max_attempts is 1000000000"),
        ({"timeout_us": 2**63}, "timeout_us is 9223372036854775808"),
        ({"runtime_us": -1}, "runtime_us is -1"),
        ({"min_run_us": -1}, "min_run_us is -1"),
        ({"priority": 10**30}, "priority is 1000000000000000000000000000000"),
        ({"command": [""]}, "command has no first word"),
        ({"command": ["a\0b"]}, "NUL"),
        ({"command": ["x" * 100_001]}, "command is too long"),
        ({"name": "x" * 101}, "up to 100 characters"),
        ({"name": "a\x1b[2J"}, "that can be printed"),
        ({"timeout_us": 0}, "timeout of 0"),
        ({"run": "run-000001", "station": "tune"}, "a station's"),
        ({"params": {"a": 1}}, "a station's"),
        ({"workers": "2"}, "workers: expected `int`, got `str`"),
        ({"resources": {"cpu_millis": 1.5}}, "resources.cpu_millis: expected `int`, got `float`"),
        ({"gpus": 1, "resources": {"cpu_millis": 1, "gpu": 1}}, "gpus, resources.gpu"),
        ({"resources": {"cpu_millis": 10**9}}, "Ask for at most 8 cores, 16 GiB and"),
        ({"resources": {"cpu_millis": 1, "accelerators": 1}}, "no accelerator for each worker"),
    ],
)
def test_a_job_out_of_bounds_is_refused_and_says_what_may_be(
    served: Bed, wrong: dict[str, Any], said: str
) -> None:
    right = {"tenant": "acme", "project": "support", "command": ["true"], "resources": {"cpu_millis": 1}}
    before = len(served.runtime.state.jobs)
    answer = served.client.post("/api/jobs", json={**right, **wrong})
    assert answer.status_code in (400, 403)
    found = error_of(answer)
    assert said in " ".join((found["message"], *found["reasons"], found["fix"]))
    assert "backup" not in found["fix"]
    assert len(served.runtime.state.jobs) == before


def test_no_body_makes_the_controller_fail(served: Bed) -> None:
    for body in (b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b'{"a": "\xe9"}', b"NaN"):
        assert served.client.post("/api/jobs", content=body).status_code == 400
    post = served.client.post
    assert post("/api/cordon", json={"node": "here", "undo": "false"}).status_code == 400
    assert post("/api/keys", json={"expires_us": 1}).status_code == 403
    assert post("/api/keys", json={"expires_us": 2**70}).status_code == 403
    lease = {"tenant": "acme", "project": "support", "cpu_millis": 1, "duration_us": 2**62}
    assert post("/api/leases", json=lease).status_code == 403
    unknown = post("/api/plan", json={"factory": {"name": "x", "tenants": [{"name": "a", "quotas": 1}]}})
    assert "tenants.0." in error_of(unknown)["message"]


def test_a_command_job(served: Bed) -> None:
    body = {"tenant": "acme", "project": "support", "command": ["true"], "resources": {"cpu_millis": 100}}
    job = served.client.post("/api/jobs", json=body).json()["job"]
    served.until(lambda: served.runtime.state.jobs[job].status.ended)
    shown = served.client.get(f"/api/jobs/{job}").json()
    assert shown["status"] == "succeeded"
    assert shown["usage"]["energy_mj"] > 0
    assert job in [row["id"] for row in served.client.get("/api/jobs").json()]


def test_a_plan_then_stale(served: Bed) -> None:
    plain = msgspec.to_builtins(served.factory)
    plan = served.client.post("/api/plan", json={"factory": plain}).json()
    assert plan["changes"] == []
    assert plan["forecast"]["tokens_per_s"]["value"] > 0
    plain["deployments"][0]["replicas"] = 2
    plan = served.client.post("/api/plan", json={"factory": plain}).json()
    assert [(c["kind"], c["what"], c["name"]) for c in plan["changes"]] == [("change", "deployment", "smol")]
    body = {"factory": plain, "base_version": plan["base_version"]}
    assert served.client.post("/api/apply", json=body).json() == {"version": 2}
    stale = served.client.post("/api/apply", json=body)
    assert stale.status_code == 409
    assert error_of(stale)["kind"] == "conflict"


def test_rollback_to_the_release_before(served: Bed) -> None:
    assert served.client.post("/api/rollback", json={"alias": "smol"}).status_code in (403, 404, 409)
    first = served.run()["release"]
    served.until(lambda: served.runtime.state.aliases["desk"].desired == first)
    served.client.post("/api/runs", json={"line": "desk", "force": "tune"})
    served.until(lambda: len(served.runtime.state.aliases["desk"].history) > 1)
    assert served.client.get("/api/runs").json()[0]["verdict"]["reference"] == "champion"
    found = served.client.post("/api/rollback", json={"alias": "desk"}).json()
    assert found["to"] == first
    assert found["from"] != first


def test_leases(served: Bed) -> None:
    body = {"tenant": "acme", "project": "support", "cpu_millis": 500, "memory_bytes": 2**20}
    lease = served.client.post("/api/leases", json=body).json()["lease"]
    assert any(lease in (found["id"], found["owner"]) for found in served.client.get("/api/leases").json())
    assert served.client.delete(f"/api/leases/{lease}").json()["released"]
    assert not any(
        lease in (found["id"], found["owner"]) for found in served.client.get("/api/leases").json()
    )


def test_usage_and_ledger(served: Bed) -> None:
    served.settle("acme", "support", "smol", 5)
    rows = served.client.get("/api/usage?by=tenant").json()
    assert [(row["tenant"], row["requests"]) for row in rows if row["requests"]] == [("acme", 5)]
    assert rows[0]["micros"]["USD"] > 0
    report = served.client.get("/api/ledger/verify").json()
    assert report["ok"]
    assert report["settlements"] == 5


def test_events_follow(served: Bed) -> None:
    found = served.client.get("/api/events").json()
    assert [event["seq"] for event in found] == sorted(event["seq"] for event in found)
    assert all(event["text"] for event in found)
    after = served.client.get(f"/api/events?after={found[2]['seq']}&limit=2").json()
    assert [event["seq"] for event in after] == [found[3]["seq"], found[4]["seq"]]


def test_logs_stay_in_their_folder(served: Bed) -> None:
    served.paths.log("gateway").write_text("".join(f"line {i}\n" for i in range(500)))
    (served.paths.root / "secret.log").write_text("secret")
    served.paths.log("link").symlink_to(served.paths.root / "secret.log")
    found = served.client.get("/api/logs/gateway?tail=3").json()
    assert found["text"] == "line 497\nline 498\nline 499\n"
    with served.paths.log("gateway").open("a") as file:
        file.write("more\n")
    assert served.client.get(f"/api/logs/gateway?offset={found['next_offset']}").json()["text"] == "more\n"
    for name in ("..%2Fsecret", "%2e%2e/secret", "link", ".hidden", "a" * 200, "../../secret"):
        answer = served.client.get(f"/api/logs/{name}")
        assert answer.status_code in (400, 404), name
        assert "secret" not in answer.json().get("text", "")


def test_why_explains(served: Bed) -> None:
    found = served.client.get("/api/why/desk").json()
    assert found["id"] == "desk"
    assert found["reasons"]


def test_down_needs_the_word(served: Bed) -> None:
    assert served.client.post("/api/down", json={}).status_code == 403
    assert not served.stopped
    assert served.client.post("/api/down", json={"stop": True}).status_code == 202
    assert served.stopped


@pytest.mark.parametrize(
    "path", ["/api/status", "/api/keys", "/api/models", "/api/runs", "/api/jobs", "/api/leases"]
)
def test_reads_work_before_anything_was_applied(bed: Bed, path: str) -> None:
    assert bed.client.get(path).status_code == 200
