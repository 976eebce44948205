"""The Ray cluster as the floor sees it: joining it, its nodes by name, an agent on each.

All of Ray's API that the project uses is in this file. A node is called by its label ``tokenmill.io/node``,
else by its host name; its place comes from labels too, or from the factory file when that declares it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tokenmill.domain.errors import ResourceError
from tokenmill.domain.factory import Factory, Node
from tokenmill.floor.ray.agent import Agent, Home
from tokenmill.spec.catalogue import with_power

LABEL = "tokenmill.io/"
KNOCK_S = 10.0
JOIN_HELP = "Start one with `ray start --head`, or use --floor ray, which does."
GONE = (
    ray.exceptions.RayActorError,
    ray.exceptions.ActorUnschedulableError,
    ray.exceptions.GetTimeoutError,
    ray.exceptions.RaySystemError,
)
"""An agent that cannot be asked now: it died, its node did, or the cluster cannot reach it."""


@dataclass(frozen=True, slots=True)
class RayNode:
    """One living node. ``id`` is Ray's, and changes when its raylet starts anew; ``name`` stays."""

    id: str
    name: str
    address: str
    labels: Mapping[str, str]
    resources: Mapping[str, float]


def join(address: str, namespace: str) -> None:
    """Connect this process to a cluster. Blocks. Raises ``ResourceError`` when none answers."""
    try:
        _knock(address)
        ray.init(
            address=address,
            namespace=namespace,
            log_to_driver=False,
            configure_logging=False,
            ignore_reinit_error=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ResourceError(
            f"no Ray cluster answers at {address}: {error}", expected="a running cluster", fix=JOIN_HELP
        ) from error


def _knock(address: str) -> None:
    """Raise ``OSError`` when nothing listens at HOST:PORT: Ray itself would go on trying for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()


def leave() -> None:
    """Disconnect. Detached agents go on."""
    ray.shutdown()


def living() -> dict[str, RayNode]:
    """Return the nodes that are alive, by name. Blocks for a moment."""
    found: dict[str, RayNode] = {}
    for entry in sorted(ray.nodes(), key=lambda e: str(e["NodeID"])):
        if not entry["Alive"]:
            continue
        labels = dict(entry["Labels"])
        name = labels.get(f"{LABEL}node") or str(entry["NodeManagerHostname"])
        if name in found:  # several nodes on one machine, without labels
            name = f"{name}-{entry['NodeID'][:6]}"
        address = str(entry["NodeManagerAddress"])
        found[name] = RayNode(entry["NodeID"], name, address, labels, entry["Resources"])
    return found


def head_address() -> str:
    """Return the address of this process's machine in the cluster."""
    return str(ray.util.get_node_ip_address())


def place_of(node: RayNode, measured: Node, factory: Factory) -> Node:
    """Return a node as the factory sees it: measured, within what Ray was told, placed by file or labels."""
    cpu_millis = int(node.resources.get("CPU", 0) * 1000)
    memory_bytes = int(node.resources.get("memory", measured.memory_bytes))
    gpus = int(node.resources.get("GPU", 0))
    found = replace(
        measured,
        id=node.name,
        rack=node.labels.get(f"{LABEL}rack", ""),
        domain=node.labels.get(f"{LABEL}nvlink-domain", ""),
        site=node.labels.get(f"{LABEL}site", measured.site),
        cpu_millis=min(cpu_millis, measured.cpu_millis),
        memory_bytes=min(memory_bytes, measured.memory_bytes),
        accelerators=measured.accelerators[:gpus],
    )
    declared = next((n for n in factory.nodes if n.id == node.name), None)
    if declared is None:
        return with_power(found, factory.types)
    placed = replace(
        declared,
        cpu_millis=min(declared.cpu_millis or found.cpu_millis, found.cpu_millis),
        memory_bytes=min(declared.memory_bytes or found.memory_bytes, found.memory_bytes),
        accelerators=found.accelerators,
    )
    return with_power(placed, factory.types)


def start_agent(node: RayNode, home: Home) -> Any:
    """Return the handle of the agent on ``node``, starting it when there is none. Blocks for a moment.

    The agent is bound to its node: it never moves to another one. It holds no Ray resources, because what
    runs where is the factory's decision.
    """
    return (
        ray.remote(Agent)
        .options(
            name=f"agent-{node.id}",
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        )
        .remote(home)
    )


async def call(method: Any, *arguments: Any) -> Any:
    """Call an agent's method and wait for its answer. Raises what the agent raised, or one of ``GONE``."""
    try:
        return await asyncio.wrap_future(method.remote(*arguments).future())
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def call_now(method: Any, *arguments: Any) -> Any:
    """The same from a thread that may block."""
    try:
        return ray.get(method.remote(*arguments), timeout=30)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def end_agent(agent: Any) -> None:
    """End an agent for good. Its node's processes must be gone before: Ray kills an actor's children."""
    ray.kill(agent, no_restart=True)
