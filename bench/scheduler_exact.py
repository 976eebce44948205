"""Mean waiting time on small pieces of real traces, beside the least that any schedule could have.

Run: ``pip install ortools; python bench/scheduler_exact.py [TRACE ...] [--pieces N] [--jobs N]`` with
``../shared/data`` beside the project, in an environment of its own: OR-Tools asks for an older protobuf than
our constraints have. A piece is some jobs in a row of a trace, on the first nodes of its floor that hold each
of them, drawn together until more is asked for than there is. OR-Tools' CP-SAT then finds the starts and
nodes with the least sum of waits: the same nodes, whole run times, no preemption. It knows all jobs before
the first comes, which no scheduler can; the others learn of a job when it arrives. Where the solver runs out
of time its proven bound is taken, so the ratios shown are never too good.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, replace

from ortools.sat.python import cp_model
from scheduler import TRACES, Machine, Work, fits, holds, play, scaled

POLICIES = ("fifo", "best-fit", "fgd", "tokenmill")
LOAD = 1.5
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Bound:
    """Least sum of waits in seconds; ``proved`` when a schedule with that sum was found."""

    seconds: float
    proved: bool


def pieces(trace: str, count: int, jobs: int, seed: int) -> list[tuple[list[Work], list[Machine]]]:
    """Seeded pieces in which somebody has to wait under FIFO."""
    work, machines = TRACES[trace]()
    able = [w for w in work if w.gpus and w.run_s >= 1 and holds(machines, w)]
    work = sorted(able, key=lambda w: w.at_s)
    draw = random.Random(seed)
    found: list[tuple[list[Work], list[Machine]]] = []
    for _ in range(200 * count):
        if len(found) == count:
            break
        start = draw.randrange(len(work) - jobs)
        floor = floor_for(work[start : start + jobs], machines)
        if not floor:
            continue
        piece = scaled(work[start : start + jobs], floor, LOAD)
        first = piece[0].at_s
        piece = [replace(w, at_s=float(int(w.at_s - first)), run_s=float(round(w.run_s))) for w in piece]
        if sum(play(piece, floor, "fifo").waits) > 0:
            found.append((piece, floor))
    return found


def floor_for(work: list[Work], machines: list[Machine]) -> list[Machine]:
    """The first nodes of a floor that hold each job alone; empty when a dozen are too few."""
    for count in range(1, 13):
        floor = [replace(m) for m in machines[:count]]
        if all(holds(floor, w) for w in work):
            return floor
    return []


def least(work: list[Work], machines: list[Machine], limit_s: float) -> Bound:
    """What CP-SAT finds or proves within ``limit_s``."""
    model = cp_model.CpModel()
    horizon = int(max(w.at_s for w in work) + sum(w.run_s for w in work))
    starts, ends, here = [], [], []
    for j, w in enumerate(work):
        start = model.new_int_var(int(w.at_s), horizon, f"s{j}")
        end = model.new_int_var(int(w.at_s), horizon, f"e{j}")
        used = [model.new_bool_var(f"x{j}-{n}") for n in range(len(machines))]
        model.add(sum(used) == w.workers)
        for n, machine in enumerate(machines):
            if not fits(machine, w):
                model.add(used[n] == 0)
        starts.append(start)
        ends.append(end)
        here.append([model.new_optional_interval_var(start, int(w.run_s), end, x, "") for x in used])
    whole = [model.new_interval_var(starts[j], int(w.run_s), ends[j], "") for j, w in enumerate(work)]
    for of_job, of_node in (
        ([w.gpus for w in work], [m.gpus for m in machines]),
        ([w.cpu_millis for w in work], [m.cpu_millis for m in machines]),
        ([-(-w.memory_bytes // MIB) for w in work], [m.memory_bytes // MIB for m in machines]),
    ):
        for n, most in enumerate(of_node):
            model.add_cumulative([here[j][n] for j in range(len(work))], of_job, most)
        together = [asked * w.workers for asked, w in zip(of_job, work, strict=True)]
        model.add_cumulative(whole, together, sum(of_node))  # implied; it tightens the bound
    model.minimize(sum(starts) - sum(int(w.at_s) for w in work))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = limit_s
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 1
    status = solver.solve(model)
    return Bound(max(0.0, solver.best_objective_bound), status == cp_model.OPTIMAL)


def row(trace: str, given: argparse.Namespace) -> str:
    """One row of the table: mean waits in seconds, and ours over the bound."""
    chosen = pieces(trace, given.pieces, given.jobs, given.seed)
    sums = dict.fromkeys(POLICIES, 0.0)
    bounds = []
    for work, machines in chosen:
        for policy in POLICIES:
            sums[policy] += sum(play(work, machines, policy).waits)
        bounds.append(least(work, machines, given.seconds))
    jobs = sum(len(work) for work, _ in chosen)
    bound = sum(one.seconds for one in bounds)
    cells = [f"{sums[policy] / jobs:,.0f}" for policy in POLICIES]
    proved = f"{sum(one.proved for one in bounds)} of {len(bounds)}"
    ratios = f"{sums['tokenmill'] / bound:.2f} | {min(sums[p] for p in POLICIES[:3]) / bound:.2f}"
    return f"| {trace} | {jobs} | {' | '.join(cells)} | {bound / jobs:,.0f} | {proved} | {ratios} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="*", default=sorted(TRACES))
    parser.add_argument("--pieces", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0, help="for the solver, per piece")
    given = parser.parse_args()
    print(
        "| trace | jobs | fifo | best-fit | fgd | tokenmill | bound | proved | ours / bound | others' best |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for trace in given.traces:
        print(row(trace, given), flush=True)


if __name__ == "__main__":
    main()
