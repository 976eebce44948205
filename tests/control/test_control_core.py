from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from control_mill import GPU, SMALL, Mill, chat, factory

from tokenmill.control.core import CHECKS, HANDLERS, LIGHT, check, replay, resume, step
from tokenmill.control.nodes import all_joined
from tokenmill.control.plan import diff
from tokenmill.control.snapshot import dump, load
from tokenmill.control.state import EMPTY
from tokenmill.control.why import why
from tokenmill.domain import events as ev
from tokenmill.domain.codec import EVENT_TYPES
from tokenmill.domain.effects import (
    ChargeWork,
    ImportModel,
    PublishTable,
    RecordRelease,
    StartJob,
    StartReplica,
    StopJob,
    StopReplica,
    WakeAt,
)
from tokenmill.domain.errors import ConflictError, DataError, InvariantError, NotFoundError, RefusedError
from tokenmill.domain.factory import Factory, Project, Resources, Tenant
from tokenmill.domain.work import JobSpec, Key, ReplicaStatus
from tokenmill.spec.factory_file import load as load_file
from tokenmill.spec.factory_file import template

SPEC = JobSpec("command", "a", "p", ("true",), resources=GPU)


@pytest.fixture
def busy(mill: Mill) -> Mill:
    """One of everything that can be outstanding."""
    mill.join(gpus=4, cpu=16_000)
    mill.apply(factory(chat(), chat(name="other", model="m2")))
    mill.bring()
    mill.tell(ev.JobSubmitted, "running", SPEC)
    mill.tell(ev.JobSubmitted, "stopping", SPEC)
    mill.tell(ev.JobCancelled, "stopping")
    mill.tell(ev.JobSubmitted, "pending", replace(SPEC, workers=4))
    return mill


def test_every_event_has_a_life_cycle() -> None:
    assert {kind.__name__ for kind in (*HANDLERS, *LIGHT)} == set(EVENT_TYPES)
    assert not set(HANDLERS) & set(LIGHT)
    assert set(CHECKS) <= set(HANDLERS)


def test_nothing_new_is_the_same_state(busy: Mill) -> None:
    for event in (
        ev.Tick(busy.now),
        ev.LoadReported(busy.now, "chat", 3),
        ev.LoadReported(busy.now, "nobody", 3),
        ev.ReplicaReady(busy.now, "r-999999"),
        ev.NodeLost(busy.now, "nobody"),
        ev.NodeJoined(busy.now, busy.state.nodes["n0"].node),
        ev.ControllerStarted(busy.now, 1),
        ev.JobStarted(busy.now, "pending", 0),
        ev.SpecApplied(busy.now, 99, factory()),
    ):
        after, effects = step(busy.state, event)
        assert after is busy.state
        assert effects == ()


def test_stale_plan_is_refused(busy: Mill) -> None:
    plan = diff(busy.state, factory())
    busy.apply(factory(chat()))
    stale = ev.SpecApplied(busy.now, plan.base_version, factory())
    with pytest.raises(ConflictError, match="version"):
        check(busy.state, stale)
    assert step(busy.state, stale) == (busy.state, ())


def test_resume_asks_for_all_that_is_outstanding(busy: Mill) -> None:
    kinds: dict[type, list[Any]] = {}
    for effect in resume(busy.state, busy.now):
        kinds.setdefault(type(effect), []).append(effect)
    assert kinds[PublishTable] == [PublishTable(busy.state.table)]
    assert [effect.model.name for effect in kinds[ImportModel]] == ["m2"]
    assert kinds[StartReplica] == busy.started_replicas()
    assert kinds[StartJob] == [e for e in busy.started_jobs() if e.job == "running"]
    assert [effect.job for effect in kinds[StopJob]] == ["stopping"]
    assert len(kinds[WakeAt]) == 1
    busy.apply(factory())
    assert StopReplica in {type(effect) for effect in resume(busy.state, busy.now)}


def test_replay_gives_the_state_and_what_the_ledger_may_lack(mill: Mill) -> None:
    events = [ev.ControllerStarted(1, 1), ev.SpecApplied(1, 0, factory()), *_short_life()]
    state, effects = replay(EMPTY, events)
    assert {type(effect) for effect in effects} == {ChargeWork, RecordRelease}
    again, _ = replay(EMPTY, events)
    assert again == state


def _short_life() -> list[ev.Event]:
    made = Mill()
    made.join(gpus=1)
    found = ev.ModelImported(2, made_import())
    return [
        ev.NodeJoined(2, made.state.nodes["n0"].node),
        found,
        ev.JobSubmitted(3, "j", SPEC),
        ev.JobExited(4, "j", 1, 0),
    ]


def made_import() -> Any:
    made = Mill()
    made.apply(factory())
    made.bring()
    return made.state.models["m"]


def test_snapshot_gives_back_the_state_through_json(busy: Mill) -> None:
    assert load(json.loads(json.dumps(dump(busy.state)))) == busy.state
    with pytest.raises(DataError):
        load({"format": 99})


