"""A small factory over hours: serving, training, faults and power, driven by the live control core."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("numpy", reason="the twin's core needs the extra [twin]")

from twin_floor import table

from tokenmill.domain.errors import DataError
from tokenmill.domain.factory import (
    Accelerator,
    Deployment,
    Factory,
    Model,
    Node,
    Objective,
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
from tokenmill.twin.faults import Fault
from tokenmill.twin.step_table import EngineRules
from tokenmill.twin.traffic import Lengths
from tokenmill.twin.training import Training
from tokenmill.twin.world import Timings

GB = 1 << 30
KINDS = catalogue().accelerators
HOUR_US = 3_600_000_000
RULES = EngineRules(token_budget=512, max_sequences=8)


def nodes(count: int) -> tuple[Node, ...]:
    return tuple(
        Node(
            f"n{i:02}",
            "here",
            f"rack{i // 4}",
            f"rack{i // 4}",
            64_000,
            512 * GB,
            tuple(Accelerator(f"n{i:02}/gpu{g}", "h200-sxm", 141 * GB) for g in range(4)),
        )
        for i in range(count)
    )


def factory(replicas: int = 4, most: int = 10, count: int = 16) -> Factory:
    ask = Resources(accelerators=4)
    chat = Deployment("chat", "vllm", "m", "", replicas, most, slots=8, resources=ask)
    return Factory(
        "small",
        (Site("here", "EU"),),
        nodes(count),
        tenants=(Tenant("a", (Project("main"),)),),
        models=(Model("m", "package:m"),),
        deployments=(chat,),
    )


def job(name: str, at_s: float, workers: int, work_s: float) -> DayJob:
    spec = JobSpec(
        "command",
        "a",
        "main",
        ("tune",),
        resources=Resources(accelerators=4),
        workers=workers,
        timeout_us=24 * HOUR_US,
        max_attempts=20,
        runtime_us=round(work_s * 1e6),
    )
    return DayJob(name, at_s, spec, Training(work_s, 10.0, 7_200.0))


def day(seed: int = 1, rate: float = 12.0, **given) -> FactoryDay:
    demand = Demand(rate, Lengths(400, 0.8), Lengths(150, 0.8), swing=0.2)
    return FactoryDay(factory(), [[table(RULES)]], [demand], seed=seed, **given)


def test_serving_training_and_faults_share_the_floor():
    jobs = [job(f"tune-{i}", 600.0 * i, 2, 3_000.0) for i in range(4)]
    faults = [
        Fault(HOUR_US // 2, "n00", "gpu", HOUR_US // 4),
        Fault(2 * HOUR_US, "rack0", "rack", HOUR_US // 6, ("n00", "n01", "n02", "n03")),
        Fault(HOUR_US * 3 // 4, "feed", "sag", 600_000_000, tuple(n.id for n in nodes(16)[:12])),
    ]
    run = day(jobs=jobs, faults=faults, power=Power(KINDS))
    run.run(3.0 * 3600)
    counts = run.fleet.count
    assert counts(fa.TAKEN) > 100_000
    assert run.broken > 0
    states = run.world.state.jobs
    assert [states[one.id].status for one in jobs] == ["succeeded"] * 4
    assert sum(t.failures for t in run.world.training.values()) > 0
    assert [run.world.training[one.id].saved_s for one in jobs] == [3_000.0] * 4
    assert max(row.nodes_lost for row in run.series) == 12
    assert run.series[-1].nodes_lost == 0
    assert max(row.training_accelerators for row in run.series) >= 16
    assert min(row.ready for row in run.series) < 4 <= run.series[-1].ready
    watts = sum(row.watts for row in run.series) * 60
    assert watts == pytest.approx(run.joules, rel=1e-9)


def test_the_autoscaler_follows_the_load():
    quiet, busy = day(rate=3.0), day(rate=45.0)
    for run in (quiet, busy):
        run.run(1_200)
    assert quiet.series[-1].ready == 4
    assert busy.series[-1].ready > 5
    assert busy.series[-1].ready == busy.series[-1].wanted


def test_the_autoscaler_keeps_the_objective():
    demand = Demand(48.0, Lengths(400, 0.8), Lengths(150, 0.8), swing=0.2)

    def lived(slo: Objective | None) -> tuple[int, float]:
        """Replicas at the end, and the share of all answers that were late."""
        made = factory()
        # More slots than the engine decodes together: the load by slots says nothing, only the answers do.
        made = replace(made, deployments=(replace(made.deployments[0], slots=64, slo=slo),))
        run = FactoryDay(made, [[table(RULES)]], [demand], targets=[(0.2, 1.0)])
        run.run(1_800)
        served = run.fleet.floor.served[0]
        return run.series[-1].ready, float(served[fa.LATE] / served[fa.ENDED])

    ready, late = lived(None)
    assert (ready, late > 0.1) == (4, True)
    ready, late = lived(Objective(200_000, 1_000_000, 900))
    assert (ready, late < 0.05) == (5, True)


def test_a_service_that_sleeps_is_woken_by_its_first_requests():
    asleep = FactoryDay(
        factory(replicas=0), [[table(RULES)]], [Demand(2.0, Lengths(100), Lengths(20))], timings=Timings()
    )
    asleep.run(300)
    assert asleep.fleet.count(fa.REFUSED) > 0
    assert asleep.series[0].ready == 1
    assert asleep.series[-1].refused_per_s == 0


def test_a_power_cap_lowers_the_clock_and_holds():
    free = day(rate=25.0, power=Power(KINDS))
    free.run(900)
    cap = min(row.watts for row in free.series) * 0.98
    engine = table(RULES)
    slow = replace(table(RULES, host_s=0.005), joules=tuple(0.97 * joules for joules in engine.joules))
    demand = Demand(25.0, Lengths(400, 0.8), Lengths(150, 0.8), swing=0.2)
    capped = FactoryDay(factory(), [[engine, slow]], [demand], power=Power(KINDS, cap_w=cap))
    capped.run(900)
    assert max(row.clock for row in capped.series) == 1
    assert sum(row.watts for row in capped.series) < sum(row.watts for row in free.series)


def test_the_same_seed_gives_the_same_digest():
    faults = [Fault(HOUR_US // 6, "n01", "gpu", HOUR_US // 20)]
    first, again, other = (day(seed, faults=faults) for seed in (7, 7, 8))
    for run in (first, again, other):
        run.run(1_200)
    assert first.digest() == again.digest() != other.digest()


def test_traffic_without_a_deployment_is_refused():
    with pytest.raises(DataError, match="not there"):
        FactoryDay(factory(), [[table(RULES)]], [Demand(1.0, Lengths(10), Lengths(10), alias=3)])


@pytest.mark.parametrize(
    "wrong", [{"per_second": 0.0}, {"per_second": float("nan")}, {"swing": 2.0}, {"burstiness": 0.5}]
)
def test_impossible_demand_names_its_field(wrong):
    given = {"per_second": 1.0, "inputs": Lengths(10), "outputs": Lengths(10)} | wrong
    with pytest.raises(DataError, match=next(iter(wrong))):
        Demand(**given)


def test_demand_has_the_rate_and_spread_that_it_says():
    steady = Demand(200.0, Lengths(700, 0.9), Lengths(120, 0.5))
    made = steady.window(1, 0.0, 600.0)
    assert len(made) == pytest.approx(120_000, rel=0.02)
    assert made["input"].mean() == pytest.approx(700, rel=0.03)
    assert (made["at"][1:] >= made["at"][:-1]).all()
    assert made["at"].max() < 600.0
    bursts = Demand(200.0, Lengths(700), Lengths(120), burstiness=8.0)
    gaps = bursts.window(1, 0.0, 600.0)["at"]
    spread = (gaps[1:] - gaps[:-1]).std() / (gaps[1:] - gaps[:-1]).mean()
    assert spread**2 == pytest.approx(8.0, rel=0.15)
    daily = Demand(100.0, Lengths(1), Lengths(1), swing=0.5, quiet_hour=4.0)
    assert daily.rate(4 * 3600) == pytest.approx(50.0)
    assert daily.rate(16 * 3600) == pytest.approx(150.0)


def test_random_streams_are_apart():
    assert generator(1, "a").random() != generator(1, "b").random()
    assert generator(1, "a").random() == generator(1, "a").random()


def two_services() -> Factory:
    one = factory(replicas=2, most=2)
    other = replace(one.deployments[0], name="code", replicas=3, max_replicas=3)
    return replace(one, deployments=(one.deployments[0], other))


def test_each_deployment_is_served_by_its_own_engine_and_has_a_series_of_its_own():
    quick, slow = table(RULES), table(RULES, host_s=0.02)
    demands = [Demand(2.0, Lengths(200), Lengths(50)), Demand(1.0, Lengths(200), Lengths(50), alias=1)]
    run = FactoryDay(two_services(), [[quick], [slow]], demands, targets=[(9.0, 0.01), (9.0, 0.01)])
    run.run(300)
    first, second = run.series[-1].aliases
    assert (first.ready, second.ready) == (2, 3)
    assert first.tpot_p50_s < 0.01 < second.tpot_p50_s
    assert first.good_per_s == first.output_per_s > 0
    assert second.good_per_s == 0
    assert second.slow > 0 == second.late
    made = run.fleet.floor.served[:, fa.MADE]
    assert made.sum() == run.fleet.count(fa.OUTPUT)
    minutes = sum(minute.aliases[1].output_per_s for minute in run.series) * 60
    assert minutes == pytest.approx(made[1])
    with pytest.raises(DataError, match="engines for 1"):
        FactoryDay(two_services(), [[quick]], demands)
