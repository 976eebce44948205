"""What went wrong elsewhere, each as a short story: named after the invariant that it once broke."""

from __future__ import annotations

from dataclasses import replace

import pytest
from control_mill import GB, GPU, Mill, chat, factory

from tokenmill.control.why import why
from tokenmill.domain import events as ev
from tokenmill.domain.effects import StartJob, StartReplica, StopJob, StopReplica
from tokenmill.domain.factory import Accelerator, Node, Project, Rack, Resources, Site, Tenant
from tokenmill.domain.work import JobSpec, JobStatus, ReplicaStatus

TRAY = Resources(1000, GB, 4)
HOUR = 3_600_000_000
SPEC = JobSpec("command", "a", "p", ("true",), resources=TRAY, timeout_us=HOUR)


def racks(mill: Mill, count: int, trays: int = 18) -> None:
    for rack in range(count):
        for slot in range(trays):
            name = f"r{rack}/n{slot:02d}"
            cards = tuple(Accelerator(f"{name}/{i}", "gb300", 0) for i in range(4))
            mill.tell(ev.NodeJoined, Node(name, "here", f"r{rack}", f"r{rack}", 144_000, 900 * GB, cards))


@pytest.fixture
def two_racks(mill: Mill) -> Mill:
    racks(mill, 2)
    mill.apply(factory())
    return mill


def started(mill: Mill) -> list[str]:
    return [effect.job for effect in mill.of(StartJob)]


def test_gang_larger_than_any_free_domain_queues_whole(two_racks: Mill) -> None:
    mill = two_racks
    mill.tell(ev.JobSubmitted, "half", replace(SPEC, workers=10))
    mill.tell(ev.JobSubmitted, "other", replace(SPEC, workers=10, priority=1))
    mill.tell(ev.JobSubmitted, "gang", replace(SPEC, workers=17))
    assert started(mill) == []
    assert mill.state.index.leases_of.get("gang") is None, "nothing of it is bound"
    mill.tell(ev.JobExited, "half", 1, 0)
    (start,) = mill.of(StartJob)
    assert (start.job, len(start.nodes)) == ("gang", 17)


def test_high_priority_gang_against_racks_of_preemptible_work(two_racks: Mill) -> None:
    mill = two_racks
    for number in range(36):
        mill.tell(ev.JobSubmitted, f"small{number:02d}", SPEC)
    mill.tell(ev.JobSubmitted, "gang", replace(SPEC, workers=16, priority=5))
    victims = [effect.job for effect in mill.of(StopJob)]
    assert len(victims) == 16, "the smallest set"
    nodes = {mill.state.jobs[name].nodes[0].split("/")[0] for name in victims}
    assert len(nodes) == 1, "of one domain"
    assert mill.state.reservations["gang"].victims == tuple(sorted(victims))
    assert "preempted" in why(mill.state, victims[0], mill.now).reasons[0]
    for name in victims:
        assert started(mill) == []
        mill.tell(ev.JobSubmitted, f"late-{name}", SPEC)
        assert started(mill) == [], "nobody slips into what is kept for the gang"
        mill.tell(ev.JobExited, name, 1, 143)
    assert started(mill) == ["gang"]
    assert not mill.state.reservations
    preempted = mill.state.jobs[victims[0]]
    assert (preempted.status, preempted.spec.max_attempts) == (JobStatus.PENDING, SPEC.max_attempts + 1)


def test_reclaim_that_cannot_lead_to_a_start_evicts_nobody(mill: Mill) -> None:
    racks(mill, 1)
    mill.apply(factory(tenants=(Tenant("a", (Project("p"),), guarantee=64), Tenant("b", (Project("p"),)))))
    mill.tell(ev.JobSubmitted, "keeps", replace(SPEC, tenant="b", workers=4, preemptible=False))
    mill.tell(ev.JobSubmitted, "borrows", replace(SPEC, tenant="b", workers=14))
    mill.tell(ev.JobSubmitted, "never", replace(SPEC, workers=16))
    assert mill.of(StopJob) == []
    mill.tell(ev.JobSubmitted, "fits", replace(SPEC, workers=14))
    assert [effect.job for effect in mill.of(StopJob)] == ["borrows"]


