"""The compiled core against the naive reference, queueing theory and the laws of conservation."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numpy", reason="the twin's core needs the extra [twin]")

from twin_floor import columns, reference, table, workload

from tokenmill.domain.errors import DataError
from tokenmill.twin import floor_arrays as fa
from tokenmill.twin.fleet import Fleet, requests_of
from tokenmill.twin.naive import Asked
from tokenmill.twin.step_table import EngineRules, StepTable

RULES = {
    "mixed": EngineRules(token_budget=256, max_sequences=16),
    "one slot": EngineRules(token_budget=64, max_sequences=1),
    "small budget": EngineRules(token_budget=8, max_sequences=16),
    "prompts first": EngineRules(token_budget=512, max_sequences=16, mixed=False),
    "full cache": EngineRules(token_budget=512, max_sequences=64),
    "preempting": EngineRules(token_budget=512, max_sequences=64, preempt=True),
    "preempting, prompts first": EngineRules(token_budget=300, max_sequences=64, preempt=True, mixed=False),
    "odd blocks": EngineRules(token_budget=333, max_sequences=64, preempt=True, block_tokens=7),
    "prefix": EngineRules(token_budget=256, max_sequences=16, prefix_cache=True),
    "prefix, preempting": EngineRules(token_budget=512, max_sequences=64, preempt=True, prefix_cache=True),
    "drafts": EngineRules(token_budget=256, max_sequences=16, draft_tokens=3, tokens_per_step=2.6),
}
SMALL_CACHE = 6_000


def both(rules, seed, count=250, rate=40.0):
    tight = "cache" in rules or "preempt" in rules or "odd" in rules
    step_table = table(RULES[rules], SMALL_CACHE if tight else 40_000)
    work = workload(seed, count, rate if tight else 12.0)
    requests, units = columns(work)
    fleet = Fleet(
        [step_table], [0], ["random"], unit_tokens=32, units=units, log_rows=count, queue_per_slot=4096
    )
    for part in np.array_split(requests, 7):
        fleet.send(part)
        fleet.check()
    fleet.advance()
    fleet.check()
    return fleet, reference(step_table, work), work


def test_what_is_late_of_a_prompt_delays_nobody_else():
    """The share that passes after the engine went on: in the TTFT and whether it is in time, nowhere else."""
    prompt = table(RULES["mixed"])
    alone_s = prompt.seconds[256] * 300 / 256 + prompt.pair_s * 300**2 / 2
    work = [Asked(float(at), 300, 10) for at in range(50)]
    requests, units = columns(work)
    fleets = []
    for share in (0.0, 4.0):
        one = Fleet(
            [replace(prompt, late_share=share)], [0], ["random"], unit_tokens=32, units=units, log_rows=50,
            targets=[(3 * alone_s, 1.0)],
        )  # fmt: skip
        one.send(requests)
        one.advance()
        fleets.append(one)
    prompts, late = fleets
    assert (prompts.floor.log == late.floor.log).all()
    moved = late.quantile(0, fa.TTFT, 0.5) - prompts.quantile(0, fa.TTFT, 0.5)
    assert moved == pytest.approx(4 * alone_s, rel=0.05)
    assert [one.floor.served[0][fa.LATE] for one in fleets] == [0, 50]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rules", RULES)
def test_it_decides_what_the_naive_reference_decides(rules, seed):
    fleet, naive, work = both(rules, seed)
    firsts, ends = np.array([w.first_s for w in work]), np.array([w.end_s for w in work])
    assert np.abs(fleet.floor.log[:, 0] - firsts).max() < 1e-9
    assert np.abs(fleet.floor.log[:, 1] - ends).max() < 1e-9
    assert fleet.joules() == pytest.approx(naive.joules, rel=1e-9)
    assert fleet.count(fa.PREEMPTED) == naive.preempted
    assert fleet.count(fa.HIT) == naive.hits
    assert fleet.count(fa.PREFILLED) == naive.prefilled
    assert fleet.count(fa.OUTPUT) == sum(w.output_tokens for w in work)


def test_the_workloads_reach_what_they_are_about():
    """A comparison proves nothing of a rule that never applied."""
    assert both("preempting", 0)[0].count(fa.PREEMPTED) > 9
    assert both("prefix", 0)[0].count(fa.HIT) > 1000
    assert both("prefix, preempting", 0)[0].count(fa.PREEMPTED) > 9


@pytest.mark.parametrize("seed", range(3))
def test_many_looks_change_nothing(seed):
    """Advancing in small steps skips less and must end the same."""
    step_table = table(EngineRules(token_budget=256, max_sequences=16))
    work = workload(seed, 60, 15.0)
    requests, _ = columns(work)
    requests["units"] = 0
    fleet = Fleet([step_table], [0], ["random"], log_rows=len(work))
    fleet.send(requests)
    start = float(fleet.floor.replicas["now"][0])
    for at in np.linspace(start, start + 5, 2000):
        fleet.advance(at)
    fleet.advance()
    reference(step_table, work)
    assert np.abs(fleet.floor.log[:, 1] - [w.end_s for w in work]).max() < 1e-9


@pytest.mark.parametrize("rules", ["mixed", "one slot", "prompts first", "full cache", "preempting"])
@pytest.mark.parametrize("router", ["two-choices", "least-work"])
def test_a_look_at_a_quiet_replica_finds_what_advancing_it_finds(rules, router):
    """Replicas in which nothing ends before a request comes are compared as they are."""
    work = workload(2, 400, 90.0)
    requests, _ = columns(work)
    requests["units"] = 0
    fleets = [Fleet([table(RULES[rules], SMALL_CACHE)], [0] * 5, [router], log_rows=400) for _ in range(2)]
    eager, quiet = fleets
    passed = 0
    for one in range(len(requests)):
        at = float(requests["at"][one])
        passed += int(((quiet.floor.replicas["quiet"] >= at) & (quiet.outstanding() > 0)).sum())
        eager.floor.replicas["quiet"] = 0.0
        for fleet in fleets:
            fleet.send(requests[one : one + 1])
    for fleet in fleets:
        fleet.advance()
        fleet.check()
    assert passed > 100 or rules == "preempting"
    assert (eager.floor.log[:, 2] == quiet.floor.log[:, 2]).all()
    assert np.abs(eager.floor.log[:, :2] - quiet.floor.log[:, :2]).max() < 1e-9


def constant(step_s: float, sequences: int) -> StepTable:
    """An engine whose iteration always takes the same time."""
    rules = EngineRules(token_budget=8192, max_sequences=sequences)
    return StepTable("constant", (step_s,) * (rules.most_tokens + 1), 0.0, 0.0, 10**9, rules)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8, 0.9])
def test_one_slot_is_an_m_d_1_queue(load):
    """Waiting is rho s / (2 (1 - rho)) (Pollaczek and Khinchine)."""
    step_s, outputs, count = 0.01, 10, 1_500_000
    service = step_s * outputs
    rng = np.random.default_rng(11)
    at = np.cumsum(rng.exponential(service / load, count))
    fleet = Fleet([constant(step_s, 1)], [0], ["random"], log_rows=count, queue_per_slot=65_536)
    work = requests_of(at, np.full(count, 8), np.full(count, outputs), first_id=0)
    fleet.send(work)
    fleet.advance()
    fleet.check()
    waited = fleet.floor.log[:, 0].mean() - at.mean() - step_s
    assert waited == pytest.approx(load * service / (2 * (1 - load)), rel=0.02)


def erlang_c(servers: int, offered: float) -> float:
    """The chance to wait in M/M/c."""
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = offered * blocked / (n + offered * blocked)
    load = offered / servers
    return blocked / (1 - load * (1 - blocked))


@pytest.mark.parametrize(("servers", "load"), [(4, 0.7), (16, 0.8), (16, 0.9)])
def test_slots_with_exponential_lengths_are_an_m_m_c_queue(servers, load):
    """With short iterations and geometric output lengths slots are the servers of M/M/c."""
    step_s, mean, count = 1e-4, 1000, 1_500_000
    rng = np.random.default_rng(3)
    outputs = rng.geometric(1 / mean, count)
    service = step_s * mean
    at = np.cumsum(rng.exponential(service / (servers * load), count))
    fleet = Fleet([constant(step_s, servers)], [0], ["random"], log_rows=count, queue_per_slot=65_536)
    fleet.send(requests_of(at, np.ones(count, int), outputs, first_id=0))
    fleet.advance()
    fleet.check()
    waited = (fleet.floor.log[:, 0] - at).mean() - 1.5 * step_s
    expected = erlang_c(servers, servers * load) * service / (servers * (1 - load))
    assert waited == pytest.approx(expected, rel=0.02)


def test_what_can_never_fit_is_refused():
    fleet = Fleet([table(EngineRules(), 1_000)], [0], ["random"])
    fleet.send(requests_of(np.array([0.0]), np.array([2_000]), np.array([10])))
    assert fleet.count(fa.REFUSED) == 1
    fleet.check()


@pytest.mark.parametrize("rules", ["mixed", "preempting", "prefix, preempting"])
def test_a_lost_replica_gives_back_what_had_not_begun(rules):
    """Every request ends, goes elsewhere or breaks; tokens and blocks still add up."""
    work = workload(4, 300, 60.0)
    requests, units = columns(work)
    fleet = Fleet([table(RULES[rules], SMALL_CACHE)], [0] * 3, units=units, unit_tokens=32, log_rows=300)
    broken = 0
    for part in np.array_split(requests, 6):
        fleet.send(part)
        at_s = float(part["at"][-1])
        again, lost = fleet.fail(1, at_s)
        broken += lost
        again["at"] = at_s
        fleet.send(again)
        fleet.check()
    fleet.advance()
    fleet.check()
    assert broken > 0
    assert fleet.count(fa.FINISHED) == len(work) - broken
    assert (fleet.floor.log[:, 1] > 0).sum() == len(work) - broken


def test_an_unknown_router_is_named():
    with pytest.raises(DataError, match="two-choices"):
        Fleet([table(EngineRules())], [0], ["best"])


DIGEST = """
import sys
if sys.argv[1] == "plain":
    sys.modules["numba"] = None
