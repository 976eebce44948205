"""The floor of a Ray cluster, with several Ray nodes on this machine and real engines, gangs and kills.

What cheaper tests cannot show: that Ray starts our agents where we decide, that work outlives agents and
controllers, and that nothing of a lost node stays behind.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_bed import FACTORY, LiveFactory

from tokenmill.domain.errors import ResourceError
from tokenmill.domain.factory import JobTemplate, Project, Resources, Tenant
from tokenmill.floor import procfs
from tokenmill.floor.node import factory_mark
from tokenmill.spec.node_paths import NodePaths
from tokenmill.spec.settings import Settings

pytestmark = [pytest.mark.live, pytest.mark.model]

RANKS_MEET = """
import os, pathlib, sys, time
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
one = torch.ones(1) * (dist.get_rank() + 1)
dist.all_reduce(one)
keys = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "NNODES")
out = pathlib.Path(sys.argv[1], f"{os.environ['RANK']}-{os.environ['TOKENMILL_JOB_ATTEMPT']}")
out.write_text(" ".join(f"{k}={os.environ[k]}" for k in keys) + f" sum={one.item():g}")
hold = pathlib.Path(sys.argv[1], "hold")
while hold.exists():
    time.sleep(0.05)
dist.destroy_process_group()
"""


NODES = ("n1", "n2", "n3")
SMALL = {"object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    """A Ray cluster whose head takes no work."""
    if importlib.util.find_spec("ray") is None:
        if os.environ.get("TOKENMILL_REQUIRE_ALL"):
            pytest.fail("Ray is not installed: pip install 'tokenmill[ray]'")
        pytest.skip("the ray extra is not installed")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **SMALL})
    cluster.ours = {}  # type: ignore[attr-defined]
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def cluster(head: Any) -> Any:
    """With three nodes of one core each; what an earlier test has lost is there again."""
    for name in NODES:
        if head.ours.get(name) not in head.worker_nodes:
            labels = {"tokenmill.io/node": name, "tokenmill.io/rack": "a"}
            head.ours[name] = head.add_node(num_cpus=1, labels=labels, **SMALL)
    return head


@pytest.fixture
def on_ray(cluster: Any, live: LiveFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveFactory]:
    monkeypatch.setenv("TOKENMILL_FLOOR", cluster.address)
    monkeypatch.setenv("TOKENMILL_NODE_GRACE", "3s")
    yield live
    for name in NODES:
        for pid in left_on(live, name):
            os.kill(pid, signal.SIGKILL)


def left_on(live: LiveFactory, node: str) -> dict[int, str]:
    return procfs.marked(factory_mark(NodePaths(live.paths.root, node)))


def status(live: LiveFactory) -> Any:
    return live.api("GET", "/api/status")


def replica(live: LiveFactory) -> Any:
    ready = [r for d in status(live)["deployments"] for r in d["replicas"] if r["status"] == "ready"]
    return ready[0] if ready else None


def held(live: LiveFactory) -> set[str]:
    return {r["id"] for d in status(live)["deployments"] for r in d["replicas"]}


def test_engines_listen_on_a_network_only_where_somebody_vouches_for_it() -> None:
    pytest.importorskip("ray")
    from tokenmill.floor.ray.cluster import RayNode
    from tokenmill.floor.ray.floor import check_network

    far = RayNode("1", "far", "10.0.0.2", {}, {})
    check_network(far, "127.0.0.1", Settings())
    check_network(far, "10.0.0.2", Settings(trust_network="yes"))
    with pytest.raises(ResourceError, match=r"far would listen on 10\.0\.0\.2 without encryption"):
        check_network(far, "10.0.0.2", Settings())


def test_a_node_lost_while_nobody_leads_is_replaced_and_leaves_nothing_behind(
    cluster: Any, on_ray: LiveFactory, until: Callable[..., None]
) -> None:
    on_ray.up(FACTORY)
    on_ray.make_key()
    until(on_ray.ready)
    until(on_ray.answers)
    first = replica(on_ray)
    assert left_on(on_ray, first["node"])
    on_ray.kill_controller()
    cluster.remove_node(cluster.ours[first["node"]], allow_graceful=False)
    until(lambda: not left_on(on_ray, first["node"]))
    on_ray.up()
    until(lambda: (replica(on_ray) or first)["node"] != first["node"])
    until(lambda: first["id"] not in held(on_ray))
    until(on_ray.answers)
    nodes = {n["node"]["id"]: n["lost"] for n in status(on_ray)["nodes"]}
    assert nodes[first["node"]]
    assert sum(nodes.values()) == 1
    on_ray.down()
    assert not any(left_on(on_ray, name) for name in NODES)


def test_streams_and_engines_outlive_agent_and_controller(
    on_ray: LiveFactory, until: Callable[..., None]
) -> None:
    on_ray.up(FACTORY)
    on_ray.make_key()
    until(on_ray.ready)
    until(on_ray.answers)
    engine = on_ray.processes()[replica(on_ray)["id"]]
    lines: list[str] = []

    def stream() -> None:
        body = {"model": "smol", "messages": [{"role": "user", "content": "Tell a long story."}]}
        with httpx.stream(
            "POST",
            f"{on_ray.url}/v1/chat/completions",
            json={**body, "stream": True, "max_tokens": 300, "ignore_eos": True},
            headers=on_ray.headers,
            timeout=120,
            trust_env=False,
        ) as answer:
            lines.extend(line for line in answer.iter_lines() if line)

    client = threading.Thread(target=stream)
    client.start()
    until(lambda: len(lines) > 5)
    on_ray.kill_controller()
    on_ray.up()
    agent = procfs.stat(engine)
    assert agent is not None
    os.kill(agent.parent, signal.SIGKILL)  # the agent; Ray starts it anew, and it finds its engine
    client.join(timeout=120)
    assert lines[-1] == "data: [DONE]"
    until(on_ray.ready)
    until(on_ray.answers)
    assert on_ray.processes()[replica(on_ray)["id"]] == engine
    on_ray.down()
    assert not any(left_on(on_ray, name) for name in NODES)


def test_a_gang_meets_over_two_nodes_and_starts_again_when_one_is_lost(
    cluster: Any, on_ray: LiveFactory, until: Callable[..., None], tmp_path: Path
) -> None:
    script, out = tmp_path / "ranks.py", tmp_path / "out"
    script.write_text(RANKS_MEET)
    out.mkdir()
    (out / "hold").touch()
    gang = JobTemplate(
        "meet",
        "acme",
        "default",
        (sys.executable, str(script), str(out)),
        resources=Resources(cpu_millis=1000),
        workers=2,
    )
    tenants = (*FACTORY.tenants, Tenant("globex", (Project("web"),)))
    on_ray.up(replace(FACTORY, tenants=tenants, deployments=(), models=(), jobs=(gang,)))
    until(lambda: {p.name for p in out.iterdir()} >= {"0-1", "1-1"})
    job = on_ray.api("GET", "/api/jobs")[0]
    first, second = job["nodes"]
    assert first != second
    assert (out / "1-1").read_text() == (
        "RANK=1 LOCAL_RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=1 NODE_RANK=1 NNODES=2 sum=3"
    )
    cluster.remove_node(cluster.ours[second], allow_graceful=False)
    until(lambda: {p.name for p in out.iterdir()} >= {"0-2", "1-2"})
    (out / "hold").unlink()
    until(lambda: on_ray.api("GET", "/api/jobs")[0]["status"] == "succeeded")
    again = on_ray.api("GET", "/api/jobs")[0]
    assert second not in again["nodes"]
    assert again["attempt"] == 2
    on_ray.down()
    assert not any(left_on(on_ray, name) for name in NODES)
