from __future__ import annotations

import time

import pytest
from control_mill import SECOND, Mill, chat, factory

from tokenmill.control.core import check, resume
from tokenmill.control.why import why
from tokenmill.domain import events as ev
from tokenmill.domain.effects import PublishTable, RecordRecall, StopReplica, WakeAt
from tokenmill.domain.errors import ConflictError, NotFoundError, RefusedError, UsageError
from tokenmill.domain.factory import CanaryPlan, CanaryStep
from tokenmill.domain.outcomes import Outcomes, bucket_of
from tokenmill.domain.work import ReplicaStatus

MINUTE = 60 * SECOND
PLAN = CanaryPlan((CanaryStep(50, MINUTE), CanaryStep(250, MINUTE)), patience_us=10 * MINUTE)
OLD, NEW = "import-m", "import-m2"
READY = ReplicaStatus.READY


def seen(requests: int = 60, errors: int = 0) -> Outcomes:
    return Outcomes(requests, errors, ((bucket_of(100_000), requests - errors),))


def begin(mill: Mill, plan: CanaryPlan = PLAN, **named: object) -> None:
    """A champion that serves, and a candidate whose replica is not ready yet."""
    mill.join()
    mill.apply(factory(chat(canary=plan, **named)))
    mill.bring()
    mill.up_all()
    assert mill.entry().targets == ((OLD, 1000),), "the first release has nobody to be compared with"
    mill.bring("m2", "sha256:bb")
    mill.apply(factory(chat(canary=plan, model="m2", **named)))


def report(mill: Mill, candidate: Outcomes, champion: Outcomes | None = None) -> None:
    mill.tell(ev.OutcomesReported, "chat", OLD, champion or seen())
    mill.tell(ev.OutcomesReported, "chat", NEW, candidate)


def test_weights_move_by_schedule_and_the_champion_stays_until_the_end(mill: Mill) -> None:
    begin(mill)
    assert mill.entry().targets == ((OLD, 1000),), "a candidate that is not ready takes nothing"
    mill.up_all()
    assert mill.entry().targets == ((OLD, 950), (NEW, 50))
    assert any(isinstance(effect, WakeAt) for effect in mill.log)
    report(mill, seen())
    assert mill.entry().targets == ((OLD, 950), (NEW, 50)), "a step lasts its time"
    assert len(mill.named(READY)) == 2
    mill.wait(60)
    assert mill.entry().targets == ((OLD, 750), (NEW, 250))
    report(mill, seen())
    mill.wait(60)
    assert mill.entry().targets == ((NEW, 1000),)
    assert len(mill.of(StopReplica)) == 1
    assert mill.alias().history == (OLD, NEW)
    assert mill.alias().canary is None


def test_errors_send_it_back_in_the_same_step_and_it_does_not_come_again(mill: Mill) -> None:
    begin(mill)
    mill.up_all()
    began = time.perf_counter()
    mill.tell(ev.OutcomesReported, "chat", NEW, Outcomes(8, 8))
    assert time.perf_counter() - began < 1
    (published,) = mill.of(PublishTable)
    assert published.table.aliases[0].targets == ((OLD, 1000),)
    assert NEW in mill.alias().reason
    assert "8 of its 8 requests failed" in mill.alias().reason
    assert any("failed" in reason for reason in why(mill.state, "chat", mill.now).reasons)
    assert mill.alias().refused == (NEW,)
    mill.bring("m2", "sha256:bb")
    assert mill.alias().desired == OLD


def test_no_evidence_is_no_pass(mill: Mill) -> None:
    begin(mill)
    mill.up_all()
    mill.wait(61)
    assert mill.entry().targets == ((OLD, 950), (NEW, 50))
    mill.wait(600)
    assert mill.entry().targets == ((OLD, 1000),)
    assert "no evidence came" in mill.alias().reason


def test_a_candidate_that_turns_ready_and_dies_again_and_again_goes_back(mill: Mill) -> None:
    begin(mill)
    for _ in range(3):
        mill.up_all()
        (name,) = [n for n in mill.named(READY) if mill.state.replicas[n].release == NEW]
        mill.tell(ev.ReplicaExited, name, "it was killed")
        mill.wait(10)
    assert mill.entry().targets == ((OLD, 1000),)
    assert "failed 3 times" in mill.alias().reason


def test_a_shadow_takes_no_traffic_and_is_judged_all_the_same(mill: Mill) -> None:
    begin(mill, CanaryPlan((CanaryStep(100, MINUTE, shadow=True), CanaryStep(50, MINUTE))))
    mill.up_all()
    assert mill.entry().targets == ((OLD, 1000),)
    assert mill.entry().shadow == (NEW, 100)
    report(mill, seen())
    mill.wait(60)
    assert mill.entry().targets == ((OLD, 950), (NEW, 50))
    assert mill.entry().shadow is None


