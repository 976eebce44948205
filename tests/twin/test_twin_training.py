"""Checkpoints and failures: against Daly's optimum, by bookkeeping, and on the table of Llama 3."""

import math

import pytest

from tokenmill.domain.errors import DataError
from tokenmill.domain.factory import Node
from tokenmill.policy.checkpoint import checkpoint_interval_s
from tokenmill.twin.faults import (
    LLAMA3_INTERRUPTIONS,
    Fault,
    correlated,
    llama3_rates,
    schedule,
    shared_parts,
)
from tokenmill.twin.training import Training, llama3, through


def test_the_table_is_whole():
    assert sum(count for _, _, count in LLAMA3_INTERRUPTIONS) == 419
    assert sum(rate.per_day for rate in llama3_rates(8)) * 2048 * 54 == pytest.approx(419)


def test_llama3_is_interrupted_as_often_as_published():
    """Two standard deviations of a Poisson count are 2 sqrt(419); the mean of some runs lies closer."""
    runs = [llama3(seed) for seed in range(6)]
    for run in runs:
        assert abs(run.interruptions - 419) <= 2 * math.sqrt(419)
        assert run.goodput > 0.9
        whole = run.kept_s + run.lost_s + run.saving_s + run.down_s
        assert whole == pytest.approx(run.seconds, rel=1e-9)
    mean = sum(run.interruptions for run in runs) / len(runs)
    assert (
        abs(mean - 419) <= 2 * math.sqrt(419 / len(runs)) + 12
    )  # what happens while it is down is not counted
    gpu = {kind for kind, cause, _ in LLAMA3_INTERRUPTIONS if cause == "gpu"}
    share = sum(n for kind, n in runs[0].by_kind if kind in gpu) / runs[0].interruptions
    assert share == pytest.approx(268 / 419, abs=0.08)


def test_the_same_seed_is_the_same_run():
    assert llama3(3) == llama3(3)
    assert llama3(3) != llama3(4)


@pytest.mark.parametrize("between_s", [3_600.0, 11_000.0, 86_400.0])
def test_no_fixed_interval_loses_much_less(between_s):
    """The adaptive one comes within 1 % of the best of many fixed ones, without knowing the rate."""
    draw = schedule(
        ["job"], [type(llama3_rates(8)[0])("x", 86_400 / between_s, 1e-6)], 40 * 86_400_000_000, 5
    )
    seconds = 40 * 86_400.0
    adaptive = through(draw, seconds, Training(1e9, 20.0), 60.0, 1).goodput

    def fixed(interval_s: float) -> float:
        kept = at = 0.0
        for fault in draw:
            ran = fault.at_us / 1e6 - at
            kept += ran // (interval_s + 20.0) * interval_s
            at = fault.at_us / 1e6 + 60.0
        return kept / seconds

    best = max(fixed(checkpoint_interval_s(20.0, between_s) * 1.25**k) for k in range(-12, 13))
    assert adaptive > best - 0.01


@pytest.mark.parametrize(("save_s", "between_s"), [(0.0, 100.0), (10.0, 0.0), (math.nan, 100.0)])
def test_a_rate_of_zero_is_refused(save_s, between_s):
    with pytest.raises(DataError, match="above 0"):
        checkpoint_interval_s(save_s, between_s)


def test_a_stop_keeps_what_a_failure_loses():
    job = Training(10_000.0, 20.0, 3_600.0)
    stopped, failed = job.run(500.0, failed=False), job.run(500.0, failed=True)
    assert stopped.saved_s > failed.saved_s
    assert stopped.lost_s == 0
    assert failed.lost_s == pytest.approx(stopped.saved_s - failed.saved_s)
    assert job.run(1e9, failed=False).saved_s == 10_000.0


def test_a_shared_part_takes_its_nodes_with_it():
    nodes = [Node(f"n{i}", "here", f"rack{i // 4}") for i in range(16)]
    parts = shared_parts(nodes, 2)
    assert {len(part.nodes) for part in parts} == {4, 8}
    fed = [node for part in parts if part.name.startswith("feed") for node in part.nodes]
    assert sorted(fed) == sorted(node.id for node in nodes)
    found = correlated(parts, 2000 * 86_400_000_000, 1)
    assert {fault.kind for fault in found} >= {"leaf switch", "rack cooling", "sag without UPS"}
    assert all(isinstance(fault, Fault) and fault.nodes for fault in found)