def test_young_work_is_left_alone_for_its_stated_time(mill: Mill) -> None:
    racks(mill, 1, 2)
    mill.apply(factory())
    mill.tell(ev.JobSubmitted, "young", replace(SPEC, workers=2, min_run_us=60_000_000))
    mill.tell(ev.JobSubmitted, "urgent", replace(SPEC, workers=2, priority=9))
    assert mill.of(StopJob) == []
    mill.wait(61)
    assert [effect.job for effect in mill.of(StopJob)] == ["young"]


def test_short_work_fills_what_is_kept_for_a_large_gang(mill: Mill) -> None:
    racks(mill, 1, 4)
    mill.apply(factory())
    mill.tell(ev.JobSubmitted, "long", replace(SPEC, workers=3, runtime_us=HOUR))
    mill.tell(ev.JobSubmitted, "big", replace(SPEC, workers=4))
    mill.now += 700_000_000
    mill.tell(ev.JobSubmitted, "endless", replace(SPEC, tenant="b", timeout_us=0))
    assert started(mill) == []
    assert mill.state.reservations["big"].kind == "backfill"
    assert "kept for big" in " ".join(why(mill.state, "endless", mill.now).reasons)
    mill.tell(ev.JobSubmitted, "short", replace(SPEC, tenant="b", runtime_us=600_000_000))
    assert started(mill) == ["short"]
    mill.tell(ev.JobExited, "short", 1, 0)
    mill.tell(ev.JobExited, "long", 1, 0)
    assert started(mill) == ["big"]


def test_short_work_passes_long_work_of_the_same_shape(mill: Mill) -> None:
    racks(mill, 1, 1)
    mill.apply(factory())
    day = replace(SPEC, runtime_us=24 * HOUR)
    for name, spec in (("runs", day), ("day", day), ("hour", replace(SPEC, runtime_us=HOUR))):
        mill.tell(ev.JobSubmitted, name, spec)
        mill.now += 1_000_000
    assert "1 jobs like it of tenant a are before it" in why(mill.state, "hour", mill.now).reasons
    mill.now += 3 * HOUR  # three runs of one, an eighth of a run of the other
    mill.tell(ev.JobExited, "runs", 1, 0)
    assert started(mill) == ["hour"]
    assert "0 jobs like it of tenant a are before it" in why(mill.state, "day", mill.now).reasons


def test_nodes_are_kept_for_who_waited_longest_though_short_work_is_first(mill: Mill) -> None:
    racks(mill, 1, 4)
    mill.apply(factory())
    mill.tell(ev.JobSubmitted, "one", replace(SPEC, runtime_us=5 * HOUR))
    mill.tell(ev.JobSubmitted, "rest", replace(SPEC, workers=3, runtime_us=2 * HOUR))
    mill.tell(ev.JobSubmitted, "gang", replace(SPEC, workers=4, runtime_us=24 * HOUR))
    mill.now += 1_000_000
    mill.tell(ev.JobSubmitted, "quick", replace(SPEC, workers=2, runtime_us=900_000_000))
    mill.now += HOUR
    mill.tell(ev.JobSubmitted, "asks", replace(SPEC, workers=4))
    assert list(mill.state.reservations) == ["gang"], "the turn is of quick"
    mill.tell(ev.JobExited, "rest", 1, 0)
    assert started(mill) == ["quick"], "it ends before one does"
    mill.tell(ev.JobSubmitted, "slow", replace(SPEC, runtime_us=6 * HOUR))
    assert started(mill) == []
    mill.tell(ev.JobExited, "quick", 1, 0)
    mill.tell(ev.JobExited, "one", 1, 0)
    assert started(mill) == ["gang"]


def test_nodes_are_kept_for_the_next_where_the_longest_wait_can_not_be_ended(mill: Mill) -> None:
    racks(mill, 1, 4)
    mill.apply(factory(chat(replicas=1, resources=TRAY)))
    mill.bring()
    mill.up_all()
    mill.tell(ev.JobSubmitted, "runs", replace(SPEC, workers=2, runtime_us=HOUR))
    mill.tell(ev.JobSubmitted, "never", replace(SPEC, workers=4))
    mill.now += 1_000_000
    mill.tell(ev.JobSubmitted, "gang", replace(SPEC, workers=3))
    mill.now += 700_000_000
    mill.tell(ev.JobSubmitted, "endless", replace(SPEC, timeout_us=0))
    assert list(mill.state.reservations) == ["gang"], "the replica states no end"


