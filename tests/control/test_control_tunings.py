from __future__ import annotations

from dataclasses import replace

import pytest
from control_mill import SMALL, Mill, factory
from test_control_runs import GOOD, result

from tokenmill.control.core import check
from tokenmill.domain import events as ev
from tokenmill.domain.effects import StartJob, StopReplica
from tokenmill.domain.errors import ConflictError, NotFoundError, RefusedError
from tokenmill.domain.factory import Deployment
from tokenmill.domain.work import RunStatus, Tuning

NAME = "ft:m:p::abc"


def tuning(name: str = "ftjob-1", tenant: str = "a") -> Tuning:
    line = replace(factory().lines[0], name=f"ft/{name}", tenant=tenant)
    own = Deployment(NAME, line=line.name, resources=SMALL, tenants=(tenant,))
    return Tuning(name, line, own, 1)


def made(mill: Mill) -> None:
    mill.join(cpu=16_000)
    mill.apply(factory())
    mill.bring()
    mill.tell(ev.TuningRequested, tuning(), "run-1")
    while starts := mill.of(StartJob):
        params = starts[0].spec.params
        assert NAME not in {entry.name for entry in mill.state.table.aliases}
        mill.finish(starts[0], result(params["kind"], params["champion"], GOOD))


def test_a_tenants_own_model_is_named_with_its_first_release_and_only_for_it(mill: Mill) -> None:
    made(mill)
    assert mill.state.runs["run-1"].status is RunStatus.SUCCEEDED
    mill.up_all()
    entry = mill.entry(NAME)
    assert entry.tenants == ("a",)
    assert entry.targets[0][1] == 1000
    mill.apply(factory())
    assert mill.entry(NAME).targets, "a new factory file leaves it alone"
    mill.tell(ev.TuningDropped, "ftjob-1")
    assert len(mill.of(StopReplica)) == 1
    assert NAME not in {entry.name for entry in mill.state.table.aliases}
    with pytest.raises(ConflictError):
        check(mill.state, ev.TuningDropped(mill.now, "ftjob-1"))


def test_what_cannot_be_is_refused(mill: Mill) -> None:
    mill.join(cpu=1000)
    mill.apply(factory())
    now = mill.now
    mill.tell(ev.TuningRequested, tuning(), "run-0")
    stranger = replace(tuning("ftjob-2"), line=replace(tuning("ftjob-2").line, base="nothing"))
    for event, error in (
        (ev.TuningRequested(now, tuning(), "run-1"), ConflictError),
        (ev.TuningRequested(now, tuning("ftjob-2", "nobody"), "run-1"), NotFoundError),
        (ev.TuningRequested(now, stranger, "run-1"), NotFoundError),
        (ev.TuningDropped(now, "ftjob-9"), NotFoundError),
        (ev.TuningDropped(now, "ftjob-1"), ConflictError),
    ):
        with pytest.raises(error):
            check(mill.state, event)
    for number in range(1, 8):
        mill.tell(ev.TuningRequested, tuning(f"ftjob-x{number}"), f"run-{number}")
    with pytest.raises(RefusedError, match="too many"):
        check(mill.state, ev.TuningRequested(now, tuning("ftjob-3"), "run-9"))
