"""How many requests the twin simulates per CPU-second, and how close it stays to a loop over iterations.

Run: ``python bench/twin.py`` for the table, ``--day`` for a whole day of the reference factory,
``--llama3`` for the interruptions of a 54-day training run. All CPU time is counted: making the requests,
routing, results.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

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
from tokenmill.domain.work import JobSpec
from tokenmill.spec.catalogue import catalogue
from tokenmill.twin import floor_arrays as fa
from tokenmill.twin.day_power import Power
from tokenmill.twin.demand import Demand, generator
from tokenmill.twin.factory_day import DayJob, FactoryDay
from tokenmill.twin.faults import correlated, llama3_rates, schedule, shared_parts
from tokenmill.twin.fleet import Fleet
from tokenmill.twin.naive import Asked, NaiveReplica
from tokenmill.twin.step_table import EngineRules, StepTable
from tokenmill.twin.traffic import Lengths
from tokenmill.twin.training import Training, llama3

SLOTS = 16
"""Sequences of a replica of the day: at its peak about two thirds of 1,600 are then in use."""

REFERENCE_RACKS, REPLICAS = 96, 1_728
"""96 racks of 18 trays with 4 GPUs; a replica is one tray."""


def reference_table(sequences: int = 256, clock: float = 1.0) -> StepTable:
    """A round-numbered engine of four accelerators; the speed of the twin hardly depends on it."""
    rules = EngineRules(token_budget=8192, max_sequences=sequences)
    tokens = np.arange(rules.most_tokens + 1)
    seconds = 0.006 + 8e-6 * tokens / clock
    joules = 4 * 900 * clock * np.minimum(1, 0.25 + tokens / 4000) * seconds
    return StepTable(
        "reference",
        tuple(seconds.tolist()),
        8e-9,
        1e-10,
        1_500_000,
        rules,
        tuple(joules.tolist()),
        2e-6,
        0.0,
        1000.0,
    )


def speed(name: str, replicas: int, router: str, demand: Demand, count: int) -> None:
    """Simulate about ``count`` requests and print the row."""
    fleet = Fleet([reference_table()], [0] * replicas, [router])
    window_s = 40_000 / demand.per_second
    fleet.send(demand.window(1, 0.0, window_s))  # compiles, and fills the replicas
    sent, at_s, made_cpu = 0, window_s, 0.0
    began, wall = time.process_time(), time.perf_counter()
    while sent < count:
        making = time.process_time()
        requests = demand.window(1, at_s, at_s + window_s)
        made_cpu += time.process_time() - making
        fleet.send(requests)
        sent, at_s = sent + len(requests), at_s + window_s
    cpu, wall = time.process_time() - began, time.perf_counter() - wall
    fleet.check()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tokens = fleet.count(fa.OUTPUT) / at_s
    print(
        f"{name:<34}{replicas:>6}{sent:>12,}{cpu:>8.1f}{wall:>8.1f}{sent / cpu / 1e6:>8.2f}"
        f"{sent / (cpu - made_cpu) / 1e6:>8.2f}"
        f"{at_s / cpu:>9.0f}{tokens / 1e6:>8.2f}{memory:>7.0f}",
        flush=True,
    )


def against_naive(count: int = 3_000) -> None:
    """Print the largest difference to the reference, and both speeds."""
    table = reference_table(64)
    demand = Demand(20.0, Lengths(1155, 1.0), Lengths(211, 1.0))
    requests = demand.window(3, 0.0, count / 20.0)
    requests["id"] = np.arange(len(requests))
    fleet = Fleet([table], [0], ["random"], log_rows=len(requests), queue_per_slot=4096)
    began = time.process_time()
    fleet.send(requests)
    fleet.advance()
    fast = time.process_time() - began
    fleet.check()
    work = [Asked(float(r["at"]), int(r["input"]), int(r["output"])) for r in requests]
    naive = NaiveReplica(table)
    began = time.process_time()
    naive.serve(work)
    slow = time.process_time() - began
    worst = np.abs(fleet.floor.log[:, 1] - [w.end_s for w in work]).max()
    print(f"\nnaive reference: {len(work):,} requests, largest difference of an end {worst:.1e} s")
    speeds = len(work) / slow, len(work) / fast
    print(f"naive {speeds[0]:,.0f} requests/CPU-s, core {speeds[1]:,.0f}: {slow / fast:,.0f} times as fast")


def table() -> None:
    """The speed table."""
    began = time.perf_counter()
    cpu = time.process_time()
    speed_warm = Fleet([reference_table()], [0], ["two-choices"])
    speed_warm.send(Demand(20.0, Lengths(100), Lengths(10)).window(0, 0.0, 1.0))
    speed_warm.advance()
    print(
        f"compiled or loaded in {time.perf_counter() - began:.1f} s, {time.process_time() - cpu:.1f} CPU-s\n"
    )
    print(
        f"{'':<34}{'repl.':>6}{'requests':>12}{'CPU s':>8}{'wall s':>8}{'M/CPU-s':>8}{'core':>8}{'x real':>9}"
        f"{'Mtok/s':>8}{'MB':>7}"
    )
    chat = Lengths(1155, 1.0), Lengths(211, 1.0)
    long = Lengths(2000, 1.0), Lengths(500, 1.0)
    speed("one replica, 1,155/211", 1, "random", Demand(20.0, *chat), 4_000_000)
    speed("one replica, 2,000/500", 1, "random", Demand(6.0, *long), 3_000_000)
    speed("96 racks, two choices", REPLICAS, "two-choices", Demand(4000.0, *long), 8_000_000)
    speed("96 racks, random", REPLICAS, "random", Demand(4000.0, *long), 8_000_000)
    speed("96 racks, prefix affinity", REPLICAS, "prefix-affinity", Demand(4000.0, *long, sessions=20_000,
          shared_share=0.5), 4_000_000)  # fmt: skip
    speed("6,912 replicas, two choices", 6_912, "two-choices", Demand(4000.0, *long), 4_000_000)
    against_naive()


def interruptions(seed: int) -> None:
    """The table of Llama 3 against five seeded runs at its rates."""
    print("published: 419 interruptions in 54 days on 16,384 GPUs, effective training time above 90 %")
    for one in range(seed, seed + 5):
        run = llama3(one)
        parts = ", ".join(f"{kind} {count}" for kind, count in run.by_kind[:4])
        print(
            f"seed {one}: {run.interruptions} ({(run.interruptions - 419) / 419**0.5:+.1f} deviations), "
            f"goodput {run.goodput:.1%}: lost {run.lost_s / run.seconds:.1%}, checkpoints "
            f"{run.saving_s / run.seconds:.1%}, down {run.down_s / run.seconds:.1%}; {parts}"
        )


def reference_factory() -> Factory:
    """96 racks of 18 trays with 4 GB300; chat on 1,100 to 1,600 trays, the rest trains."""
    gb = 1 << 30
    nodes = tuple(
        Node(
            f"rack{rack:02}-tray{tray:02}",
            "taiwan",
            f"rack{rack:02}",
            f"rack{rack:02}",
            144_000,
            960 * gb,
            tuple(Accelerator(f"rack{rack:02}-tray{tray:02}-gpu{g}", "gb300", 288 * gb) for g in range(4)),
        )
        for rack in range(REFERENCE_RACKS)
        for tray in range(REPLICAS // REFERENCE_RACKS)
    )
    chat = Deployment(
        "chat", model="model", replicas=1_100, max_replicas=1_600, slots=SLOTS,
        resources=Resources(accelerators=4), engine="vllm",
    )  # fmt: skip
    tenants = tuple(Tenant(f"tenant{i}", (Project("main"),)) for i in range(4))
    return Factory(
        "reference", (Site("taiwan", "TW", 16_000_000_000, 1200),), nodes, tenants=tenants,
        models=(Model("model", "package:model"),), deployments=(chat,),
    )  # fmt: skip


def reference_day(seed: int) -> FactoryDay:
    """The reference factory with its traffic, jobs and faults."""
    factory = reference_factory()
    draw = generator(seed, "jobs")
    jobs = []
    for n in range(200):
        workers = int(draw.choice([1, 2, 4, 8, 16], p=[0.3, 0.3, 0.2, 0.15, 0.05]))
        work_s = float(np.clip(draw.lognormal(np.log(5400), 0.7), 600, 6 * 3600))
        spec = JobSpec(
            "command", f"tenant{n % 4}", "main", ("tune",), resources=Resources(accelerators=4),
            workers=workers, timeout_us=86_400_000_000, max_attempts=20, runtime_us=round(work_s * 1e6),
        )  # fmt: skip
        jobs.append(DayJob(f"tune-{n:03}", float(draw.uniform(0, 79_200)), spec, Training(work_s)))
    names = [node.id for node in factory.nodes]
    day_us = 86_400_000_000
    faults = (*schedule(names, llama3_rates(4), day_us, seed),
              *correlated(shared_parts(factory.nodes, 4), day_us, seed))  # fmt: skip
    demand = Demand(4_000.0, Lengths(2000, 1.0), Lengths(500, 1.0), swing=0.3)
    tables = [reference_table(SLOTS, clock) for clock in (1.0, 0.9, 0.8)]
    power = Power(catalogue().accelerators, 1.2, 16e6)
    return FactoryDay(factory, [tables], [demand], jobs, sorted(faults), power, seed)


def whole_day(seed: int, hours: float) -> None:
    """96 racks of GB300 NVL72: chat for everyone, 200 fine-tuning jobs, failures, a power cap."""
    began, cpu = time.perf_counter(), time.process_time()
    day = reference_day(seed)
    ready = time.perf_counter() - began
    control = day.world.steps
    day.run(hours * 3600)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    counts = day.fleet.count
    jobs = day.world.state.jobs.values()
    trained = [day.world.training[name] for name in sorted(day.world.training)]
    kept, ran = sum(t.saved_s for t in trained), sum(t.ran_s for t in trained)
    peak = max(row.watts for row in day.series)
    lost = sum(kind == "NodeLost" for _, kind in day.world.log)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{hours:g} h of the reference factory, seed {seed}")
    print(f"{wall:.0f} s, of which {ready:.0f} s to bring it up; {cpu:.0f} CPU-s; {memory:.0f} MB")
    rate = counts(fa.TAKEN) / cpu / 1e6
    refused = f"refused {counts(fa.REFUSED):,}, broken {day.broken:,}"
    print(f"requests {counts(fa.TAKEN):,}, {refused}; {rate:.2f} M/CPU-s")
    ttft, tpot = ([day.fleet.quantile(0, m, q) for q in (0.5, 0.99)] for m in (fa.TTFT, fa.TPOT))
    output = counts(fa.OUTPUT) / hours / 3.6e9
    print(
        f"output {output:.3f} M tokens/s; TTFT p50 {ttft[0]:.3f} p99 {ttft[1]:.3f} s; "
        f"TPOT p50 {tpot[0] * 1e3:.1f} p99 {tpot[1] * 1e3:.1f} ms"
    )
    print(
        f"replicas {min(row.ready for row in day.series)} to {max(row.ready for row in day.series)}, "
        f"nodes lost {lost}, most at once {max(row.nodes_lost for row in day.series)}, "
        f"{day.world.steps - control:,} control steps"
    )
    print(
        f"jobs done {sum(job.status == 'succeeded' for job in jobs)} of {len(day.jobs)}, failures of jobs "
        f"{sum(t.failures for t in trained)}, kept {kept / max(1.0, ran):.1%} of the trained time"
    )
    print(f"energy {day.joules / 3.6e9:.1f} MWh, peak {peak / 1e6:.2f} MW; digest {day.digest()[:16]}")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--day", action="store_true")
    parser.add_argument("--llama3", action="store_true")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.llama3:
        interruptions(given.seed)
    elif given.day:
        whole_day(given.seed, given.hours)
    else:
        table()


if __name__ == "__main__":
    main()