def test_whom_nodes_are_kept_for_is_not_behind_one_that_waits_again(mill: Mill) -> None:
    racks(mill, 1, 4)
    mill.apply(factory())
    mill.tell(ev.JobSubmitted, "first", replace(SPEC, workers=4))
    mill.now += 1_000_000
    mill.tell(ev.JobSubmitted, "gang", replace(SPEC, workers=4))
    mill.now += 700_000_000
    mill.tell(ev.JobSubmitted, "one", SPEC)
    assert list(mill.state.reservations) == ["gang"]
    mill.tell(ev.JobSubmitted, "urgent", replace(SPEC, workers=4, priority=5))
    mill.tell(ev.JobExited, "first", 1, 143)
    mill.tell(ev.JobExited, "urgent", 1, 0)
    assert mill.state.jobs["gang"].status is JobStatus.STARTING, "nothing else may use what is kept for it"


def test_rebalance_at_full_budget_stays_within_it(mill: Mill) -> None:
    mill.join(gpus=2, cpu=64_000)
    one = chat(name="prefill", replicas=1, max_replicas=2, resources=GPU)
    two = chat(name="decode", replicas=1, max_replicas=2, resources=GPU)
    mill.apply(factory(one, two))
    mill.bring()
    mill.up_all()
    for _ in range(3):
        mill.now += 6_000_000
        mill.tell(ev.LoadReported, "decode", 40, 5)
        assert sum(len(lease.accelerators) for lease in mill.state.leases.values()) == 2
    assert mill.of(StartReplica) == []
    assert len(mill.named(ReplicaStatus.PENDING, "decode")) == 1
    mill.apply(factory(two))
    assert mill.of(StartReplica) == [], "not before the other engine has ended"
    (stop,) = mill.of(StopReplica)
    mill.tell(ev.ReplicaExited, stop.replica, "stopped")
    assert len(mill.of(StartReplica)) == 1


def test_scale_up_that_is_wanted_no_more_is_withdrawn(mill: Mill) -> None:
    mill.join(gpus=1, cpu=64_000)
    mill.apply(factory(chat(replicas=1, max_replicas=3, resources=GPU)))
    mill.bring()
    mill.up_all()
    mill.tell(ev.LoadReported, "chat", 40, 5)
    assert len(mill.named(ReplicaStatus.PENDING)) == 2
    for _ in range(4):
        mill.now += 121_000_000
        mill.tell(ev.LoadReported, "chat", 0)
    assert mill.named(ReplicaStatus.PENDING) == []
    assert len(mill.named(ReplicaStatus.READY)) == 1


def test_serving_lends_its_quiet_hours_and_takes_them_back(mill: Mill) -> None:
    mill.join(gpus=2, cpu=64_000)
    mill.apply(factory(chat(replicas=1, max_replicas=2, resources=GPU)))
    mill.bring()
    mill.up_all()
    mill.tell(ev.JobSubmitted, "batch", replace(SPEC, resources=GPU))
    assert started(mill) == ["batch"]
    mill.tell(ev.LoadReported, "chat", 40, 5)
    assert [effect.job for effect in mill.of(StopJob)] == ["batch"]
    mill.tell(ev.JobExited, "batch", 1, 143)
    assert len(mill.of(StartReplica)) == 1
    assert started(mill) == []
    assert mill.state.jobs["batch"].status is JobStatus.PENDING


def test_sleeps_at_zero_and_wakes_on_request(mill: Mill) -> None:
    mill.join(gpus=1, cpu=64_000)
    mill.apply(factory(chat(replicas=0, max_replicas=1, resources=GPU, idle_after_us=60_000_000)))
    mill.bring()
    assert mill.started_replicas() == []
    assert "sleeps" in mill.entry().reason
    mill.tell(ev.LoadReported, "chat", 0, 0, 1)
    assert len(mill.of(StartReplica)) == 1
    mill.up_all()
    mill.tell(ev.LoadReported, "chat", 0)
    mill.now += 61_000_000
    mill.tell(ev.LoadReported, "chat", 0)
    assert len(mill.of(StopReplica)) == 1


