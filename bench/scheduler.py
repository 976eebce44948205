"""Real job traces through the control core, beside FIFO, best fit and the fragmentation-gradient rule.

Run: ``python bench/scheduler.py [TRACE ...] [--jobs N]`` with ``../shared/data`` beside the project. The
core is the live one: ``control.step`` gets submissions and exits in virtual time. The others start jobs in
arrival order: ``fifo`` strictly, on the first node that fits; ``best-fit`` passes over what does not fit
and takes the node with the fewest free GPUs; ``fgd`` does the same by the smallest growth of expected
fragmentation (Weng et al., USENIX ATC 2023, implemented from the paper's description for whole GPUs: a task
type that a node cannot hold finds all its free GPUs fragmented; types and their weights are those of the
trace). Jobs state their true run time to the core. ``tokenmill`` shares between the trace's tenants, of whom
the others know nothing; ``tokenmill-one`` has all jobs in one tenant, as the others do. A trace meets a
stated floor of nodes, chosen so that jobs have to wait. Fragmentation is the expected share of all GPUs.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import heapq
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tokenmill.control.core import step
from tokenmill.control.state import EMPTY
from tokenmill.domain import events as ev
from tokenmill.domain.effects import StartJob, StopJob
from tokenmill.domain.factory import Accelerator, Factory, Node, Project, Resources, Site, Tenant
from tokenmill.domain.work import JobSpec

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SECOND = 1_000_000
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Work:
    """One job of a trace: seconds, whole GPUs per worker."""

    at_s: float
    run_s: float
    gpus: int
    workers: int
    cpu_millis: int
    memory_bytes: int
    tenant: str


@dataclass(slots=True)
class Machine:
    name: str
    gpus: int
    cpu_millis: int
    memory_bytes: int
    rack: str = ""


@dataclass(slots=True)
class Meter:
    """Waits, and allocation and fragmentation over time until the last arrival."""

    total: int
    kinds: list[tuple[tuple[int, int, int], float]]
    waits: list[float] = field(default_factory=list)
    busy: int = 0
    broken: float = 0.0
    busy_s: float = 0.0
    broken_s: float = 0.0
    last_s: float = 0.0
    known: dict[tuple[int, int, int], float] = field(default_factory=dict)

    def fragment(self, gpus: int, cpu: int, memory: int) -> float:
        key = (gpus, cpu, memory)
        found = self.known.get(key)
        if found is None:
            lost = (w for (g, c, m), w in self.kinds if g > gpus or c > cpu or m > memory)
            found = self.known[key] = gpus * sum(lost)
        return found

    def until(self, now_s: float) -> None:
        self.busy_s += self.busy * (now_s - self.last_s)
        self.broken_s += self.broken * (now_s - self.last_s)
        self.last_s = now_s


def rows(path: str) -> list[dict[str, str]]:
    with gzip.open(DATA / path, "rt") as file:
        return list(csv.DictReader(file))


def philly() -> tuple[list[Work], list[Machine]]:
    work = [
        Work(float(r["submit_s"]), float(r["duration_s"]), int(r["num_gpus"]), 1, 1000, 0, r["vc"])
        for r in rows("jobs_philly/jobs.csv.gz")
    ]
    return work, [Machine(f"n{i:03d}", 8, 96_000, GIB, f"r{i // 8}") for i in range(60)]


def kalos() -> tuple[list[Work], list[Machine]]:
    work = []
    for r in rows("jobs_acme_kalos/large_jobs.csv.gz"):
        gpus, nodes = int(r["gpus"]), max(1, int(r["nodes"]))
        work.append(
            Work(float(r["submit_s"]), float(r["duration_s"]), -(-gpus // nodes), nodes, 8000, 0, "llm")
        )
    return work, [Machine(f"n{i:03d}", 8, 128_000, GIB, f"r{i // 16}") for i in range(128)]


def openb() -> tuple[list[Work], list[Machine]]:
    machines = [
        Machine(r["sn"], int(r["gpu"]), int(r["cpu_milli"]), int(r["memory_mib"]) << 20)
        for r in rows("jobs_openb_2023/nodes.csv.gz")
        if int(r["gpu"] or 0)
    ]
    work = []
    for r in rows("jobs_openb_2023/pods_default.csv.gz"):
        at, end = float(r["creation_time"]), float(r["deletion_time"])
        if at > 9e6 and end > at:
            ask = int(r["cpu_milli"]), int(r["memory_mib"]) << 20
            work.append(Work(at, end - at, int(r["num_gpu"] or 0), 1, *ask, r["qos"]))
    return work, machines[::36]


def dlrm() -> tuple[list[Work], list[Machine]]:
    work = []
    for r in rows("jobs_dlrm_2025/instances.csv.gz"):
        at, end = float(r["creation_time"] or 0), float(r["deletion_time"] or 0)
        if at and end > at:
            cpu, gpu = int(float(r["cpu_request"]) * 1000), int(float(r["gpu_request"] or 0))
            memory = int(float(r["memory_request"] or 0) * GIB)
            work.append(Work(at, end - at, gpu, 1, cpu, memory, r["app_name"]))
    return work, [Machine(f"n{i:03d}", 8, 128_000, 1024 * GIB, f"r{i // 8}") for i in range(70)]


TRACES: dict[str, Callable[[], tuple[list[Work], list[Machine]]]] = {
    "philly": philly,
    "kalos": kalos,
    "openb": openb,
    "dlrm": dlrm,
}


def fits(m: Machine, w: Work) -> bool:
    return m.gpus >= w.gpus and m.cpu_millis >= w.cpu_millis and m.memory_bytes >= w.memory_bytes


def holds(machines: list[Machine], w: Work) -> bool:
    """Whether empty ``machines`` have room for all workers of a job, each on one of its own."""
    return sum(1 for m in machines if fits(m, w)) >= w.workers


def first_fit(free: list[Machine], w: Work, meter: Meter) -> Machine | None:
    return next((m for m in free if fits(m, w)), None)


def best_fit(free: list[Machine], w: Work, meter: Meter) -> Machine | None:
    return min((m for m in free if fits(m, w)), key=lambda m: (m.gpus, m.cpu_millis, m.name), default=None)


def least_fragments(free: list[Machine], w: Work, meter: Meter) -> Machine | None:
    def growth(m: Machine) -> tuple[float, int, str]:
        after = meter.fragment(m.gpus - w.gpus, m.cpu_millis - w.cpu_millis, m.memory_bytes - w.memory_bytes)
        return after - meter.fragment(m.gpus, m.cpu_millis, m.memory_bytes), m.gpus, m.name

    return min((m for m in free if fits(m, w)), key=growth, default=None)


def change(machine: Machine, w: Work, sign: int, meter: Meter) -> None:
    meter.broken -= meter.fragment(machine.gpus, machine.cpu_millis, machine.memory_bytes)
    machine.gpus += sign * w.gpus
    machine.cpu_millis += sign * w.cpu_millis
    machine.memory_bytes += sign * w.memory_bytes
    meter.broken += meter.fragment(machine.gpus, machine.cpu_millis, machine.memory_bytes)
    meter.busy -= sign * w.gpus


def in_order(work: list[Work], machines: list[Machine], meter: Meter, choose: Callable, strict: bool) -> None:
    """FIFO, best fit and FGD: one queue in arrival order; else what does not fit is passed over."""
    queue: deque[int] = deque()
    ends: list[tuple[float, int, list[Machine]]] = []
    arrivals = deque(range(len(work)))
    while arrivals or ends:
        now = min(work[arrivals[0]].at_s if arrivals else 1e30, ends[0][0] if ends else 1e30)
        meter.until(min(now, work[-1].at_s))
        while ends and ends[0][0] <= now:
            _, job, used = heapq.heappop(ends)
            for machine in used:
                change(machine, work[job], 1, meter)
        while arrivals and work[arrivals[0]].at_s <= now:
            queue.append(arrivals.popleft())
        missed: set[tuple[int, int, int, int]] = set()
        kept: deque[int] = deque()
        while queue:
            job = queue.popleft()
            w = work[job]
            shape = (w.gpus, w.workers, w.cpu_millis, w.memory_bytes)
            used = [] if shape in missed else bind(machines, w, meter, choose)
            if not used:
                kept.append(job)
                missed.add(shape)
                if strict:
                    break
                continue
            meter.waits.append(now - w.at_s)
            heapq.heappush(ends, (now + w.run_s, job, used))
        kept.extend(queue)
        queue = kept


def bind(machines: list[Machine], w: Work, meter: Meter, choose: Callable) -> list[Machine]:
    used: list[Machine] = []
    for _ in range(w.workers):
        machine = choose(machines, w, meter)
        if machine is None:
            for taken in used:
                change(taken, w, 1, meter)
            return []
        change(machine, w, -1, meter)
        used.append(machine)
    return used


def ours(work: list[Work], machines: list[Machine], meter: Meter) -> None:
    """The live core, told of submissions and exits."""
    tenants = sorted({w.tenant for w in work})
    names = {tenant: f"t{i:03d}" for i, tenant in enumerate(tenants)}
    factory = Factory(
        "trace", sites=(Site("s"),), tenants=tuple(Tenant(names[t], (Project("p"),)) for t in tenants)
    )
    mirror = {m.name: m for m in machines}
    nodes = tuple(
        Node(m.name, "s", m.rack, "", m.cpu_millis, m.memory_bytes, cards(m.name, m.gpus)) for m in machines
    )
    state, _ = step(EMPTY, ev.SpecApplied(1, 0, factory))
    for node in nodes:
        state, _ = step(state, ev.NodeJoined(1, node))
    ends: list[tuple[float, int, int]] = []
    base = 1_000_000 * SECOND
    arrivals = deque(range(len(work)))
    while arrivals or ends:
        now = min(work[arrivals[0]].at_s if arrivals else 1e30, ends[0][0] if ends else 1e30)
        meter.until(min(now, work[-1].at_s))
        at_us = base + int(now * SECOND)
        if ends and ends[0][0] <= now:
            _, job, attempt = heapq.heappop(ends)
            for node in state.jobs[f"j{job:06d}"].nodes:
                change(mirror[node], work[job], 1, meter)
            state, effects = step(state, ev.JobExited(at_us, f"j{job:06d}", attempt, 0))
        else:
            job = arrivals.popleft()
            w = work[job]
            ask = Resources(w.cpu_millis, w.memory_bytes, w.gpus)
            run_us = int(w.run_s * SECOND)
            spec = JobSpec(
                "command", names[w.tenant], "p", ("x",), {}, ask, w.workers, timeout_us=0, runtime_us=run_us
            )
            state, effects = step(state, ev.JobSubmitted(at_us, f"j{job:06d}", spec))
        for effect in effects:
            assert not isinstance(effect, StopJob)
            if isinstance(effect, StartJob):
                started = int(effect.job[1:])
                for node in effect.nodes:
                    change(mirror[node], work[started], -1, meter)
                meter.waits.append(now - work[started].at_s)
                heapq.heappush(ends, (now + work[started].run_s, started, effect.attempt))


def cards(node: str, count: int) -> tuple[Accelerator, ...]:
    return tuple(Accelerator(f"{node}/{i}", "gpu", 0) for i in range(count))


LOAD = 0.9


def scaled(work: list[Work], machines: list[Machine], load: float = LOAD) -> list[Work]:
    """Arrivals drawn together or apart so that the scarcest resource is asked for ``load`` of the time."""
    first = work[0].at_s
    span = max(1.0, work[-1].at_s - first)
    offered = [
        (sum(w.gpus * w.workers * w.run_s for w in work), sum(m.gpus for m in machines)),
        (sum(w.cpu_millis * w.workers * w.run_s for w in work), sum(m.cpu_millis for m in machines)),
        (sum(w.memory_bytes * w.workers * w.run_s for w in work), sum(m.memory_bytes for m in machines)),
    ]
    factor = max(asked / span / there for asked, there in offered) / load
    return [replace(w, at_s=first + (w.at_s - first) * factor) for w in work]


def play(work: list[Work], machines: list[Machine], policy: str) -> Meter:
    """Live ``work`` through on ``machines``, which end as they began."""
    counts = Counter((w.gpus, w.cpu_millis, w.memory_bytes) for w in work if w.gpus)
    weight = sum(counts.values())
    meter = Meter(sum(m.gpus for m in machines), [(kind, n / weight) for kind, n in counts.most_common(60)])
    meter.broken = sum(meter.fragment(m.gpus, m.cpu_millis, m.memory_bytes) for m in machines)
    meter.last_s = work[0].at_s
    if policy.startswith("tokenmill"):
        one = policy == "tokenmill-one"
        ours([replace(w, tenant="all") for w in work] if one else work, machines, meter)
    else:
        rules = {"fifo": (first_fit, True), "best-fit": (best_fit, False), "fgd": (least_fragments, False)}
        in_order(work, machines, meter, *rules[policy])
    assert len(meter.waits) == len(work), (len(meter.waits), len(work))
    return meter


def measure(trace: str, policy: str, most: int, skip: int = 0, load: float = LOAD) -> str:
    """One row of the table."""
    work, machines = TRACES[trace]()
    able = [w for w in work if holds(machines, w)]
    work = scaled(sorted(able, key=lambda w: w.at_s)[skip : skip + most], machines, load)
    meter = play(work, machines, policy)
    waits = sorted(meter.waits)
    span = max(1.0, work[-1].at_s - work[0].at_s) * meter.total
    p95 = waits[int(len(waits) * 0.95)]
    return (
        f"| {trace} | {policy} | {len(work)} | {meter.total} | {sum(waits) / len(waits):,.0f} | {p95:,.0f} | "
        f"{meter.busy_s / span:.1%} | {meter.broken_s / span:.2%} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="*", default=sorted(TRACES))
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--skip", type=int, default=0, help="jobs of the trace before the first one taken")
    parser.add_argument("--load", type=float, default=LOAD, help="of the scarcest resource")
    given = parser.parse_args()
    print("| trace | policy | jobs | GPUs | mean wait s | p95 wait s | allocated | fragmented |")
    print("|---|---|---|---|---|---|---|---|")
    for trace in given.traces:
        for policy in ("fifo", "best-fit", "fgd", "tokenmill-one", "tokenmill"):
            print(measure(trace, policy, given.jobs, given.skip, given.load), flush=True)


if __name__ == "__main__":
    main()
