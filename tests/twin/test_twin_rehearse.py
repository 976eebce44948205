"""The real control core in virtual time: convergence, faults, runs, forecasts and their repeatability."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tokenmill.control.state import EMPTY
from tokenmill.domain import events
from tokenmill.domain.work import ReplicaStatus, RunStatus
from tokenmill.spec.factory_file import load, template
from tokenmill.twin import report
from tokenmill.twin.configuration import configuration
from tokenmill.twin.engine_tables import tables
from tokenmill.twin.faults import Fault
from tokenmill.twin.profiles import profile
from tokenmill.twin.rehearse import DEFAULT_MACHINE, _modelled, rehearse
from tokenmill.twin.traffic import Arrival
from tokenmill.twin.world import World

RACKS = """
kind: factory
name: racks
---
{kind: site, name: west, pue: 1.2, racks: {type: hgx-h200-x4, count: 2}}
---
{kind: price, model: "*", kwh: 0.12 USD, accelerator_hour: 2 USD}
---
{kind: model, name: l8, source: "hf://meta-llama/Llama-3.1-8B-Instruct"}
---
{kind: deployment, name: big, model: l8, engine: vllm, replicas: 6, slots: 32, resources: {accelerators: 4}}
"""


def factory_of(text):
    return load([Path("f.yaml")], {}, lambda path: text)


def started(text):
    factory = factory_of(text)
    world = World(EMPTY)
    world.send(events.ControllerStarted(0, 1))
    for node in factory.nodes or (DEFAULT_MACHINE,):
        world.send(events.NodeJoined(0, node))
    world.send(events.SpecApplied(0, 0, factory))
    world.run(60_000_000)
    return world


def ready(world, deployment):
    return [
        r
        for r in world.state.replicas.values()
        if r.deployment == deployment and r.status is ReplicaStatus.READY
    ]


def test_the_template_converges_and_a_run_releases():
    world = started(template())
    assert len(ready(world, "smol")) == len(ready(world, "embed")) == 1
    assert ready(world, "desk") == []
    world.send(events.RunSubmitted(world.now_us, "run-000001", "desk"))
    world.run(world.now_us + 3_600_000_000)
    assert world.state.runs["run-000001"].status is RunStatus.SUCCEEDED, world.state.runs["run-000001"]
    assert len(ready(world, "desk")) == 1
    assert len(world.releases) == len(set(world.releases)) == 3


def test_what_serves_already_is_ready_now():
    world = started(RACKS)
    world.run(world.now_us + 600_000_000)
    forecast = rehearse(world.state, factory_of(RACKS), now_us=world.now_us)
    assert (forecast.converge_us, [row.ready_us for row in forecast.deployments]) == (0, [0])
    assert "The change is ready now." in report.to_text(forecast)


def test_a_changed_engine_is_ready_when_its_replacement_is():
    world = started(template())
    serves = rehearse(world.state, factory_of(template()), now_us=world.now_us)
    changed = rehearse(
        world.state, factory_of(template().replace("slots: 4", "slots: 1")), now_us=world.now_us
    )
    assert (serves.converged, serves.converge_us) == (changed.converged, 0) == (True, 0)
    assert changed.converge_us == changed.deployments[0].ready_us == 2_800_000
    assert changed.deployments[0].tpot_p99_ms.value < serves.deployments[0].tpot_p99_ms.value / 2


@pytest.mark.parametrize("busy", [False, True])
def test_what_is_rehearsed_is_what_happens_where_old_replicas_make_room(busy):
    world = started(template())
    if busy:
        world.send(events.RunSubmitted(world.now_us, "run-000001", "desk"))
        world.run(world.now_us + 5_000_000)
    wanted = factory_of(template().replace("slots: 4", "slots: 2\nreplicas: 5"))
    forecast = rehearse(world.state, wanted, now_us=world.now_us)
    world.send(events.SpecApplied(world.now_us, world.state.version, wanted))
    world.run(world.now_us + 30_000_000)
    now = {d.name: len(ready(world, d.name)) for d in wanted.deployments}
    assert {row.name: row.replicas_ready for row in forecast.deployments} == now
    assert (forecast.converged, sum(now.values())) == (False, 8)
    said = "Jobs that run now are taken to run on, unless they have to give way."
    assert (said in forecast.assumptions) is busy


def test_a_worse_candidate_is_rejected():
    world = started(template())
    world.passes = False
    world.send(events.RunSubmitted(world.now_us, "run-000001", "desk"))
    world.run(world.now_us + 3_600_000_000)
    assert world.state.runs["run-000001"].status is RunStatus.REJECTED
    assert ready(world, "desk") == []


def test_replicas_come_back_after_a_node_is_lost():
    world = started(RACKS)
    assert len(ready(world, "big")) == 6
    victim = min(r.node for r in ready(world, "big"))
    world.inject([Fault(1_000_000, victim, "gpu", 600_000_000)], world.now_us)
    world.run(world.now_us + 300_000_000)
    assert len(ready(world, "big")) == 6
    assert victim not in {r.node for r in ready(world, "big")}
    held = [a for lease in world.state.leases.values() for a in lease.accelerators]
    assert len(held) == len(set(held)) == 32  # what the lost node held is not given away
    world.run(world.now_us + 400_000_000)
    assert len(ready(world, "big")) == 6
    held = [a for lease in world.state.leases.values() for a in lease.accelerators]
    assert len(held) == len(set(held)) == 24


def test_a_forecast_states_tokens_power_and_cost_without_false_intervals():
    forecast = rehearse(EMPTY, factory_of(RACKS))
    [row] = forecast.deployments
    assert forecast.converged
    assert forecast.pending == ()
    assert (row.replicas_ready, row.replicas_wanted, row.refused) == (6, 6, 0)
    assert row.tokens_per_s.value > 1000
    assert row.tokens_per_s.error is None
    assert row.tokens_per_s.basis == "uncalibrated"
    assert row.ttft_p50_ms.value <= row.ttft_p99_ms.value
    assert row.output_tokens == pytest.approx(row.tokens_per_s.value * forecast.duration_s, rel=1e-6)
    assert forecast.energy_j == pytest.approx(forecast.watts.value * forecast.duration_s, rel=1e-4)
    assert 8 * (2500 + 600) * 1.2 < forecast.watts.value < 8 * 10_200 * 1.2
    assert forecast.cost_micros_per_mtok.value > 0


def test_a_deployment_is_forecast_alike_alone_and_beside_a_slower_one():
    """Each probe has its own length; over that of the slowest a fast deployment looked half as fast."""
    alone = rehearse(EMPTY, factory_of(RACKS))
    text = RACKS + (
        '---\n{kind: model, name: l70, source: "hf://meta-llama/Llama-3.1-70B-Instruct"}\n'
        "---\n{kind: deployment, name: slow, model: l70, engine: vllm, slots: 32, "
        "resources: {accelerators: 8}}\n"
    )
    beside = rehearse(EMPTY, factory_of(text))
    [fast], both = alone.deployments, {row.name: row for row in beside.deployments}
    assert both["slow"].tokens_per_s.value < 0.3 * fast.tokens_per_s.value
    assert both["big"].tokens_per_s.value == pytest.approx(fast.tokens_per_s.value, rel=0.05)
    assert both["big"].utilisation == pytest.approx(fast.utilisation, rel=0.05)


def test_twice_the_replicas_make_twice_the_tokens_of_a_probe():
    """Its last answers end when no more come, and do not count."""
    three = rehearse(EMPTY, factory_of(RACKS.replace("replicas: 6", "replicas: 3"))).deployments[0]
    twelve = rehearse(EMPTY, factory_of(RACKS.replace("replicas: 6", "replicas: 12"))).deployments[0]
    assert twelve.tokens_per_s.value == pytest.approx(4 * three.tokens_per_s.value, rel=0.05)


def test_the_measured_small_model_is_forecast_with_its_error():
    forecast = rehearse(EMPTY, factory_of(template()))
    smol, desk, embed = forecast.deployments
    assert smol.tokens_per_s.basis == "cpu-embedded, 16 measured rows"
    assert 0 < smol.tokens_per_s.error < 0.35
    assert smol.tokens_per_s.low < smol.tokens_per_s.value < smol.tokens_per_s.high
    assert (desk.tokens_per_s, desk.note) == (None, "its line has not released yet")
    assert embed.tokens_per_s is None
    assert forecast.watts.error is None


def test_what_does_not_fit_is_pending_with_its_reason():
    text = RACKS.replace("replicas: 6", "replicas: 17").replace(
        "hgx-h200-x4, count: 2", "hgx-h200-x4, count: 3"
    )
    crowded = factory_of(text)
    one_rack = factory_of(RACKS)
    world = World(EMPTY)
    world.send(events.ControllerStarted(0, 1))
    for node in one_rack.nodes:
        world.send(events.NodeJoined(0, node))
    forecast = rehearse(world.state, crowded)
    assert forecast.converged  # the third rack joins with the change
    small = rehearse(
        EMPTY, factory_of(template()), machine=type(DEFAULT_MACHINE)("tiny", "here", cpu_millis=300)
    )
    assert not small.converged
    assert len(small.pending) == 1
    assert "of 1 replicas are ready" in small.pending[0]


def test_stated_traffic_is_served_whole():
    traffic = [Arrival(i * 10_000, "big", 100 + i % 7, 20) for i in range(500)]
    [row] = rehearse(EMPTY, factory_of(RACKS), traffic).deployments
    assert row.requests == 500
    assert row.output_tokens == 500 * 20
    assert row.input_tokens == sum(a.input_tokens for a in traffic)


def test_the_state_is_not_touched():
    world = started(template())
    before = world.state
    rehearse(world.state, factory_of(template().replace("slots: 4", "slots: 2")), now_us=world.now_us)
    assert world.state is before


def test_same_seed_same_digest_under_any_hash_seed(tmp_path):
    (tmp_path / "f.yaml").write_text(RACKS)
    code = (
        "import sys; from pathlib import Path; from tokenmill.control.state import EMPTY;"
        "from tokenmill.spec.factory_file import load; from tokenmill.twin.rehearse import rehearse;"
        "print(rehearse(EMPTY, load([Path(sys.argv[1])], {}), seed=3).digest)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "f.yaml")],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(found) == 1
    factory = factory_of(RACKS)
    assert rehearse(EMPTY, factory, seed=3).digest in found.pop()
    assert rehearse(EMPTY, factory, seed=4).digest != rehearse(EMPTY, factory, seed=3).digest


def test_accelerators_cost_what_their_type_does():
    """The same factory costs twice as much an hour where only its type's price is twice the other."""
    plain = rehearse(EMPTY, factory_of(RACKS)).cost_micros_per_mtok.value
    hours = "{h200-sxm: 4 USD, '*': 9 USD}"
    typed = rehearse(
        EMPTY, factory_of(RACKS.replace("accelerator_hour: 2 USD", f"accelerator_hour: {hours}"))
    )
    rest = rehearse(EMPTY, factory_of(RACKS.replace("accelerator_hour: 2 USD", "accelerator_hour: 0 USD")))
    energy = rest.cost_micros_per_mtok.value
    assert typed.cost_micros_per_mtok.value - energy == pytest.approx(2 * (plain - energy), rel=1e-6)


