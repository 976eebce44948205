from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from control_mill import GPU, SMALL, Mill, factory

from tokenmill.control.core import check
from tokenmill.control.plan import diff
from tokenmill.control.why import verdict_of, why
from tokenmill.domain import events as ev
from tokenmill.domain.effects import RecordRelease, StartJob, StopJob
from tokenmill.domain.errors import ConflictError, NotFoundError, UsageError
from tokenmill.domain.factory import Deployment, Line, Station
from tokenmill.domain.trigger import Trigger
from tokenmill.domain.work import JobResult, JobStatus, RunStatus, StationStatus
from tokenmill.policy.gate import NAMED

GOOD = {"both": 60, "neither": 20, "candidate_only": 18, "reference_only": 2}
EVEN = {"both": 60, "neither": 20, "candidate_only": 10, "reference_only": 10}
TUNED = Deployment("tuned", line="tickets", resources=SMALL)


@pytest.fixture
def line(mill: Mill) -> Mill:
    mill.join(cpu=16_000)
    mill.apply(factory(TUNED))
    mill.bring()
    return mill


def result(kind: str, champion: Any, pairs: dict[str, int] | None = GOOD, data: str = "1") -> JobResult:
    if kind == "tune":
        return JobResult({"adapter_gguf": f"sha256:adapter{data}"})
    if kind == "pack":
        return JobResult({"release": f"sha256:release{data}"}, evidence={"manifest_digest": "sha256:x"})
    if kind == "evaluate":
        by_name = {"base": pairs, "champion": pairs if champion else None}
        named = dict.fromkeys((*NAMED, "base_weights", "champion_weights"), "sha256:x")
        evidence = {"metric": "exact_match", "n": 100, "pairs": by_name, "digests": named}
        return JobResult({"predictions": "sha256:p"}, evidence=evidence)
    return JobResult({"rows": f"sha256:rows{data}"})


def drive(
    mill: Mill, run: str, pairs: dict[str, int] | None = GOOD, data: str = "1", force: str = ""
) -> list[str]:
    """Submit a run and finish its jobs as they start; says which station kinds were really done."""
    done: list[str] = []
    mill.tell(ev.RunSubmitted, run, "tickets", force=force)
    while True:
        starts = mill.of(StartJob)
        if not starts:
            return done
        params = starts[0].spec.params
        done.append(params["kind"])
        mill.finish(starts[0], result(params["kind"], params["champion"], pairs, data))


def test_a_line_from_data_to_traffic(line: Mill) -> None:
    assert drive(line, "run-1") == ["intake", "tune", "evaluate", "pack"]
    run = line.state.runs["run-1"]
    assert run.status is RunStatus.SUCCEEDED
    release = line.state.releases[run.release]
    assert (release.weights, release.adapter, release.digest) == (
        "sha256:aa",
        "sha256:adapter1",
        "sha256:release1",
    )
    assert release.verdict is not None
    assert release.verdict.passed
    assert verdict_of(run) == release.verdict
    assert [e.release.id for e in line.log if isinstance(e, RecordRelease)] == ["import-m", release.id]
    line.up_all()
    assert line.entry("tuned").targets == ((release.id, 1000),)
    (job,) = [start for start in line.started_jobs() if start.spec.station == "pack"]
    assert set(job.spec.params["inputs"]) == {"intake", "tune", "evaluate", "gate"}
    assert job.spec.params["base"] == {"model": "m", "weights": "sha256:aa", "format": "gguf"}


def test_what_was_done_is_not_done_again_but_intake_and_what_meets_the_champion_are(line: Mill) -> None:
    drive(line, "run-1")
    line.up_all()
    assert drive(line, "run-2", EVEN) == ["intake", "evaluate"]
    run = line.state.runs["run-2"]
    assert run.status is RunStatus.REJECTED
    assert [s.status for s in run.stations] == [
        StationStatus.DONE,
        StationStatus.REUSED,
        StationStatus.DONE,
        StationStatus.FAILED,
        StationStatus.SKIPPED,
    ]
    assert drive(line, "run-3", EVEN, force="tune") == ["intake", "tune", "evaluate"]
    assert drive(line, "run-4", GOOD, data="2") == ["intake", "tune", "evaluate", "pack"]
    assert len([r for r in line.state.releases.values() if r.line]) == 2


