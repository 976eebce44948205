"""A person's word on releases, recalls and feedback, through the API."""

from __future__ import annotations

import json
from dataclasses import replace

from console_bed import Bed, now_us
from test_console_files import secret_of

from tokenmill.domain.calendar import DAY_US, format_moment
from tokenmill.domain.factory import Capture
from tokenmill.domain.ledger import Outcome, Settlement
from tokenmill.spec.capture_files import CaptureFiles
from tokenmill.store.artifacts import Artifacts


def two_releases(served: Bed) -> tuple[str, str]:
    first = served.run()["release"]
    served.until(lambda: served.runtime.state.aliases["desk"].desired == first)
    served.client.post("/api/runs", json={"line": "desk", "force": "tune"})
    served.until(lambda: len(served.runtime.state.aliases["desk"].history) > 1)
    return first, served.runtime.state.aliases["desk"].desired


def settled(request: str, release: str, tenant: str = "acme", project: str = "support") -> Settlement:
    return Settlement(
        *(request, now_us(), tenant, project, "key-1", "desk", release, "r-1", "chat.completions"),
        *(Outcome.OK, 200),
        input_tokens=3,
        output_tokens=2,
        response=f"chatcmpl-{request}",
    )


def test_hold_resume_promote(served: Bed) -> None:
    first, second = two_releases(served)
    client = served.client
    held = client.post("/api/steer", json={"alias": "desk", "action": "hold"}).json()
    assert held["hold"]
    shown = client.get("/api/status").json()["deployments"]
    assert next(d for d in shown if d["name"] == "desk")["promotion"]["hold"]
    assert not client.post("/api/steer", json={"alias": "desk", "action": "resume"}).json()["hold"]
    assert client.post("/api/steer", json={"alias": "desk", "action": "resume"}).status_code == 409
    back = client.post("/api/steer", json={"alias": "desk", "action": "promote", "release": first}).json()
    assert back["release"] == first != second


def test_recall_lists_whom_it_served(served: Bed) -> None:
    first, second = two_releases(served)
    served.store.ledger.settle([settled("req-1", second), settled("req-2", first)], [], "", 0)
    found = served.client.post("/api/recall", json={"release": second, "reason": "leaked"}).json()
    assert found["aliases"] == {"desk": first}
    (one,) = found["served"]
    assert (one["tenant"], one["requests"], one["output_tokens"]) == ("acme", 1, 2)
    served.until(lambda: [r.release for r in served.store.registry.recalls()] == [second])
    assert served.client.post("/api/recall", json={"release": second}).status_code == 409
    assert served.client.post("/api/rollback", json={"alias": "desk", "to": second}).status_code == 403


def test_feedback_is_of_ones_own_answers_and_counts_once(served: Bed) -> None:
    tenant = served.factory.tenants[0]
    mine = settled("req-1", "import-smollm2", tenant.name, tenant.projects[0].name)
    served.store.ledger.settle([mine], [], "", 0)
    auth, other = secret_of(served), secret_of(served, 1)

    def say(body: object, headers: dict[str, str] = auth) -> tuple[int, dict[str, object]]:
        found = served.client.post("/v1/feedback", json=body, headers=headers)
        return found.status_code, found.json()

    assert say({"id": "chatcmpl-req-1", "rating": "good"})[1]["counted"] is True
    assert say({"id": "req-1", "rating": "bad"})[1]["counted"] is False
    assert served.store.ledger.feedback("req-1") is True
    assert say({"id": "req-1", "rating": "good"}, other)[0] == 404
    assert say({"id": "req-1", "rating": "great"})[0] == 400
    assert say({"id": 5, "rating": "good"})[0] == 400
    assert say({"id": "req-1", "rating": "good", "mood": 1})[1]["error"]["param"] == "mood"


