from __future__ import annotations

import pytest
from control_mill import GPU, SMALL, Mill, chat, factory

from tokenmill.control.core import check
from tokenmill.control.why import why
from tokenmill.domain import events as ev
from tokenmill.domain.effects import (
    ChargeWork,
    ImportModel,
    PublishTable,
    StartReplica,
    StopReplica,
    WakeAt,
)
from tokenmill.domain.errors import ConflictError, NotFoundError, RefusedError
from tokenmill.domain.factory import CanaryPlan, CanaryStep, Deployment, Model, Objective, Peer, Resources
from tokenmill.domain.outcomes import Outcomes
from tokenmill.domain.work import ReplicaStatus, WorkUsage

STARTING, READY, DRAINING = ReplicaStatus.STARTING, ReplicaStatus.READY, ReplicaStatus.DRAINING


def serving(mill: Mill, **named: object) -> str:
    mill.join()
    mill.apply(factory(chat(**named)))
    mill.bring()
    mill.up_all()
    return mill.named(READY)[0]


def test_import_start_ready_flip(mill: Mill) -> None:
    mill.join()
    mill.apply(factory(chat()))
    assert {effect.model.name for effect in mill.of(ImportModel)} == {"m", "m2"}
    assert "being imported" in mill.entry().reason
    mill.bring()
    (start,) = mill.of(StartReplica)
    assert start.release.id == "import-m"
    assert mill.alias().targets == ()
    mill.up(start.replica)
    assert mill.entry().targets == (("import-m", 1000),)
    assert mill.entry().endpoints[0].jurisdiction == "EU"
    assert mill.entry().reason == ""
    assert mill.alias().history == ("import-m",)


def test_ready_before_started_is_taken_in_any_order(mill: Mill) -> None:
    mill.join()
    mill.apply(factory(chat()))
    mill.bring()
    (name,) = mill.named(STARTING)
    mill.tell(ev.ReplicaReady, name)
    assert mill.entry().endpoints == ()
    mill.tell(ev.ReplicaStarted, name, "127.0.0.1:1")
    assert mill.entry().targets == (("import-m", 1000),)


def test_failed_import_is_said_and_tried_again_by_apply(mill: Mill) -> None:
    mill.join()
    mill.apply(factory(chat()))
    mill.bring(error="no such file")
    assert "no such file" in mill.entry().reason
    mill.apply(factory(chat()))
    assert "m" in {effect.model.name for effect in mill.of(ImportModel)}


def test_pinned_digest_must_match(mill: Mill) -> None:
    mill.join()
    mill.apply(factory(chat(), models=(Model("m", "package:m", digest="sha256:bb"),)))
    mill.bring(digest="sha256:aa")
    assert "sha256:aa" in mill.state.models["m"].error
    assert not mill.state.releases


def test_a_changed_import_is_another_release(mill: Mill) -> None:
    serving(mill)
    mill.apply(factory(chat(), models=(Model("m", "package:new"),)))
    assert mill.entry().targets == (("import-m", 1000),)
    mill.bring(digest="sha256:cc")
    assert mill.alias().desired == "import-m-cc"
    mill.up_all()
    assert mill.entry().targets == (("import-m-cc", 1000),)
    assert len(mill.of(StopReplica)) == 1


def test_old_replicas_drain_only_after_the_flip(mill: Mill) -> None:
    old = serving(mill)
    mill.bring("m2", "sha256:bb")
    mill.apply(factory(chat(model="m2", replicas=2)))
    first, second = mill.named(STARTING)
    mill.up(first)
    assert mill.entry().targets == (("import-m", 1000),)
    assert mill.state.replicas[old].status is READY
    mill.up(second)
    assert mill.entry().targets == (("import-m2", 1000),)
    assert [effect.replica for effect in mill.of(StopReplica)] == [old]
    assert [e.draining for e in mill.entry().endpoints] == [True, False, False]
    assert isinstance(mill.asked[0], PublishTable)
    mill.tell(ev.ReplicaExited, old, "stopped", WorkUsage(accelerator_us=9))
    (charge,) = mill.of(ChargeWork)
    assert (charge.kind, charge.model, charge.tenant) == ("serve", "chat", "")
    mill.tell(ev.ReplicaExited, old, "stopped", WorkUsage(accelerator_us=9))
    assert mill.asked == ()