def test_a_tenant_at_its_limit_waits_and_why_says_so(mill: Mill) -> None:
    racks(mill, 1, 4)
    mill.apply(
        factory(tenants=(Tenant("a", (Project("p"),), limit=8), Tenant("b", (Project("p"),), reserve=4)))
    )
    mill.tell(ev.JobSubmitted, "one", replace(SPEC, workers=2))
    mill.tell(ev.JobSubmitted, "two", SPEC)
    assert started(mill) == []
    assert "holds 8 of at most 8" in " ".join(why(mill.state, "two", mill.now).reasons)
    mill.tell(ev.JobSubmitted, "three", replace(SPEC, tenant="b"))
    assert started(mill) == ["three"]


def test_a_cap_of_power_is_never_exceeded(mill: Mill) -> None:
    for rack in range(2):
        for slot in range(2):
            name = f"r{rack}/n{slot}"
            cards = tuple(Accelerator(f"{name}/{i}", "gb300", 0) for i in range(4))
            watts = {"idle_mw": 1_000_000, "power_mw": 5_000_000}
            mill.tell(ev.NodeJoined, Node(name, "here", f"r{rack}", "", 64_000, 900 * GB, cards, **watts))
    caps = (Rack("r0", "here", power_cap_mw=6_000_000),)
    mill.apply(factory(racks=caps, sites=(Site("here", "EU", 16_000_000, 1000),)))
    for name in ("a", "b", "c"):
        mill.tell(ev.JobSubmitted, name, SPEC)
    places = {effect.job: effect.nodes[0].split("/")[0] for effect in mill.started_jobs()}
    assert sorted(places.values()) == ["r0", "r1", "r1"], "the capped rack takes one"
    mill.tell(ev.JobSubmitted, "d", SPEC)
    assert started(mill) == []
    assert "its cap is 6.0 kW" in " ".join(why(mill.state, "d", mill.now).reasons)


def test_a_node_whose_draw_nobody_knows_takes_no_work_under_a_bound(mill: Mill) -> None:
    """It would count as nothing, and the cap would not hold; without a bound it is a node as any other."""
    mill.join("dark", gpus=4)
    known = Node("lit", "here", "", "", 4000, 16 * GB, (Accelerator("lit/0", "h200", 0),))
    mill.tell(ev.NodeJoined, replace(known, idle_mw=1_000_000, power_mw=2_000_000))
    mill.apply(factory(sites=(Site("here", "EU", 16_000_000, 1000),)))
    for name in ("a", "b"):
        mill.tell(ev.JobSubmitted, name, replace(SPEC, resources=replace(SPEC.resources, accelerators=1)))
    assert [(effect.job, effect.nodes) for effect in mill.started_jobs()] == [("a", ("lit",))]
    said = "nobody says what it draws, and the power of site here is bounded: it takes no work"
    assert ("dark", False, said) in [
        (one.name, one.accepted, one.reason) for one in why(mill.state, "b", mill.now).candidates
    ]
    node = why(mill.state, "dark", mill.now)
    assert node.reasons == (said,)
    assert "`idle_power` and `max_power`" in node.changes[0]
    mill.apply(factory(sites=(Site("here", "EU", ramp_mw=1, ramp_us=1),)))
    assert "dark" not in mill.state.index.rooms
    mill.apply(factory(sites=(Site("here", "EU"),)))
    assert started(mill) == ["b"]


def powered(mill: Mill, *sites: Site, **bounds: tuple[Rack, ...]) -> None:
    """Two racks of two nodes, each of which may rise by 4 kW."""
    for number in range(4):
        name = f"r{number // 2}/n{number % 2}"
        cards = tuple(Accelerator(f"{name}/{i}", "gb300", 0) for i in range(4))
        watts = {"idle_mw": 1_000_000, "power_mw": 5_000_000}
        mill.tell(ev.NodeJoined, Node(name, "here", f"r{number // 2}", "", 64_000, 900 * GB, cards, **watts))
    mill.apply(factory(sites=sites or (Site("here", "EU"),), **bounds))