def test_a_cap_below_what_is_held_is_said_before_it_is_applied():
    """Six replicas run; a cap of 30 kW then ends none of them, and admits no more."""
    state = started(RACKS).state
    lower = factory_of(RACKS.replace("pue: 1.2", "pue: 1.2, power_cap: 30 kW"))
    said = [line for line in rehearse(state, lower).assumptions if "its cap is 30 kW" in line]
    assert len(said) == 1
    assert said[0].startswith("site west may draw ")
    roomy = factory_of(RACKS.replace("pue: 1.2", "pue: 1.2, power_cap: 300 kW"))
    assert not any("its cap is" in line for line in rehearse(state, roomy).assumptions)


def test_reports_agree():
    forecast = rehearse(EMPTY, factory_of(RACKS))
    plain = report.to_json(forecast)
    assert json.loads(json.dumps(plain))["digest"] == forecast.digest
    text, page = report.to_text(forecast), report.to_html(forecast)
    assert "big" in text
    assert "uncalibrated" in text
    assert "<svg" in page
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_weights_have_the_precision_that_the_engine_is_told():
    def forecast(arguments):
        return rehearse(EMPTY, factory_of(RACKS.replace("slots: 32", f"slots: 32, engine_args: {arguments}")))

    wide, narrow = forecast("[--dtype, bfloat16]"), forecast("[--quantization, fp8]")
    assert narrow.deployments[0].tpot_p50_ms.value < 0.9 * wide.deployments[0].tpot_p50_ms.value
    unsaid = rehearse(EMPTY, factory_of(RACKS))
    assert unsaid.deployments == wide.deployments
    assert any("Weights in bf16, which no engine_args say: big" in line for line in unsaid.assumptions)
    assert not any("Weights in" in line for line in (*wide.assumptions, *narrow.assumptions))


