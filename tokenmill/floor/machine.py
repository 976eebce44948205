"""This machine as a node: cores, memory and GPUs, as the operating system and NVML count them."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from typing import Any

import psutil

from tokenmill.domain.factory import Accelerator, Factory, Node
from tokenmill.floor.energy import Counter, NvmlCounter
from tokenmill.spec.catalogue import accelerator_named, with_power

LOCAL_NODE = "local"


def local_node(factory: Factory) -> Node:
    """Return this machine under the name that the factory gives it.

    That is the declared node which is called like this host or "local", or the only one declared; with no
    nodes declared it is "local" at the first site. Capacity is measured; a smaller declared one wins, so
    that an operator can keep part of a machine for something else.
    """
    measured = measure(LOCAL_NODE, factory.sites[0].name if factory.sites else "")
    declared = declared_node(factory)
    if declared is None:
        return with_power(measured, factory.types)
    accelerators = tuple(
        replace(gpu, id=gpu.id.replace(LOCAL_NODE, declared.id, 1)) for gpu in measured.accelerators
    )
    placed = replace(
        declared,
        cpu_millis=min(declared.cpu_millis or measured.cpu_millis, measured.cpu_millis),
        memory_bytes=min(declared.memory_bytes or measured.memory_bytes, measured.memory_bytes),
        accelerators=accelerators,
    )
    return with_power(placed, factory.types)


def declared_node(factory: Factory) -> Node | None:
    """Return the node of the file that is this machine, if it names one."""
    names = (LOCAL_NODE, socket.gethostname())
    for node in factory.nodes:
        if node.id in names:
            return node
    return factory.nodes[0] if len(factory.nodes) == 1 else None


def measure(node_id: str, site: str) -> Node:
    """Return what this machine has: cores that we may run on, physical memory, GPUs."""
    return Node(
        id=node_id,
        site=site,
        cpu_millis=len(os.sched_getaffinity(0)) * 1000,
        memory_bytes=psutil.virtual_memory().total,
        accelerators=tuple(gpu for gpu, _ in _gpus(node_id)),
    )


def accelerator_counters(node: Node) -> dict[str, Counter]:
    """Return the energy counter of each GPU of this machine by its accelerator id."""
    counters = [counter for _, counter in _gpus(node.id)]
    return {gpu.id: counter for gpu, counter in zip(node.accelerators, counters, strict=False)}


def device_index(accelerator: str) -> str:
    """Return what CUDA_VISIBLE_DEVICES calls an accelerator: ids end in ``gpu<index>``."""
    return accelerator.rpartition("gpu")[2]


def kind_of(name: str) -> str:
    """Return what the catalogue calls a GPU that its driver calls ``name``, such as "NVIDIA H100 80GB HBM3".

    One that the catalogue does not have keeps its driver's name, in small letters.
    """
    known = accelerator_named(name)
    return known.id if known else name.lower().replace(" ", "-")


def _gpus(node_id: str) -> list[tuple[Accelerator, Counter]]:
    nvml = _nvml()
    if nvml is None:
        return []
    found: list[tuple[Accelerator, Counter]] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = nvml.nvmlDeviceGetName(handle)
        memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
        kind = kind_of(name.decode() if isinstance(name, bytes) else str(name))
        gpu = Accelerator(id=f"{node_id}/gpu{index}", kind=kind, memory_bytes=memory)
        found.append((gpu, NvmlCounter(nvml, handle)))
    return found


def _nvml() -> Any:
    """Return an initialised NVML, or None without the ``gpu`` extra or a driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml
