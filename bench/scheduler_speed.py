"""How long one scheduling pass takes on racks of NVL72, and one new job beside a full queue.

Run: ``python bench/scheduler_speed.py [--large]``. A pass: an idle floor of 96 racks (6,912 GPUs) with
2,000 queued gangs of four tenants; with ``--large`` also 1,389 racks (100,008 GPUs) with 29,000. Then a
second pass over what did not fit, and a single new job through ``control.step``. CPU seconds of one core,
best of three.
"""

from __future__ import annotations

import argparse
import gc
import random
import time

from immutables import Map

from tokenmill.control.core import step
from tokenmill.control.draft import Draft
from tokenmill.control.index import index_state
from tokenmill.control.schedule import schedule
from tokenmill.control.state import EMPTY, State
from tokenmill.domain import events as ev
from tokenmill.domain.effects import StartJob
from tokenmill.domain.factory import Accelerator, Factory, Node, Project, Resources, Site, Tenant
from tokenmill.domain.work import Job, JobSpec, JobStatus, NodeState

SECOND = 1_000_000
NOW = 1_800_000_000 * SECOND
GB = 10**9


def rack_nodes(racks: int) -> list[Node]:
    """18 trays of four GPUs a rack, one NVLink domain each; 8 racks a leaf."""
    nodes = []
    for rack in range(racks):
        name = f"rack-{rack:04d}"
        for tray in range(18):
            node = f"{name}/tray-{tray:02d}"
            cards = tuple(Accelerator(f"{node}/gpu-{i}", "b300-gb300", 279 * GB) for i in range(4))
            nodes.append(Node(node, "here", name, name, 144_000, 960 * GB, cards, leaf=f"leaf-{rack // 8}"))
    return nodes


def queued(racks: int, gangs: int, seed: int = 1) -> State:
    """A floor with nothing on it and ``gangs`` jobs that wait: 1 to 512 trays, 1 to 4 GPUs, some CPU-only."""
    draw = random.Random(seed)
    factory = Factory(
        "bench",
        sites=(Site("here"),),
        tenants=tuple(Tenant(f"t{i}", (Project("main"),), share=1 + i % 2) for i in range(4)),
    )
    jobs = {}
    for number in range(gangs):
        shape = draw.choice((0, 1, 1, 2, 4, 4, 4, 4))
        workers = draw.choice((1, 1, 1, 2, 4, 8, 16, 16, 32, 64)) if shape == 4 else draw.choice((1, 1, 2, 4))
        spec = JobSpec(
            "command",
            f"t{number % 4}",
            "main",
            ("true",),
            resources=Resources(8000 * max(1, shape), 64 * GB, shape),
            workers=workers,
            priority=draw.choice((0, 0, 0, 5)),
        )
        name = f"j{number:06d}"
        jobs[name] = Job(name, spec, JobStatus.PENDING, NOW - draw.randrange(300) * SECOND)
    nodes = {node.id: NodeState(node, NOW) for node in rack_nodes(racks)}
    index = index_state(factory, nodes, {}, {}, jobs, {})
    return State(factory, nodes=Map(nodes), jobs=Map(jobs), index=index)


def one_pass(state: State) -> tuple[float, State, int]:
    """CPU seconds of one full pass, the state after it and how many gangs started."""
    gc.collect()
    began = time.process_time()
    draft = Draft(state)
    draft.changed = draft.freed = True
    draft.freed_nodes = None
    schedule(draft, NOW)
    spent = time.process_time() - began
    return spent, draft.state(), sum(isinstance(effect, StartJob) for effect in draft.effects)


def report(racks: int, gangs: int, rounds: int) -> None:
    """Print one row."""
    start = queued(racks, gangs)
    best = min((one_pass(start) for _ in range(rounds)), key=lambda found: found[0])
    spent, after, started = best
    again = min(one_pass(after)[0] for _ in range(rounds))
    spec = JobSpec("command", "t1", "main", ("true",), resources=Resources(1000, GB, 0), priority=9)
    small, gang = (
        spec,
        JobSpec("command", "t1", "main", ("true",), resources=Resources(8000, GB, 4), workers=16),
    )
    times = {}
    for name, state in (("busy", after), ("idle", queued(racks, 0))):
        for kind, asked in (("one", small), ("gang of 16", gang)):
            took = []
            for number in range(20):
                began = time.process_time()
                step(state, ev.JobSubmitted(NOW, f"new-{number}", asked))
                took.append(time.process_time() - began)
            times[f"{kind}, {name}"] = min(took) * 1000
    new = "; ".join(f"{kind} {ms:.2f} ms" for kind, ms in times.items())
    print(f"{racks * 72:>7} GPUs {gangs:>6} gangs: pass {spent:.3f} s, {started} started, ", end="")
    print(f"{after.index.fleet.free} GPUs left; pass over the rest {again:.3f} s; new job: {new}")


def main() -> None:
    """Time it and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true")
    given = parser.parse_args()
    assert EMPTY.version == 0
    report(96, 2000, 3)
    if given.large:
        report(1389, 29_000, 1)


if __name__ == "__main__":
    main()