def test_missing_evidence_keeps_the_gate_shut(line: Mill) -> None:
    drive(line, "run-1", None)
    run = line.state.runs["run-1"]
    assert run.status is RunStatus.REJECTED
    assert "no evidence" in run.reason
    assert not run.release
    assert "no evidence" in " ".join(why(line.state, "run-1", line.now).reasons)


def test_why_of_a_run_gives_every_reason_of_its_gate_once_and_what_it_judged(line: Mill) -> None:
    drive(line, "run-1")
    line.up_all()
    drive(line, "run-2", EVEN)
    for name in ("run-1", "run-2"):
        run = line.state.runs[name]
        found, verdict = why(line.state, name, line.now), verdict_of(run)
        assert verdict is not None
        assert found.reasons[-len(verdict.reasons) - 1 : -1] == verdict.reasons
        assert all(named in found.reasons[-1] for named in NAMED)
        said = " ".join((*found.reasons, *(choice.reason for choice in found.candidates)))
        assert [said.count(reason) for reason in verdict.reasons] == [1] * len(verdict.reasons)
    (gate,) = [s for s in line.state.runs["run-2"].stations if s.name == "gate"]
    assert "Failed: " in gate.reason
    assert "Passed" not in gate.reason


def test_another_champion_meanwhile_means_evaluating_again(line: Mill) -> None:
    drive(line, "run-1")
    line.up_all()
    drive(line, "run-2", data="2")
    line.up_all()
    first, second = line.alias("tuned").history
    line.tell(ev.RunSubmitted, "run-3", "tickets")
    for kind in ("intake", "tune"):
        line.finish(line.of(StartJob)[0], result(kind, None, data="3"))
    (evaluate,) = line.of(StartJob)
    assert evaluate.spec.params["champion"]["id"] == second
    line.tell(ev.RollbackRequested, "tuned")
    line.finish(evaluate, result("evaluate", second))
    (again,) = line.of(StartJob)
    assert again.spec.params["kind"] == "evaluate"
    assert again.spec.params["champion"]["id"] == first
    line.finish(again, result("evaluate", first))
    assert line.of(StartJob)[0].spec.params["kind"] == "pack"


def test_a_failed_station_fails_the_run(line: Mill) -> None:
    line.tell(ev.RunSubmitted, "run-1", "tickets")
    (start,) = line.of(StartJob)
    line.tell(ev.JobExited, start.job, 1, 10, None, "tickets.csv:7: no answer")
    run = line.state.runs["run-1"]
    assert run.status is RunStatus.FAILED
    assert "tickets.csv:7" in run.reason
    assert run.stations[1].status is StationStatus.SKIPPED


def test_another_trigger_or_priority_ends_no_run_and_a_plan_names_those_that_end(line: Mill) -> None:
    line.tell(ev.RunSubmitted, "r1", "tickets")
    [tickets] = line.state.factory.lines
    later = replace(factory(TUNED), lines=(replace(tickets, trigger=Trigger("0 3 * * *"), priority=7),))
    assert not any("under way" in change.detail for change in diff(line.state, later).changes)
    line.apply(later)
    assert line.state.runs["r1"].status is RunStatus.RUNNING
    other = replace(factory(TUNED), lines=(replace(tickets, base="m2"),))
    gone = replace(other, lines=(), deployments=())
    for next_file in (other, gone):
        details = [change.detail for change in diff(line.state, next_file).changes if change.what == "line"]
        assert [detail.rpartition("; ")[2] for detail in details] == ["r1 under way ends"]
    line.apply(other)
    assert line.state.runs["r1"].status is RunStatus.FAILED
    assert not any("under way" in change.detail for change in diff(line.state, gone).changes)