def test_keys_and_the_table(mill: Mill) -> None:
    mill.apply(factory(tenants=(Tenant("a", (Project("p"),)), Tenant("b", (Project("p"),)))))
    version = mill.state.table_version
    mill.tell(ev.KeyCreated, Key("k1", "d1", "a", "p"))
    mill.tell(ev.KeyCreated, Key("k2", "d2", "b", "p", scope="admin"))
    assert mill.state.table_version == version + 2
    assert [key.id for key in mill.state.table.keys] == ["k1", "k2"]
    mill.tell(ev.KeyDisabled, "k1")
    assert [key.id for key in mill.state.table.keys] == ["k2"]
    mill.apply(factory(tenants=(Tenant("a", (Project("p"),)),)))
    assert mill.state.table.keys == ()
    for bad, error in (
        (ev.KeyCreated(1, Key("k2", "d", "a", "p")), ConflictError),
        (ev.KeyCreated(1, Key("k3", "d", "x", "p")), NotFoundError),
        (ev.KeyCreated(1, Key("k3", "d", "a", "p", scope="root")), RefusedError),
        (ev.KeyDisabled(1, "k1"), ConflictError),
        (ev.KeyDisabled(1, "k9"), NotFoundError),
    ):
        with pytest.raises(error):
            check(mill.state, bad)


def test_table_is_published_only_when_it_shows_something_new(busy: Mill) -> None:
    version = busy.state.table_version
    busy.tell(ev.JobSubmitted, "more", SPEC)
    assert busy.state.table_version == version
    busy.tell(ev.ReplicaStarted, busy.named(ReplicaStatus.STARTING)[0], "127.0.0.1:1")
    assert busy.of(PublishTable) == [], "a replica that is not ready is not shown"


def test_diff_names_what_changes_and_what_follows(busy: Mill) -> None:
    plan = diff(busy.state, factory(chat(slots=8), chat(name="new")))
    found = {(change.kind, change.what, change.name): change.detail for change in plan.changes}
    assert plan.base_version == busy.state.version
    assert "slots: 4 -> 8" in found["change", "deployment", "chat"]
    assert "replaced" in found["change", "deployment", "chat"]
    assert ("add", "deployment", "new") in found
    assert "drain" in found["remove", "deployment", "other"]
    assert diff(busy.state, busy.state.factory).changes == ()
    assert plan.digest != diff(busy.state, busy.state.factory).digest


@pytest.mark.parametrize(
    ("written", "then", "said"),
    [
        (
            "requests_per_minute: 600",
            "requests_per_minute: 2",
            "projects.support.quota.requests_per_minute: 600 -> 2",
        ),
        ("  - research\n", "  - other\n", "projects: - research, projects: + other"),
        ("  tokens_per_day: 50M\n", "", "quota.tokens_per_day: 50000000 -> not set"),
        ("tenants: [acme]", "tenants: [acme, globex]", "tenants: acme -> acme, globex"),
        ("epochs: 1", "epochs: 2", "stations.tune.params.epochs: 1 -> 2"),
        ("timeout: 30m", "timeout: 40m", "stations.tune.timeout: 30 m -> 40 m"),
    ],
)
def test_diff_says_which_field_of_what_lies_within(written: str, then: str, said: str) -> None:
    def read(text: str) -> Factory:
        return load_file([Path("f.yaml")], {}, lambda path: text)

    state = replace(EMPTY, factory=read(template()), version=1)
    (change,) = diff(state, read(template().replace(written, then))).changes
    assert said in change.detail


def test_why_explains_all_there_is(busy: Mill) -> None:
    found = why(busy.state, "pending", busy.now)
    assert "work that holds room ends: running, stopping" in found.changes
    assert (found.kind, found.status) == ("job", "pending")
    assert found.candidates[0].name == "n0"
    assert found.changes
    lease = min(busy.state.leases)
    for name in ("chat", "other", "m", "n0", "tickets", "import-m", "running", "stopping", lease):
        assert why(busy.state, name, busy.now).rule
    assert "being imported" in why(busy.state, "other", busy.now).reasons[0]
    with pytest.raises(NotFoundError):
        why(busy.state, "nothing", busy.now)


def test_why_a_replica_waits(mill: Mill) -> None:
    mill.join()
    mill.apply(factory(chat(resources=GPU), chat(name="small", resources=SMALL)))
    mill.bring()
    (waiting,) = mill.named(ReplicaStatus.PENDING)
    found = why(mill.state, waiting, mill.now)
    assert "no accelerator free" in found.candidates[0].reason
    assert found.changes == ("a node joins that has room", "it asks for less")  # nobody has what it wants
    mill.tell(ev.JobSubmitted, "large", replace(SPEC, resources=Resources(cpu_millis=4000)))
    (other,) = set(mill.state.replicas) - {waiting}
    assert f"work that holds room ends: {other} of small" in why(mill.state, "large", mill.now).changes
    assert why(mill.state, "chat", mill.now).status == "not serving"


def test_nodes_that_join_at_once_give_what_they_give_one_by_one(mill: Mill) -> None:
    made = mill.state
    for name, gpus in (("n1", 4), ("n0", 0), ("n2", 4), ("n1", 8)):
        mill.join(name, gpus)
    nodes = [mill.state.nodes[name].node for name in ("n1", "n0", "n2")]
    smaller = replace(nodes[0], accelerators=nodes[0].accelerators[:4])
    at_us = mill.state.nodes["n0"].joined_us
    assert all_joined(made, [smaller, nodes[1], nodes[2], nodes[0]], at_us) == mill.state
    mill.apply(factory(chat()))
    with pytest.raises(InvariantError):
        all_joined(mill.state, nodes, at_us)
