"""Numbers as people read them, and charts that say in words what they draw."""

from __future__ import annotations

import pytest

from tokenmill.console import charts, text
from tokenmill.console.event_text import event_text
from tokenmill.console.problems import body_of, error_of
from tokenmill.console.run_view import eta_us
from tokenmill.domain import events
from tokenmill.domain.errors import GateRejectedError, Problem, RefusedError, SpecError, TokenmillError


@pytest.mark.parametrize(
    ("us", "shown"),
    [
        (0, "0 ms"), (850_000, "850 ms"), (1_240_000, "1.2 s"), (59_000_000, "59 s"),
        (200_000_000, "3 min 20 s"),
        (7_500_000_000, "2 h 05 min"), (360_000_000_000, "4 d 4 h"), (-5, "0 ms"),
    ],
)  # fmt: skip
def test_durations(us: int, shown: str) -> None:
    assert text.duration(us) == shown


def test_other_quantities() -> None:
    assert text.size(0) == "0 B"
    assert text.size(327_155_712) == "312 MiB"
    assert text.size(1_610_612_736) == "1.5 GiB"
    assert text.number(1234) == "1,234"
    assert text.number(0.0123) == "0.0123"
    assert text.number(12_345_678) == "12.3 M"
    assert text.energy(12_300) == "12.3 J"
    assert text.energy(3_600_000_000) == "1.00 kWh"
    assert text.money(1_230_000) == "$1.23"
    assert text.money(42) == "$0.000042"
    assert text.money(5e6, "CHF") == "CHF 5.00"
    assert text.all_money({}) == "–"
    assert text.all_money({"EUR": 1_000_000, "USD": 0}) == "€1.00 + $0.00"
    assert text.percent(873) == "87.3 %"
    assert text.points(-35) == "-3.5"
    assert text.clock(0) == "–"
    assert text.clock(1_700_000_000_000_000) == "2023-11-14T22:13:20Z"
    assert text.mark("nonsense")[0] == "wait"


def test_charts_have_words_and_survive_edges() -> None:
    assert 'aria-label="x &lt;"' in charts.sparkline([], label="x <")
    assert "NaN" not in charts.sparkline([0.0, 0.0], label="x")
    bars = charts.comparison(charts.Comparison(120, 840, 610, 990))
    assert "base 12.0 %, tuned 84.0 %" in bars
    assert "+61.0 to +99.0 points" in bars
    assert "No steps yet" in charts.loss_curve([])
    assert "from 3.000 to 0.500 in 10 steps" in charts.loss_curve([(1, 3.0), (10, 0.5)])
    assert charts.loss_curve([(0, 0.0)])


def test_time_to_go_is_said_only_when_it_is_known() -> None:
    assert eta_us({"at_us": 30, "done": 1, "total": 4}, 10) == 60
    assert (
        eta_us({}, 10)
        == eta_us({"at_us": 30, "done": 0, "total": 4}, 10)
        == eta_us({"at_us": 30, "done": 4, "total": 4}, 1)
        == 0
    )


def test_a_station_knows_its_time_to_go_best() -> None:
    assert eta_us({"at_us": 30, "done": 1, "total": 4, "metrics": {"eta_s": 2.5}}, 10) == 2_500_000


def test_errors_survive_the_wire() -> None:
    problem = Problem("is wrong", "factory.yaml:3", "tenants[0]", "a name", "Rename it.")
    for error in (
        GateRejectedError("no", expected="better", fix="more data", where="x"),
        RefusedError("no", ("first", "second"), fix="wait"),
        SpecError((problem, problem)),
        TokenmillError("plain"),
    ):
        back = error_of(body_of(error))
        assert type(back) is type(error)
        assert str(back) == str(error)
        assert back.exit_code == error.exit_code
    assert type(error_of({"error": {"kind": "from the future", "message": "m"}})) is TokenmillError
    assert type(error_of({})) is TokenmillError


def test_every_event_has_a_sentence() -> None:
    assert (
        event_text(events.ReplicaExited(1, "r-000001", "it was killed"))
        == "Replica r-000001 ended: it was killed"
    )
    assert event_text(events.KeyDisabled(1, "key-1")) == "Key key-1 disabled"
    busy = events.LoadReported(1, "chat", 12, refused_full=3, wait_us=2_100_000, measured=40, attained=31)
    assert event_text(busy) == (
        "Scaling of chat took note: 12 requests in flight, the oldest has waited 2.1 s for its first token, "
        "3 turned away for want of a slot, 31 of 40 answers in time"
    )
    assert event_text(events.LoadReported(1, "chat", 1, asleep=2)) == (
        "Scaling of chat took note: 1 request in flight, 2 turned away while it slept"
    )
    assert event_text(events.RunCancelled(1, "run-000001")) == "Run run-000001 cancelled"
    assert event_text(events.LeaseReleased(1, "lease-000001")) == "Lease lease-000001 released"
    assert event_text(events.JobExited(1, "j-1", 1, 0)) == "Job j-1 finished"
    assert (
        event_text(events.JobExited(1, "j-1", 1, -15, reason="stopped"))
        == "Job j-1 has stopped, as it was told to"
    )
    assert (
        event_text(events.JobExited(1, "j-1", 1, -9, reason="memory"))
        == "Job j-1 failed with code -9: memory"
    )