def test_a_ramp_of_power_lets_work_start_in_stages(mill: Mill) -> None:
    minute = 60_000_000
    powered(mill, Site("here", "EU", pue_milli=1250, ramp_mw=10_000_000, ramp_us=minute))
    for name in ("a", "b", "c"):
        mill.tell(ev.JobSubmitted, name, SPEC)
    assert [effect.job for effect in mill.started_jobs()] == ["a", "b"], "4 kW each, by 1.25 of the site"
    text = " ".join(why(mill.state, "c", mill.now).reasons)
    assert "site here would rise by 15.0 kW within 60 s, 5.0 kW of it by this; it may by 10.0 kW" in text
    mill.wait(59.9)
    assert started(mill) == []
    mill.wait(0.1)
    assert started(mill) == ["c"], "the draw of a minute ago is forgotten"
    mill.wait(61)
    for name in ("a", "b", "c"):
        mill.tell(ev.JobExited, name, 1, 0)
    for name in ("d", "e", "f"):
        mill.tell(ev.JobSubmitted, name, SPEC)
    assert started(mill) == [], "what falls and rises again has risen"
    assert [effect.job for effect in mill.started_jobs()][3:] == ["d", "e"]
    mill.wait(60)
    assert started(mill) == ["f"]
    mill.wait(61)
    assert len(mill.state.draws["site here"]) == 1
    mill.apply(factory())
    assert not mill.state.draws


def test_a_rack_s_ramp_sends_work_to_the_next_one(mill: Mill) -> None:
    powered(mill, racks=(Rack("r0", "here", ramp_mw=4_000_000, ramp_us=1_000_000),))
    for name in ("a", "b", "c"):
        mill.tell(ev.JobSubmitted, name, SPEC)
    places = sorted(effect.nodes[0].split("/")[0] for effect in mill.started_jobs())
    assert places == ["r0", "r1", "r1"]
    mill.tell(ev.JobSubmitted, "d", SPEC)
    assert started(mill) == []
    mill.wait(1)
    assert started(mill) == ["d"]


def test_nobody_is_evicted_for_a_gang_that_is_too_steep(mill: Mill) -> None:
    powered(mill, Site("here", "EU", ramp_mw=7_000_000, ramp_us=1_000_000))
    for name in ("a", "b", "c", "d"):
        mill.tell(ev.JobSubmitted, name, SPEC)
        mill.wait(2)
    assert len(mill.started_jobs()) == 4
    mill.tell(ev.JobSubmitted, "gang", replace(SPEC, workers=2, priority=9))
    mill.wait(1200)
    assert [effect for effect in mill.log if isinstance(effect, StopJob)] == []
    for name in ("a", "b"):
        mill.tell(ev.JobExited, name, 1, 0)
    mill.wait(2)
    assert "it cannot start while this limit stands" in " ".join(why(mill.state, "gang", mill.now).reasons)


def test_a_repaired_node_returns_through_its_acceptance_test(mill: Mill) -> None:
    mill.join("n0", gpus=4)
    mill.join("n1", gpus=4)
    mill.apply(factory(sites=(Site("here", "EU", acceptance=("dcgmi", "diag", "-r", "2")),)))
    node = mill.state.nodes["n0"].node
    mill.tell(ev.NodeLost, "n0", "no heartbeat")
    mill.tell(ev.NodeJoined, node)
    (test,) = mill.of(StartJob)
    assert (test.nodes, test.spec.command) == (("n0",), ("dcgmi", "diag", "-r", "2"))
    mill.tell(ev.JobSubmitted, "gang", replace(SPEC, workers=2))
    assert started(mill) == [], "the node takes nothing yet"
    mill.tell(ev.JobExited, test.job, 1, 1)
    assert "failed its acceptance test" in why(mill.state, "n0", mill.now).reasons[0]
    mill.tell(ev.NodeLost, "n0")
    mill.tell(ev.NodeJoined, node)
    (again,) = mill.of(StartJob)
    mill.tell(ev.JobExited, again.job, 1, 0)
    assert started(mill) == ["gang"]


def test_a_cordoned_node_is_emptied_and_its_gang_starts_on_spares(mill: Mill) -> None:
    racks(mill, 1, 3)
    mill.apply(factory())
    mill.tell(ev.JobSubmitted, "gang", replace(SPEC, workers=2))
    bad = mill.state.jobs["gang"].nodes[0]
    mill.tell(ev.NodeCordoned, bad, "it is slow", "ada")
    assert [effect.job for effect in mill.of(StopJob)] == ["gang"]
    mill.tell(ev.JobExited, "gang", 1, 143)
    (start,) = mill.of(StartJob)
    assert bad not in start.nodes
    assert start.attempt == 2
    assert "it is slow" in why(mill.state, bad, mill.now).reasons