import hashlib, numpy as np
from tokenmill.twin.fleet import Fleet
from tokenmill.twin.compiling import COMPILED
from tokenmill.twin.step_table import EngineRules
from twin_floor import columns, reference, table, workload
requests, units = columns(workload(3, 400, 60.0))
rules = EngineRules(token_budget=256, max_sequences=16, preempt=True, prefix_cache=True)
fleet = Fleet([table(rules, 9000)], [0] * 3, ["prefix-affinity"], unit_tokens=32, units=units, log_rows=400)
fleet.send(requests); fleet.advance(); fleet.check()
state = fleet.floor.log.tobytes() + fleet.floor.histograms.tobytes() + fleet.floor.replicas.tobytes()
print(COMPILED, hashlib.sha256(state).hexdigest())
"""


def test_plain_python_gives_the_very_same_bytes_under_any_hash_seed(tmp_path):
    """A subprocess each: only there can Numba be missing and the hash seed be another."""
    printed = []
    for kind, seed in (("compiled", "0"), ("compiled", "7"), ("plain", "3")):
        path = f"{Path(__file__).parent}:{Path.cwd()}"
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
        done = subprocess.run(
            [sys.executable, "-c", DIGEST, kind], env=environment, capture_output=True, text=True, check=True
        )
        printed.append(done.stdout.split())
    assert printed[2][0] == "False"
    assert len({digest for _, digest in printed}) == 1


def test_quantiles_are_as_exact_as_their_bins():
    fleet = Fleet([constant(0.01, 8)], [0], ["random"], log_rows=5000)
    rng = np.random.default_rng(0)
    at = np.cumsum(rng.exponential(0.05, 5000))
    fleet.send(requests_of(at, np.full(5000, 4), rng.integers(1, 60, 5000), first_id=0))
    fleet.advance()
    exact = np.quantile(fleet.floor.log[:, 1] - at, 0.9)
    assert fleet.quantile(0, fa.END_TO_END, 0.9) == pytest.approx(exact, rel=0.033)
    assert math.isfinite(exact)


def test_planning_does_not_import_numba():
    """It takes a second; only a run on the compiled floor needs it."""
    code = (
        "import sys, tokenmill.twin.rehearse, tokenmill.compose;"
        "print(sorted({'numba', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