@pytest.mark.parametrize(
    ("arguments", "layout"),
    [
        ('[--dtype, bfloat16, --tensor-parallel-size, "2", --pipeline-parallel-size, "2"]', "TP2 PP2"),
        ('[--dtype, bfloat16, --tensor-parallel-size, "2", --data-parallel-size, "2"]', "TP2 DP2"),
        ("[--dtype, bfloat16, --tensor-parallel-size=4]", "TP4"),
        ("[--quantization, mxfp4, -tp=2, -dp=2, --enable-expert-parallel]", "TP2 DP2 EP4"),
        ("[--quantization, mxfp4, --tp=4, --dp=4, --ep-size=4, --enable-dp-attention]", "DP4 EP4"),
        ("[--quantization, mxfp4, --tp=4, --dp=2, --ep=1, --enable-dp-attention]", "TP2 DP2"),
        ("[--quantization, mxfp4, --dp=2, --ep-size=4, --enable-dp-attention]", "TP2 DP2 EP4"),
    ],
)
def test_a_change_is_forecast_with_the_layout_that_its_engine_is_told(arguments, layout):
    """Held to the step tables of a rehearsal under traffic: one iteration takes the same in both."""
    text = RACKS.replace("slots: 32", f"slots: 32, engine_args: {arguments}")
    text = text.replace("Llama-3.1-8B-Instruct", "gpt-oss-120b") if "mxfp4" in arguments else text
    factory = factory_of(text)
    asked, _ = configuration(factory, factory.deployments[0])
    assert asked is not None
    assert str(asked.layout) == layout
    [table, *_] = tables(asked, profile())
    found = _modelled(started(text).state, factory.deployments[0], {}, profile())
    assert found.what == str(asked)
    for decode in (1, 8, 32):
        expected = table.seconds[decode] + 1000 * decode * table.cached_token_s
        assert found.model.iteration_s(decode, 0, 1000 * decode) == pytest.approx(expected, rel=1e-9)
    assert any(f"as {layout} on" in line for line in rehearse(EMPTY, factory).assumptions)


def test_a_layout_that_is_not_that_of_its_accelerators_is_not_forecast():
    wrong = RACKS.replace("slots: 32", 'slots: 32, engine_args: [--tensor-parallel-size, "8"]')
    row = rehearse(EMPTY, factory_of(wrong)).deployments[0]
    assert row.tokens_per_s is None
    assert row.note == "not modelled: big: TP8 takes 8 accelerators, a replica has 4"


def test_a_model_that_does_not_fit_its_accelerators_is_not_forecast():
    large = RACKS.replace("Llama-3.1-8B", "Llama-3.1-405B")
    row = rehearse(EMPTY, factory_of(large)).deployments[0]
    assert row.tokens_per_s is None
    assert row.note == "not modelled: llama-3.1-405b in bf16 as TP4 does not fit NVIDIA H200 SXM"
