"""Engine, power, fabric, fault and traffic models: what they must hold exactly."""

import gzip
import math
import os
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.domain.catalogue import SERVER_LOSS
from tokenmill.domain.errors import DataError, NotFoundError
from tokenmill.domain.factory import Accelerator, Fabric, Node
from tokenmill.domain.value import replace as changed
from tokenmill.spec.catalogue import catalogue
from tokenmill.twin import calibrate, traffic
from tokenmill.twin.engine_model import LinearModel, RooflineModel, shape_of
from tokenmill.twin.fabric_model import FabricModel
from tokenmill.twin.faults import FaultRate, schedule
from tokenmill.twin.iteration import Efficiency, Layout, work_of
from tokenmill.twin.power_model import EnergyMeter, PowerModel, site_w

DATA = Path(os.environ.get("TOKENMILL_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


def test_models_have_the_published_parameter_counts():
    billions = {
        "llama-3.1-8b": 8.03, "llama-3.1-70b": 70.6, "llama-3.1-405b": 405.9, "smollm2-135m": 0.1345,
        "deepseek-v3": 671.0, "gpt-oss-120b": 116.8, "qwen3-235b-a22b": 235.1, "mixtral-8x7b": 46.7,
    }  # fmt: skip
    models = catalogue().models
    for name, count in billions.items():
        assert models[name].parameters / 1e9 == pytest.approx(count, rel=0.01)
    assert models["deepseek-v3"].active_parameters / 1e9 == pytest.approx(37, rel=0.02)
    assert shape_of("hf://meta-llama/Llama-3.1-70B-Instruct", catalogue()) is models["llama-3.1-70b"]
    assert shape_of("hf://someone/unheard-of", catalogue()) is None


def roofline(model, kind, layout=None, **eff):
    known = catalogue()
    work = work_of(known.models[model], known.accelerators[kind], layout or Layout(), "bf16")
    return RooflineModel(work, Efficiency(**eff))


def test_decoding_is_bound_by_memory_and_prefill_by_compute():
    h100, shape = catalogue().accelerators["h100-sxm"], catalogue().models["llama-3.1-8b"]
    model = roofline("llama-3.1-8b", "h100-sxm", host_s=0, layer_s=0, memory=0.95, compute=0.61)
    weights_s = shape.active_parameters * 2 / (h100.memory_gb_s * 1e9)
    assert weights_s < model.iteration_s(1, 0, 0) < 1.3 * weights_s
    compute_s = 2 * shape.active_parameters * 8192 / (h100.tflops_bf16 * 1e12 * 0.61)
    assert model.iteration_s(0, 8192, 0) == pytest.approx(compute_s, rel=0.25)
    assert model.iteration_s(0, 0, 0) == 0


@given(st.integers(1, 256), st.integers(0, 4096), st.integers(0, 10**6), st.booleans())
def test_more_work_never_takes_less_time(decode, prefill, cached, moe):
    name, layout = ("deepseek-r1", Layout(data=8, expert=8)) if moe else ("qwen3-8b", Layout(tensor=2))
    model = roofline(name, "h200-sxm", layout)
    least = model.iteration_s(decode, prefill, cached)
    assert least <= model.iteration_s(decode + 1, prefill, cached)
    assert least <= model.iteration_s(decode, prefill + 1, cached)
    assert least <= model.iteration_s(decode, prefill, cached + 1)


def test_calibration_finds_the_model_that_made_the_rows():
    truth = LinearModel(0.005, 0.004, 2e-6, 0.003, 4e-7)
    draw = random.Random(3)
    rows = []
    for _ in range(60):
        decode, prefill = draw.choice([(draw.randint(1, 8), 0), (0, draw.randint(1, 512))])
        cached, context = draw.randint(0, 4000) if decode else 0, draw.randint(0, 1000)
        seconds = truth.iteration_s(decode, prefill, cached, context)
        rows.append(calibrate.MeasuredRow(decode, prefill, cached, context, seconds))
    found = calibrate.fit("made", rows)
    assert found.error_at(1.0) < 1e-6
    assert found.model.per_decode_s == pytest.approx(0.004)
    noisy = [
        calibrate.MeasuredRow(r.decode, r.prefill, r.cached, r.context, r.seconds * draw.uniform(0.9, 1.1))
        for r in rows
    ]
    assert 0.02 < calibrate.fit("noisy", noisy).error_at(0.9) < 0.2


@pytest.mark.parametrize(
    ("text", "where"),
    [("a,b\n", "x.csv:1"), ("# c\ndecode,prefill,cached,context,seconds\n1,0,0,0,-1\n", "x.csv:3")],
)
def test_broken_measured_rows_name_their_line(text, where):
    with pytest.raises(DataError) as raised:
        calibrate.read_rows(text.splitlines(), "x.csv")
    assert raised.value.problem.where == where


def test_too_few_rows_are_refused():
    with pytest.raises(DataError):
        calibrate.fit("none", [])


@given(st.lists(st.tuples(st.integers(0, 10**7), st.floats(0, 1e5)), max_size=40))
def test_energy_is_the_integral_of_power(changes):
    meter, joules, watts = EnergyMeter(), 0.0, 0.0
    at = 0
    for gap_us, level in changes:
        meter.change(at + gap_us, "node", level)
        joules += watts * gap_us / 1e6
        at, watts = at + gap_us, level
    meter.advance(at + 5_000_000)
    assert meter.joules == pytest.approx(joules + watts * 5, rel=1e-12)


def test_power_goes_from_idle_to_maximum():
    kind = catalogue().accelerators["h200-sxm"]
    node = Node("n", "s", accelerators=tuple(Accelerator(f"g{i}", "h200-sxm", 1) for i in range(8)))
    model = PowerModel(catalogue())
    span_w = kind.max_w - kind.idle_w
    assert model.node_w(node, 0.0) == pytest.approx(2500 - SERVER_LOSS * 8 * span_w + 8 * kind.idle_w)
    half = 2500 - SERVER_LOSS * 4 * span_w + 4 * kind.max_w + 4 * kind.idle_w
    assert model.node_w(node, 1.0, 4) == pytest.approx(half)
    assert model.node_w(node, 1.0) == 2500 + 8 * kind.max_w
    stated = changed(node, idle_mw=2_000_000, power_mw=8_000_000)
    assert [model.node_w(stated, part) for part in (0.0, 0.5, 1.0)] == [2000, 5000, 8000]
    assert model.node_w(stated, 1.0, 2) == 2000 + 6000 / 4
    assert model.node_w(Node("c", "s", cpu_millis=2000), 0.5) == 5 + 10
    assert site_w({"a": 100.0, "b": 50.0}, 1200) == 180


def test_fabric_of_the_fastest_kind_is_used():
    a, b = Node("a", "s", domain="d"), Node("b", "s", domain="d")
    far, other = Node("c", "s", domain="e"), Node("d", "t")
    model = FabricModel(
        (
            Fabric("nv", "nvlink", "s", 7200),
            Fabric("ib", "infiniband", "s", 800, 2000),
            Fabric("w", "wan", "s", 10, 10**7),
        )
    )
    assert model.between(a, b).name == "nv"
    assert model.transfer_s(10**9, a, far) == pytest.approx(0.01 + 2e-6)
    assert model.transfer_s(10**9, a, far, sharing=2) == pytest.approx(0.02 + 2e-6)
    assert model.between(a, other).name == "w"
    assert model.all_reduce_s(8 * 10**8, [a, far]) == pytest.approx(2 * (0.004 + 2e-6))
    with pytest.raises(NotFoundError):
        FabricModel(()).between(a, b)


def test_fault_rate_is_met_and_components_do_not_move_one_another():
    rates = (FaultRate("gpu", 0.5, 600),)
    names = [f"n{i}" for i in range(200)]
    found = schedule(names, rates, 30 * 86_400_000_000, seed=5)
    assert len(found) == pytest.approx(0.5 * 200 * 30, rel=0.06)
    assert list(found) == sorted(found)
    fewer = schedule(names[:3], rates, 30 * 86_400_000_000, seed=5)
    assert [f for f in found if f.component in names[:3]] == list(fewer)
    assert schedule(names, rates, 30 * 86_400_000_000, seed=6) != found


@pytest.mark.parametrize("burstiness", [0.0, 1.0, 4.0])
def test_generated_traffic_has_the_stated_rate_and_lengths(burstiness):
    lengths = traffic.Lengths(200, 1.0), traffic.Lengths(50)
    made = traffic.generate([traffic.Stream("a", 50, 400, *lengths, burstiness=burstiness)], seed=1)
    assert len(made) == pytest.approx(20_000, rel=0.04)
    assert math.fsum(a.input_tokens for a in made) / len(made) == pytest.approx(200, rel=0.05)
    assert {a.output_tokens for a in made} == {50}
    gaps = [(b.at_us - a.at_us) / 1e6 for a, b in pairwise(made)]
    mean = math.fsum(gaps) / len(gaps)
    variation = math.fsum((g - mean) ** 2 for g in gaps) / len(gaps) / mean**2
    assert variation == pytest.approx(burstiness, rel=0.12, abs=1e-4)


def test_traces_are_read():
    azure = ["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:15:46.6805900,374,44",
             "2023-11-17 00:00:00.0,1,1"]  # fmt: skip
    found = list(traffic.read_azure(azure, "a.csv", "x"))
    assert found[0] == traffic.Arrival(0, "x", 374, 44)
    assert found[1].at_us == pytest.approx(20_653_319_410, abs=1000)
    moon = ['{"timestamp": 27482, "input_length": 695, "output_length": 52, "hash_ids": [46, 47]}']
    assert list(traffic.read_mooncake(moon, "m", "x")) == [traffic.Arrival(0, "x", 695, 52)]


@pytest.mark.parametrize(
    ("reader", "lines", "error"),
    [
        (traffic.read_azure, ["a,b"], "t:1: the header is not that of an Azure trace. Expected TIMESTAMP"),
        (
            traffic.read_azure,
            ["arrival_s,input_tokens,output_tokens", "1,2"],
            "t:2: the row has 2 fields. Expected 3: arrival_s,input_tokens,output_tokens.",
        ),
        (traffic.read_mooncake, ["", "{"], "t:2: the line cannot be read"),
        (
            traffic.read_mooncake,
            ['{"timestamp":-1,"input_length":1,"output_length":1}'],
            "t:1: timestamp is -1.0. Expected zero or more.",
        ),
    ],
)
def test_broken_trace_names_its_line(reader, lines, error):
    with pytest.raises(DataError) as raised:
        list(reader(lines, "t", "x"))
    assert str(raised.value).startswith(error)


def test_published_traces_are_read_whole():
    if not (DATA / "llm_azure2023").is_dir():
        pytest.skip("the shared data is not here; TOKENMILL_SHARED_DATA names it")
    with gzip.open(DATA / "llm_azure2023" / "azure2023_conv.csv.gz", "rt") as file:
        conversation = list(traffic.read_azure(file, "conv", "x"))
    with gzip.open(DATA / "llm_mooncake" / "conversation.jsonl.gz", "rt") as file:
        moon = list(traffic.read_mooncake(file, "moon", "x"))
    assert len(conversation) > 5000
    assert len(moon) > 3000
    assert all(a.at_us <= b.at_us for a, b in pairwise(conversation))