def test_cancel_and_changed_line_stop_the_jobs(line: Mill) -> None:
    line.tell(ev.RunSubmitted, "run-1", "tickets")
    (start,) = line.of(StartJob)
    line.tell(ev.RunCancelled, "run-1", by="ada")
    assert line.state.runs["run-1"].status is RunStatus.CANCELLED
    assert [effect.job for effect in line.of(StopJob)] == [start.job]
    line.finish(start, result("intake", None))
    assert line.of(StartJob) == []
    line.tell(ev.RunSubmitted, "run-2", "tickets")
    line.apply(factory(TUNED, lines=(Line("tickets", "a", "p", "m2", line.state.factory.lines[0].stations),)))
    assert line.state.runs["run-2"].status is RunStatus.FAILED
    assert "was changed" in line.state.runs["run-2"].reason


def test_a_line_without_a_gate_releases_nothing(mill: Mill) -> None:
    stations = (Station("tune", "tune", resources=SMALL), Station("pack", "pack", ("tune",), resources=SMALL))
    mill.join(cpu=16_000)
    mill.apply(factory(TUNED, lines=(Line("tickets", "a", "p", "m", stations),)))
    mill.bring()
    assert drive(mill, "run-1") == ["tune"]
    assert mill.state.runs["run-1"].status is RunStatus.FAILED
    assert "no gate" in mill.state.runs["run-1"].reason


def test_a_run_waits_for_its_base_and_fails_with_it(mill: Mill) -> None:
    mill.join(cpu=16_000)
    mill.apply(factory(TUNED))
    mill.tell(ev.RunSubmitted, "run-1", "tickets")
    assert mill.of(StartJob) == []
    assert "being imported" in " ".join(why(mill.state, "run-1", mill.now).reasons)
    mill.bring()
    assert len(mill.of(StartJob)) == 1
    mill.tell(ev.RunCancelled, "run-1")
    mill.apply(factory(TUNED, models=()))
    mill.apply(factory(TUNED))
    mill.tell(ev.RunSubmitted, "run-2", "tickets")
    assert mill.state.runs["run-2"].status is RunStatus.RUNNING


def test_refusals(line: Mill) -> None:
    line.tell(ev.RunSubmitted, "run-1", "tickets")
    for bad, error in (
        (ev.RunSubmitted(1, "run-2", "tickets"), ConflictError),
        (ev.RunSubmitted(1, "run-2", "nothing"), NotFoundError),
        (ev.RunCancelled(1, "run-2"), NotFoundError),
    ):
        with pytest.raises(error):
            check(line.state, bad)
    line.tell(ev.RunCancelled, "run-1")
    with pytest.raises(NotFoundError, match="no station"):
        check(line.state, ev.RunSubmitted(1, "run-2", "tickets", force="bake"))
    with pytest.raises(ConflictError):
        check(line.state, ev.RunCancelled(1, "run-1"))


def test_a_release_that_comes_while_a_person_holds_the_alias_waits(line: Mill) -> None:
    drive(line, "run-1")
    line.up_all()
    first = line.alias("tuned").desired
    line.tell(ev.AliasSteered, "tuned", "hold", by="ada")
    drive(line, "run-2", data="2")
    second = line.state.runs["run-2"].release
    assert line.alias("tuned").desired == first
    assert line.alias("tuned").waiting == second
    line.tell(ev.AliasSteered, "tuned", "resume")
    assert line.alias("tuned").desired == second


def test_a_recalled_release_is_not_made_again_from_what_was_kept(line: Mill) -> None:
    drive(line, "run-1")
    line.up_all()
    release = line.alias("tuned").desired
    line.tell(ev.ReleaseRecalled, release, "ada", "leaked data")
    assert line.alias("tuned").desired == ""
    drive(line, "run-2")
    run = line.state.runs["run-2"]
    assert run.status is RunStatus.FAILED
    assert "leaked data" in run.reason
    assert line.alias("tuned").desired == ""