def test_flip_with_those_that_fit_when_there_is_no_room_for_all(mill: Mill) -> None:
    serving(mill)  # four cores: one serves, three are free
    mill.bring("m2", "sha256:bb")
    mill.apply(factory(chat(model="m2", replicas=4)))
    for name in mill.named(STARTING):
        mill.up(name)
    assert mill.entry().targets == (("import-m2", 1000),)
    mill.tell(ev.ReplicaExited, mill.named(DRAINING)[0], "stopped")
    assert len(mill.of(StartReplica)) == 1


def test_changed_spec_drains_first_when_there_is_no_room_for_both(mill: Mill) -> None:
    old = serving(mill, resources=Resources(cpu_millis=3000))
    mill.apply(factory(chat(resources=Resources(cpu_millis=3000), slots=8)))
    assert [effect.replica for effect in mill.of(StopReplica)] == [old]
    assert mill.of(StartReplica) == []
    mill.tell(ev.ReplicaExited, old, "stopped")
    assert len(mill.of(StartReplica)) == 1


def test_nobody_grows_into_the_room_that_another_needs_to_be_replaced(mill: Mill) -> None:
    """Four cores, two used: each of two changed deployments gets one successor, then the others by turn."""
    mill.join()
    mill.apply(factory(chat(), chat(name="other")))
    mill.bring()
    mill.up_all()
    old = mill.named(READY)
    mill.apply(factory(chat(slots=8, replicas=4), chat(name="other", slots=8, replicas=4)))
    assert [len(mill.named(STARTING, name)) for name in ("chat", "other")] == [1, 1]
    assert mill.of(StopReplica) == [], "the last one that serves stays until a new one does"
    mill.up_all()
    assert [e.draining for name in ("chat", "other") for e in mill.entry(name).endpoints] == [True, False] * 2
    for name in old:
        mill.tell(ev.ReplicaExited, name, "stopped")
    assert len(mill.named(STARTING)) == 2


def test_changed_replicas_are_replaced_one_by_one_where_there_is_no_room(mill: Mill) -> None:
    serving(mill, replicas=4)
    mill.up_all()
    mill.apply(factory(chat(slots=8, replicas=4)))
    serves = []
    while left := mill.named(DRAINING):
        mill.tell(ev.ReplicaExited, left[0], "stopped")
        mill.up_all()
        serves.append(len(mill.named(READY)))
    assert serves == [3, 3, 3, 4], "one is away at a time"
    assert {replica.spec.slots for replica in mill.state.replicas.values() if replica.status is READY} == {8}


@pytest.mark.parametrize(("count", "least"), [(1, 1), (2, 1), (4, 2)])
def test_a_new_release_takes_a_full_floor_over_while_enough_serve(mill: Mill, count: int, least: int) -> None:
    """The last old replica never goes for a release that nothing serves; a single one waits for room."""
    mill.join(cpu=1000 * count)
    mill.apply(factory(chat(replicas=count)))
    mill.bring()
    mill.up_all()
    mill.apply(factory(chat(replicas=count), models=(Model("m", "package:new"),)))
    mill.bring(digest="sha256:bb")
    assert mill.alias().desired == "import-m-bb"
    serves = [count]
    while left := mill.named(DRAINING):
        serves.append(sum(not e.draining for e in mill.entry().endpoints if e.release in served(mill)))
        mill.tell(ev.ReplicaExited, left[0], "stopped")
        mill.up_all()
    assert min(serves) == least
    assert served(mill) == ({"import-m"} if count == 1 else {"import-m-bb"})
    assert len(mill.named(READY)) == count


def test_a_candidate_takes_one_place_of_a_full_floor_until_it_passed(mill: Mill) -> None:
    canary = CanaryPlan((CanaryStep(100, 60_000_000),), min_requests=1)
    mill.join(cpu=4000)
    mill.apply(factory(chat(replicas=4, canary=canary)))
    mill.bring()
    mill.up_all()
    mill.apply(factory(chat(replicas=4, canary=canary), models=(Model("m", "package:new"),)))
    mill.bring(digest="sha256:bb")
    mill.tell(ev.ReplicaExited, mill.named(DRAINING)[0], "stopped")
    mill.up_all()
    assert mill.entry().targets == (("import-m", 900), ("import-m-bb", 100))
    assert (len(mill.named(READY)), mill.named(DRAINING)) == (4, [])
    for release in ("import-m", "import-m-bb"):
        mill.tell(ev.OutcomesReported, "chat", release, Outcomes(100, 0, ((10, 100),)))
    mill.wait(61)
    while left := mill.named(DRAINING):
        assert len(mill.named(READY)) >= 2
        mill.tell(ev.ReplicaExited, left[0], "stopped")
        mill.up_all()
    assert (served(mill), len(mill.named(READY))) == ({"import-m-bb"}, 4)