def test_a_persons_hold_stops_every_step_forward_but_not_the_way_back(mill: Mill) -> None:
    begin(mill)
    mill.up_all()
    mill.tell(ev.AliasSteered, "chat", "hold", by="ada")
    report(mill, seen())
    mill.wait(3600)
    assert mill.entry().targets == ((OLD, 950), (NEW, 50))
    mill.tell(ev.AliasSteered, "chat", "resume")
    mill.wait(0.1)
    assert mill.entry().targets == ((OLD, 750), (NEW, 250))
    mill.tell(ev.AliasSteered, "chat", "hold", by="ada")
    report(mill, seen(60, 40))
    assert mill.entry().targets == ((OLD, 1000),)


def test_rollback_in_the_middle_is_one_flip_and_holds(mill: Mill) -> None:
    begin(mill)
    mill.up_all()
    mill.tell(ev.RollbackRequested, "chat", by="ada")
    assert mill.of(PublishTable)[0].table.aliases[0].targets == ((OLD, 1000),)
    assert "ada" in mill.alias().hold
    mill.tell(ev.AliasSteered, "chat", "promote", NEW, "ada")
    assert mill.alias().hold == ""
    mill.up_all()
    assert mill.entry().targets == ((NEW, 1000),), "a person's choice goes straight"


def test_promote_takes_the_candidate_at_once(mill: Mill) -> None:
    begin(mill)
    mill.up_all()
    mill.tell(ev.AliasSteered, "chat", "promote", by="ada")
    assert mill.entry().targets == ((NEW, 1000),)
    assert len(mill.of(StopReplica)) == 1


def test_wrong_words_are_refused(mill: Mill) -> None:
    begin(mill)
    now = mill.now
    for event, error in (
        (ev.AliasSteered(now, "nobody", "hold"), NotFoundError),
        (ev.AliasSteered(now, "chat", "fly"), UsageError),
        (ev.AliasSteered(now, "chat", "resume"), ConflictError),
        (ev.AliasSteered(now, "chat", "promote", "rel-9"), NotFoundError),
        (ev.ReleaseRecalled(now, "rel-9"), NotFoundError),
    ):
        with pytest.raises(error):
            check(mill.state, event)
    mill.up_all()
    mill.tell(ev.AliasSteered, "chat", "promote")
    with pytest.raises(RefusedError):
        check(mill.state, ev.AliasSteered(now, "chat", "promote"))


def test_a_report_about_nothing_that_goes_on_leaves_no_trace(mill: Mill) -> None:
    begin(mill)
    before = mill.state
    mill.tell(ev.OutcomesReported, "chat", NEW, seen())
    mill.tell(ev.OutcomesReported, "nobody", NEW, seen())
    assert mill.state is before
    mill.up_all()
    before = mill.state
    mill.tell(ev.OutcomesReported, "chat", "rel-other", seen())
    assert mill.state is before


def test_a_new_controller_asks_for_the_wake_again(mill: Mill) -> None:
    begin(mill)
    mill.up_all()
    canary = mill.alias().canary
    assert canary is not None
    assert WakeAt(canary.check_us) in resume(mill.state, mill.now)


def test_recall_leaves_every_alias_for_ever(mill: Mill) -> None:
    begin(mill)
    mill.up_all()
    mill.tell(ev.AliasSteered, "chat", "promote")
    old = mill.state.replicas[next(r.id for r in mill.state.replicas.values() if r.release == OLD)]
    mill.tell(ev.ReplicaExited, old.id, "stopped")
    mill.tell(ev.ReleaseRecalled, NEW, "ada", "leaked data")
    assert [effect.recall.reason for effect in mill.of(RecordRecall)] == ["leaked data"]
    assert mill.entry().targets == (), "not a single request more goes to it"
    assert "leaked data" in mill.alias().reason
    assert all(e.draining for e in mill.entry().endpoints if e.release == NEW)
    assert mill.alias().desired == OLD
    mill.up_all()
    assert mill.entry().targets == ((OLD, 1000),)
    for event in (
        ev.RollbackRequested(mill.now, "chat", NEW),
        ev.AliasSteered(mill.now, "chat", "promote", NEW),
    ):
        with pytest.raises(RefusedError, match="recalled"):
            check(mill.state, event)
    with pytest.raises(ConflictError):
        check(mill.state, ev.ReleaseRecalled(mill.now, NEW))


def test_recall_of_the_only_release_stops_the_alias(mill: Mill) -> None:
    mill.join()
    mill.apply(factory(chat()))
    mill.bring()
    mill.up_all()
    mill.tell(ev.ReleaseRecalled, OLD, "ada")
    assert mill.entry().targets == ()
    assert "was recalled" in mill.entry().reason
    mill.apply(factory(chat(model="m2")))
    mill.apply(factory(chat(model="m")))
    assert mill.alias().desired == "", "what was recalled is not chosen again by itself"