def test_a_rerun_takes_over_what_came_before_as_it_was(line: Mill) -> None:
    drive(line, "run-1")
    line.tell(ev.RunSubmitted, "run-2", "tickets", force="evaluate", parent="run-1")
    (start,) = line.of(StartJob)
    assert start.spec.params["kind"] == "evaluate", "intake is not read again either"
    states = {s.name: s for s in line.state.runs["run-2"].stations}
    assert states["tune"].status is StationStatus.REUSED
    assert states["tune"].reason == "taken over from run-1"
    line.tell(ev.RunCancelled, "run-2")
    now = line.now
    with pytest.raises(NotFoundError):
        check(line.state, ev.RunSubmitted(now, "run-3", "tickets", force="tune", parent="run-9"))


def test_a_rerun_cannot_take_over_what_was_not_done(line: Mill) -> None:
    line.tell(ev.RunSubmitted, "run-1", "tickets")
    line.finish(line.of(StartJob)[0], None, 10)
    with pytest.raises(ConflictError, match="intake was not done"):
        check(line.state, ev.RunSubmitted(line.now, "run-2", "tickets", force="tune", parent="run-1"))
    with pytest.raises(UsageError):
        check(line.state, ev.RunSubmitted(line.now, "run-2", "tickets", parent="run-1"))


def test_pause_stops_at_the_checkpoint_and_resume_goes_on_with_the_same_job(line: Mill) -> None:
    line.tell(ev.RunSubmitted, "run-1", "tickets")
    line.finish(line.of(StartJob)[0], result("intake", None))
    (tune,) = line.of(StartJob)
    line.tell(ev.RunPaused, "run-1", "ada")
    assert [effect.job for effect in line.of(StopJob)] == [tune.job]
    line.finish(tune, None, 143)
    job = line.state.jobs[tune.job]
    assert job.status is JobStatus.PENDING
    assert "paused" in why(line.state, job.id, line.now).reasons[0]
    line.wait(3600)
    assert not line.of(StartJob)
    assert not line.state.leases, "what is paused holds nothing"
    line.tell(ev.RunResumed, "run-1", "ada")
    (again,) = line.of(StartJob)
    assert (again.job, again.attempt) == (tune.job, 2)
    assert again.spec.max_attempts == tune.spec.max_attempts + 1
    line.finish(again, result("tune", None))
    assert line.of(StartJob)[0].spec.station == "evaluate"
    for event in (ev.RunResumed(line.now, "run-1"), ev.RunPaused(line.now, "run-9")):
        with pytest.raises((ConflictError, NotFoundError)):
            check(line.state, event)


def test_resume_before_the_job_has_stopped_loses_nothing(line: Mill) -> None:
    line.tell(ev.RunSubmitted, "run-1", "tickets")
    (intake,) = line.of(StartJob)
    line.tell(ev.RunPaused, "run-1")
    line.tell(ev.RunResumed, "run-1")
    line.finish(intake, None, 143)
    assert [start.job for start in line.of(StartJob)] == [intake.job]


def test_two_lines_that_want_the_same_accelerator_both_progress(mill: Mill) -> None:
    mill.join(gpus=1, cpu=16_000)
    made = factory(TUNED)
    stations = tuple(replace(s, resources=GPU) if s.kind == "tune" else s for s in made.lines[0].stations)
    first = replace(made.lines[0], stations=stations)
    second = replace(first, name="letters", tenant="b")
    mill.apply(replace(made, lines=(first, second)))
    mill.bring()
    mill.tell(ev.RunSubmitted, "run-1", "tickets")
    mill.tell(ev.RunSubmitted, "run-2", "letters")
    order: list[str] = []
    started = 0
    while started < len(mill.started_jobs()):
        start = mill.started_jobs()[started]
        started += 1
        params = start.spec.params
        if params["kind"] == "tune":
            order.append(params["line"])
            assert sum(len(lease.accelerators) for lease in mill.state.leases.values()) == 1
        data = params["line"]
        mill.finish(start, result(params["kind"], params["champion"], GOOD, data))
    assert sorted(order) == ["letters", "tickets"]
    assert {run.status for run in mill.state.runs.values()} == {RunStatus.SUCCEEDED}