def served(mill: Mill) -> set[str]:
    return {release for release, weight in mill.entry().targets if weight}


def test_a_successor_that_fails_takes_no_more_of_the_old_ones_with_it(mill: Mill) -> None:
    serving(mill, replicas=4)
    mill.up_all()
    mill.apply(factory(chat(slots=8, replicas=4)))
    mill.tell(ev.ReplicaExited, mill.named(DRAINING)[0], "stopped")
    for _ in range(4):
        mill.tell(ev.ReplicaExited, mill.named(STARTING)[0], "crashed")
        mill.wait(120)
        assert (len(mill.named(READY)), mill.named(DRAINING)) == (3, [])


def test_unchanged_deployment_is_left_alone(mill: Mill) -> None:
    serving(mill)
    mill.apply(factory(chat(tenants=("a",)), chat(name="other", model="m2")))
    assert mill.of(StopReplica) == []
    assert mill.entry().tenants == ("a",)


def test_removed_deployment_drains_and_frees(mill: Mill) -> None:
    name = serving(mill)
    mill.apply(factory())
    assert [effect.replica for effect in mill.of(StopReplica)] == [name]
    assert mill.state.table.aliases == ()
    assert len(mill.state.leases) == 1
    mill.tell(ev.ReplicaExited, name, "stopped")
    assert not mill.state.leases


def test_back_off_doubles_and_begins_anew_after_five_good_minutes(mill: Mill) -> None:
    name = serving(mill)
    mill.tell(ev.ReplicaExited, name, "killed")
    assert mill.state.replicas[name].retry_us == mill.now  # the first time at once
    mill.wait(0)
    name = mill.of(StartReplica)[0].replica
    mill.up(name)
    for wait_s in (1, 2, 4, 8, 16, 32, 60, 60):
        mill.tell(ev.ReplicaExited, name, "killed")
        assert mill.state.replicas[name].retry_us == mill.now + wait_s * 1_000_000
        assert mill.of(WakeAt)[0].at_us == mill.state.replicas[name].retry_us
        mill.wait(wait_s - 0.001)
        assert mill.of(StartReplica) == []
        mill.wait(0.001)
        name = mill.of(StartReplica)[0].replica
        mill.up(name)
    mill.now += 300_000_000
    mill.tell(ev.ReplicaExited, name, "killed")
    assert mill.state.replicas[name].retry_us == mill.now


def test_a_late_echo_of_a_dead_replica_does_not_end_its_successor(mill: Mill) -> None:
    old = serving(mill)
    mill.tell(ev.ReplicaExited, old, "killed")
    mill.wait(1)
    new = mill.of(StartReplica)[0].replica
    assert new != old
    mill.tell(ev.ReplicaExited, old, "killed")
    assert mill.asked == ()
    assert len(mill.state.leases) == 1


def test_a_release_that_fails_three_times_is_given_up(mill: Mill) -> None:
    old = serving(mill)
    mill.bring("m2", "sha256:bb")
    mill.apply(factory(chat(model="m2")))
    for _ in range(3):
        mill.tell(ev.ReplicaExited, mill.named(STARTING)[0], "no memory")
        mill.wait(61)
    assert mill.alias().desired == "import-m"
    assert "no memory" in mill.alias().reason
    assert mill.entry().targets == (("import-m", 1000),)
    assert mill.named(READY) == [old]
    assert mill.named(STARTING) == []
    mill.apply(factory(chat(model="m2")))
    assert mill.alias().desired == "import-m", "what was given up is not chosen again by itself"


def test_rollback_starts_what_is_gone_then_flips_and_goes_further_back(mill: Mill) -> None:
    serving(mill)
    mill.bring("m2", "sha256:bb")
    mill.apply(factory(chat(model="m2")))
    mill.up_all()
    for name in mill.named(DRAINING):
        mill.tell(ev.ReplicaExited, name, "stopped")
    mill.tell(ev.RollbackRequested, "chat", by="ada")
    assert mill.alias().desired == "import-m"
    assert "ada" in mill.alias().reason
    assert mill.entry().targets == (("import-m2", 1000),)
    mill.up_all()
    assert mill.entry().targets == (("import-m", 1000),)
    assert mill.alias().history == ("import-m",)
    with pytest.raises(RefusedError):
        check(mill.state, ev.RollbackRequested(mill.now, "chat"))
    with pytest.raises(ConflictError):
        check(mill.state, ev.RollbackRequested(mill.now, "chat", "import-m"))
    with pytest.raises(NotFoundError):
        check(mill.state, ev.RollbackRequested(mill.now, "nobody"))


