"""How many events per second one core takes through ``control.step``, on a realistic mix.

Run: ``python bench/control_core.py [--events 100000] [--nodes 32]``. It builds a factory of nodes with eight
accelerators, generates a journal that a floor could have produced (jobs that come, start and end, replicas
that restart, load reports, ticks), then times ``step`` over it alone. The generation is not timed. Prints one
row per event kind.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import defaultdict

from tokenmill.control.core import step
from tokenmill.control.state import EMPTY, State
from tokenmill.domain import events as ev
from tokenmill.domain.effects import ChargeWork, StartJob, StartReplica
from tokenmill.domain.factory import (
    Accelerator,
    Deployment,
    Factory,
    Model,
    Node,
    Project,
    Resources,
    Site,
    Tenant,
)
from tokenmill.domain.work import Imported, JobSpec, WorkUsage

SECOND = 1_000_000
GB = 1 << 30


def factory() -> Factory:
    """Four tenants and three deployments, one of them scaled by load."""
    gpu = Resources(4000, 32 * GB, 1)
    return Factory(
        "bench",
        sites=(Site("here", "EU"),),
        tenants=tuple(Tenant(f"t{i}", (Project("main"),), share=1 + i % 2) for i in range(4)),
        models=(Model("m", "package:m"),),
        deployments=tuple(
            Deployment(f"chat{i}", model="m", replicas=4, max_replicas=8 if i == 0 else 4, resources=gpu)
            for i in range(3)
        ),
    )


def journal(count: int, nodes: int) -> tuple[State, list[ev.Event]]:
    """A settled factory and ``count`` events that follow from it."""
    state: State = EMPTY
    now = 1_800_000_000 * SECOND
    first: list[ev.Event] = [ev.ControllerStarted(now, 1)]
    for n in range(nodes):
        gpus = tuple(Accelerator(f"n{n:03d}/gpu{i}", "h200-sxm", 141 * GB) for i in range(8))
        first.append(
            ev.NodeJoined(now, Node(f"n{n:03d}", "here", f"rack{n // 4}", "", 192_000, 2048 * GB, gpus))
        )
    first += [ev.SpecApplied(now, 0, factory()), ev.ModelImported(now, Imported("m", "sha256:00", 1, "gguf"))]
    replicas: list[str] = []
    for event in first:
        state, effects = step(state, event)
        replicas += [effect.replica for effect in effects if isinstance(effect, StartReplica)]
    for name in replicas:
        state, _ = step(state, ev.ReplicaStarted(now, name, "10.0.0.1:8000"))
        state, _ = step(state, ev.ReplicaReady(now, name))
    return state, _events(state, count, now, replicas)


def _events(state: State, count: int, now: int, replicas: list[str]) -> list[ev.Event]:
    """Per 20 events: 5 jobs (3 events each), 3 load reports, 2 ticks; one replica dies per 1500 jobs."""
    out: list[ev.Event] = []
    running: list[tuple[str, int]] = []
    serial = 0

    def tell(event: ev.Event) -> None:
        nonlocal state
        out.append(event)
        state, effects = step(state, event)
        for effect in effects:
            if isinstance(effect, StartJob):
                tell(ev.JobStarted(now, effect.job, effect.attempt))
                running.append((effect.job, effect.attempt))
            elif isinstance(effect, StartReplica):
                tell(ev.ReplicaStarted(now, effect.replica, "10.0.0.1:8000"))
                tell(ev.ReplicaReady(now, effect.replica))
                replicas.append(effect.replica)

    while len(out) < count:
        now += SECOND // 50
        for _ in range(5):
            serial += 1
            shape = Resources(2000, 16 * GB, (0, 1, 1, 2, 8)[serial % 5])
            workers = 4 if serial % 10 == 4 else 1
            spec = JobSpec("command", f"t{serial % 4}", "main", ("true",), resources=shape, workers=workers)
            tell(ev.JobSubmitted(now, f"b-{serial:07d}", spec))
        for i in range(3):
            tell(ev.LoadReported(now, f"chat{i}", 6 + serial % 5))
        tell(ev.Tick(now))
        tell(ev.Tick(now))
        while len(running) > 60:
            job, attempt = running.pop(serial * 7919 % len(running))
            tell(ev.JobExited(now, job, attempt, 0, None, "", WorkUsage(accelerator_us=5)))
        if serial % 1500 == 0 and replicas:
            tell(ev.ReplicaExited(now, replicas.pop(0), "it was killed"))
    return out[:count]


def main() -> None:
    """Time it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--nodes", type=int, default=32)
    given = parser.parse_args()
    start, events = journal(given.events, given.nodes)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)  # as the controller does (tokenmill.compose)
    best = 0.0
    for _ in range(3):
        state = start
        began = time.process_time()
        for event in events:
            state, _ = step(state, event)
        best = max(best, len(events) / (time.process_time() - began))
    spent: dict[str, float] = defaultdict(float)
    times: dict[str, int] = defaultdict(int)
    charges = 0
    state = start
    for event in events:
        began = time.perf_counter()
        state, effects = step(state, event)
        spent[type(event).__name__] += time.perf_counter() - began
        times[type(event).__name__] += 1
        charges += sum(isinstance(effect, ChargeWork) for effect in effects)
    print(f"{'event':<16}{'count':>9}{'share':>8}{'us/event':>10}")
    for kind in sorted(times, key=lambda kind: -spent[kind]):
        share = times[kind] / len(events)
        print(f"{kind:<16}{times[kind]:>9}{share:>8.1%}{spent[kind] / times[kind] * 1e6:>10.1f}")
    print(f"{len(events)} events, {given.nodes} nodes, {charges} charges")
    print(f"{best:,.0f} events/s of CPU time (best of 3)")


if __name__ == "__main__":
    main()