def test_a_line_starts_by_itself_when_enough_rows_are_new(line: Mill) -> None:
    (tickets,) = [found for found in line.state.factory.lines if found.name == "tickets"]
    own = factory(TUNED)
    with_trigger = replace(tickets, trigger=Trigger(new_rows=100))
    line.apply(replace(own, lines=(with_trigger,)))
    line.tell(ev.LineObserved, "tickets", (0, 99))
    assert not line.state.runs
    line.tell(ev.LineObserved, "tickets", (0, 100))
    (run,) = line.state.runs.values()
    assert run.by == "trigger (100 new rows, 100 are enough)"
    before = line.state
    line.tell(ev.LineObserved, "tickets", (0, 500))  # it runs already
    assert line.state is before
    line.tell(ev.RunCancelled, run.id)
    line.tell(ev.LineObserved, "tickets", (0, 600))  # the last run read nothing: no storm of attempts
    assert len(line.state.runs) == 1
    line.tell(ev.LineObserved, "nothing", (0, 600))
    assert len(line.state.runs) == 1


def test_a_line_by_the_clock_and_after_a_run_that_read_its_data(line: Mill) -> None:
    (tickets,) = [found for found in line.state.factory.lines if found.name == "tickets"]
    line.apply(replace(factory(TUNED), lines=(replace(tickets, trigger=Trigger("* * * * *", 50)),)))
    line.tell(ev.LineObserved, "tickets", (0, 10))
    (run,) = line.state.runs
    assert line.state.runs[run].by.startswith("trigger (cron")
    while starts := line.of(StartJob):
        params = starts[0].spec.params
        made = result(params["kind"], params["champion"])
        metrics = {"profile": [0, 10]} if params["kind"] == "intake" else {}
        line.finish(starts[0], replace(made, metrics=metrics))
    assert line.state.runs[run].status is RunStatus.SUCCEEDED
    line.apply(replace(factory(TUNED), lines=(replace(tickets, trigger=Trigger(new_rows=50)),)))
    line.tell(ev.LineObserved, "tickets", (0, 59))
    assert len(line.state.runs) == 1
    line.tell(ev.LineObserved, "tickets", (0, 60))
    assert len(line.state.runs) == 2


def test_captured_answers_are_new_whatever_was_deleted_since_the_last_run(line: Mill) -> None:
    (tickets,) = [found for found in line.state.factory.lines if found.name == "tickets"]
    trigger = Trigger(new_rows=50, drift_milli=250)
    line.apply(replace(factory(TUNED), lines=(replace(tickets, trigger=trigger),)))
    line.tell(ev.LineObserved, "tickets", (0, 60), since_us=0)
    (run,) = line.state.runs
    while starts := line.of(StartJob):
        params = starts[0].spec.params
        metrics = {"profile": [0, 600], "read_until_us": 7} if params["kind"] == "intake" else {}
        line.finish(starts[0], replace(result(params["kind"], params["champion"]), metrics=metrics))
    assert line.state.runs[run].status is RunStatus.SUCCEEDED
    line.tell(ev.LineObserved, "tickets", (0, 90), since_us=0)  # looked before the run had read
    line.tell(ev.LineObserved, "tickets", (0, 49), since_us=7)
    assert len(line.state.runs) == 1
    line.tell(ev.LineObserved, "tickets", (0, 50), since_us=7)  # of 600 rows then, 50 may be all that is left
    assert len(line.state.runs) == 2
    newest = max(line.state.runs)
    assert line.state.runs[newest].by == "trigger (50 new rows, 50 are enough)"


def test_worse_answers_of_the_release_that_serves_start_the_line(line: Mill) -> None:
    drive(line, "run-1")
    release = line.state.runs["run-1"].release
    (tickets,) = [found for found in line.state.factory.lines if found.name == "tickets"]
    line.apply(replace(factory(TUNED), lines=(replace(tickets, trigger=Trigger(quality_milli=800)),)))
    line.tell(ev.LineObserved, "tickets", (), (), (("another", 0, 90), (release, 30, 2)))
    assert len(line.state.runs) == 1
    line.tell(ev.LineObserved, "tickets", (), (), ((release, 3, 40),))
    assert len(line.state.runs) == 2
    (newest,) = [run for run in line.state.runs.values() if run.id != "run-1"]
    assert newest.by.startswith("trigger (3 of 43 opinions")