def test_scaling_follows_load(mill: Mill) -> None:
    serving(mill, max_replicas=3)
    before = mill.state
    mill.tell(ev.LoadReported, "chat", 0)
    assert mill.state is before, "a report that crosses nothing leaves no trace"
    mill.tell(ev.LoadReported, "chat", 9, 1)
    assert len(mill.of(StartReplica)) == 2
    mill.up_all()
    mill.tell(ev.LoadReported, "chat", 0)
    mill.now += 121_000_000
    mill.tell(ev.LoadReported, "chat", 0)
    assert len(mill.of(StopReplica)) == 1


def test_scaling_follows_the_objective_and_why_says_so(mill: Mill) -> None:
    serving(mill, max_replicas=3, slo=Objective(ttft_us=500_000, attainment_milli=900))
    late = (3, 0, 0, 0, 40, 20)
    before = mill.state
    mill.tell(ev.LoadReported, "chat", *late)
    assert mill.state is before, "the answers are older than the replica"
    mill.now += 61_000_000
    mill.tell(ev.LoadReported, "chat", 3, 0, 0, 0, 40, 36)
    assert mill.state is before, "nine in ten are promised"
    mill.tell(ev.LoadReported, "chat", *late)
    assert len(mill.of(StartReplica)) == 1
    reasons = why(mill.state, "chat", mill.now).reasons
    assert "2 of 1..3 replicas are wanted for the load" in reasons
    assert "its objective is the first token within 500 ms for 90 % of the answers" in reasons
    assert any("missed 0 min ago" in reason for reason in reasons), reasons
    mill.now += 61_000_000
    mill.tell(ev.LoadReported, "chat", *late)
    assert len(mill.of(StartReplica)) == 0, "the second replica does not serve yet"
    mill.up_all()
    mill.now += 61_000_000
    mill.tell(ev.LoadReported, "chat", *late)
    assert len(mill.of(StartReplica)) == 1
    assert mill.entry().slo == Objective(ttft_us=500_000, attainment_milli=900)


def test_a_lost_node_keeps_its_leases_and_is_replaced(mill: Mill) -> None:
    name = serving(mill)
    mill.join("n1")
    mill.tell(ev.NodeLost, "n0", "no heartbeat")
    assert mill.of(StartReplica)[0].node == "n1"
    assert mill.of(StopReplica)[0].replica == name
    assert {lease.node for lease in mill.state.leases.values()} == {"n0", "n1"}
    mill.join("n0")
    assert mill.state.index.rooms["n0"].cpu_millis == 3000
    mill.tell(ev.ReplicaExited, name, "gone")
    assert mill.state.index.rooms["n0"].cpu_millis == 4000


def test_remote_server_needs_no_import_and_peers_are_endpoints(mill: Mill) -> None:
    mill.join()
    away = Deployment("away", engine="openai", model="giant", url="https://far.example/v1")
    peer = Peer("neighbour", "https://peer.example", "US", "secret://env/KEY", ("far",))
    mill.apply(factory(away, models=(Model("giant", "hf://g"),), lines=(), peers=(peer,)))
    assert mill.of(ImportModel) == []
    (start,) = mill.of(StartReplica)
    mill.up(start.replica)
    assert mill.entry("away").endpoints[0].tls
    assert mill.entry("away").endpoints[0].served_model == "giant"
    far = mill.entry("far")
    assert far.targets == (("peer:neighbour", 1000),)
    assert far.endpoints[0].address == "peer.example:443"


def test_line_without_release_says_how_to_get_one(mill: Mill) -> None:
    mill.join()
    mill.apply(factory(Deployment("tuned", line="tickets", resources=SMALL)))
    assert "tokenmill run tickets" in mill.entry("tuned").reason
    assert mill.entry("tuned").targets == ()


def test_replica_without_room_waits_and_says_so(mill: Mill) -> None:
    mill.join()
    mill.apply(factory(chat(resources=GPU)))
    mill.bring()
    assert "no node has room" in mill.entry().reason
    mill.join("n1", gpus=1)
    assert mill.of(StartReplica)[0].accelerators == ("n1/0",)