def test_feedback_on_captured_traffic_is_kept_beside_it(served: Bed) -> None:
    tenant = served.factory.tenants[0]
    mine = settled("req-1", "import-smollm2", tenant.name, tenant.projects[0].name)
    served.store.ledger.settle([mine], [], "", 0)
    files = CaptureFiles(served.paths.captures, tenant.name, tenant.projects[0].name)
    served.client.post("/v1/feedback", json={"id": "req-1", "rating": "bad"}, headers=secret_of(served))
    assert files.opinions() == {}
    capture = Capture(("desk",), "agreed in writing", 86_400_000_000, bytes_most=30)
    projects = (replace(tenant.projects[0], capture=capture), *tenant.projects[1:])
    state = served.runtime.state
    tenants = state.index.tenants.set(tenant.name, replace(tenant, projects=projects))
    served.runtime.state = replace(state, index=replace(state.index, tenants=tenants))
    mine = settled("req-2", "import-smollm2", tenant.name, tenant.projects[0].name)
    full, other = (replace(mine, request=f"req-{n}", response=f"chatcmpl-req-{n}") for n in (3, 4))
    served.store.ledger.settle([mine, full, replace(other, alias="other")], [], "", 0)
    for request, rating in (("req-4", "bad"), ("req-2", "bad"), ("req-2", "good"), ("req-3", "bad")):
        said = {"id": request, "rating": rating}
        served.client.post("/v1/feedback", json=said, headers=secret_of(served))
    assert files.opinions() == {"req-2": False}  # of another alias nothing was agreed; then it was full
    assert [one["consent"] for one in files.consents] == ["agreed in writing"]
    assert files.opinion_days == [
        files.folder / f"opinions-{format_moment(mine.at_us // DAY_US * DAY_US)}.jsonl"
    ]
    assert served.store.ledger.feedback("req-3") is False


def test_pause_resume_and_rerun(served: Bed) -> None:
    first = served.run()
    served.floor.held.add("tune")
    client = served.client
    name = client.post("/api/runs", json={"line": "desk", "force": "tune", "parent": first["id"]}).json()[
        "run"
    ]
    shown = client.get(f"/api/runs/{name}").json()
    assert [s["status"] for s in shown["stations"]][:3] == ["reused", "reused", "running"]
    assert shown["parent"] == first["id"]
    assert shown["stations"][3]["usual_s"] >= 0
    assert client.post(f"/api/runs/{name}/pause").json() == {"run": name, "paused": True}
    assert client.get(f"/api/runs/{name}").json()["paused"]
    assert client.post(f"/api/runs/{name}/pause").status_code == 409
    assert client.post(f"/api/runs/{name}/resume").json() == {"run": name, "paused": False}
    assert client.post(f"/api/runs/{name}/cancel").status_code == 200
    assert client.post("/api/runs", json={"line": "desk", "parent": name}).status_code in (400, 404)


def test_trace_goes_from_an_answer_to_its_rows(served: Bed) -> None:
    run = served.run()
    release = served.runtime.state.releases[run["release"]]
    tree = served.paths.root / "tree"
    tree.mkdir()
    artifacts = Artifacts(served.paths.artifacts)
    rows = [
        {"n": n, "line": n, "digest": "ab", "messages": [{"role": "user", "content": f"q{n}"}]}
        for n in (1, 2)
    ]
    (served.paths.root / "rows").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = artifacts.put_file(served.paths.root / "rows")
    manifest = {
        "data": {"source": {"name": "t.jsonl"}, "artifacts": {"train": train}},
        "code": {"version": "1"},
    }
    (tree / "manifest.json").write_text(json.dumps(manifest))
    served.store.ledger.settle([settled("req-1", release.id)], [], "", 0)
    (served.paths.artifacts / "sha256" / release.digest[7:9]).mkdir(parents=True, exist_ok=True)
    tree.rename(served.paths.artifacts / "sha256" / release.digest[7:9] / release.digest[7:])
    for name in ("req-1", "chatcmpl-req-1"):
        found = served.client.get(f"/api/trace/{name}", params={"rows": 1, "offset": 1}).json()
        assert found["answer"]["request"] == "req-1"
        assert found["release"]["id"] == release.id
        assert found["run"]["id"] == run["id"]
        assert found["run"]["stations"][2]["name"] == "tune"
        assert found["data"]["rows"] == rows[1:]
        assert found["evaluation"]["verdict"]["passed"] is True
        assert found["code"] == {"version": "1"}
        assert found["energy"]["run_mj"] > 0
        assert found["missing"] == []
    assert served.client.get("/api/trace/req-nope").status_code == 404


def test_trace_of_imported_weights_says_what_there_is(served: Bed) -> None:
    served.store.ledger.settle([settled("req-1", "import-smollm2")], [], "", 0)
    found = served.client.get("/api/trace/req-1").json()
    assert found["release"]["origin"] == "import"
    assert found["run"] is None
    served.store.ledger.settle([settled("req-2", "rel-gone")], [], "", 0)
    assert "rel-gone" in served.client.get("/api/trace/req-2").json()["missing"][0]
