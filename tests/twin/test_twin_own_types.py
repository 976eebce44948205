"""Every question of the planner answered for types that only a factory file knows."""

from pathlib import Path

import pytest

from tokenmill.control.state import EMPTY
from tokenmill.domain.factory import Factory
from tokenmill.spec.factory_file import load
from tokenmill.twin.configuration import configuration
from tokenmill.twin.engine_tables import basis, tables
from tokenmill.twin.fabric_site import site_plans
from tokenmill.twin.profiles import profile
from tokenmill.twin.rehearse import rehearse
from tokenmill.twin.size import Answer, answers
from tokenmill.twin.size_question import question_of, racks_of

TEXT = """
kind: catalogue
name: ours
accelerators:
  b200-twin:
    {name: A twin of B200, architecture: blackwell, source: ours, memory: 180 GB, memory_rate: 7.7 TB/s,
     bf16: 2250 TFLOP/s, fp8: 4500 TFLOP/s, fp4: 9000 TFLOP/s, link: 900 GB/s, idle_power: 140 W,
     max_power: 1000 W, hour_price: 1.6 USD/h}
nodes:
  twin-server:
    {source: ours, accelerator: b200-twin, accelerators: 8, cpu: 112 cores, memory: 2048 GB, nvlink: node,
     overhead_power: 2700 W}
racks:
  twin-x4: {source: ours, node: twin-server, nodes: 4, max_power: 60 kW}
switches:
  sw8: {source: ours, name: Small, ports: 8, rate: 400 Gbit/s, fabric: infiniband}
models:
  our-70b:
    {source: ours, layers: 80, hidden: 8192, heads: 64, kv_heads: 8, head_dim: 128, intermediate: 28672,
     vocabulary: 128256}
---
kind: factory
name: f
---
kind: site
name: here
racks: {type: twin-x4}
fabrics: [{name: compute, type: infiniband, bandwidth: 400Gbit/s, switch: sw8, rails: 8}]
---
kind: model
name: chat
source: ./weights/our-70b
---
kind: deployment
name: chat
model: chat
engine: vllm
replicas: 2
resources: {accelerator: b200-twin, accelerators: 2}
engine_args: [--quantization, fp8]
"""


@pytest.fixture
def factory(tmp_path: Path) -> Factory:
    (tmp_path / "factory.yaml").write_text(TEXT)
    return load([tmp_path / "factory.yaml"], {})


def test_a_rack_of_the_same_figures_is_sized_as_the_shipped_one_that_the_fit_left_out(
    factory: Factory,
) -> None:
    """Hardware and model are copies of shipped ones, so that only what was measured tells them apart."""

    def asked(model: str, rack: str) -> Answer:
        text = "ttft_p99<3s,tpot_p99<90ms"
        question = question_of(model, "fp8", 1000, 500, "1M tok/s", text, "vllm", factory.types)
        return answers(question, racks_of([rack], "vllm", factory.types), profile())[0]

    ours, known = asked("our-70b", "twin-x4"), asked("llama-3.1-70b", "hgx-b200-x4")
    assert not ours.measured
    assert ours.error > 0.3
    assert ours.rack == "twin-x4"
    # The offsets of the accelerator and of the model are missing, not those of engine and architecture.
    assert ours.tokens_s_per_accelerator == pytest.approx(known.tokens_s_per_accelerator, rel=0.5)
    assert ours.most_kw == ours.racks * 60
    assert ours.hour_micros == ours.racks * 32 * 1_600_000


def test_a_deployment_on_them_is_forecast_and_draws_what_its_nodes_do(factory: Factory) -> None:
    found, missing = configuration(factory, factory.deployments[0])
    assert not missing
    assert found is not None
    assert (found.model.id, found.accelerator.id, found.overhead_w) == ("our-70b", "b200-twin", 2 * 2700 / 8)
    assert len(tables(found, profile())) == 4
    assert "none of vllm on b200-twin or our-70b" in basis(found, profile()).text
    row = rehearse(EMPTY, factory).deployments[0]
    assert row.replicas_ready == 2
    assert row.tokens_per_s is not None
    assert row.tokens_per_s.value > 0


def test_fabrics_are_planned_of_their_switches(factory: Factory) -> None:
    [plan] = site_plans(factory)[0].fabrics
    assert plan.switch.id == "sw8"
