"""Types that a factory file adds to the catalogue: read as the shipped ones, refused at their place."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from tokenmill.control.plan import diff
from tokenmill.control.state import EMPTY
from tokenmill.domain.catalogue import NO_TYPES, SERVER_LOSS
from tokenmill.domain.codec import digest_of, from_plain, to_plain
from tokenmill.domain.errors import SpecError
from tokenmill.domain.factory import Factory
from tokenmill.spec.catalogue import catalogue
from tokenmill.spec.catalogue.architecture import architecture_of
from tokenmill.spec.factory_file import load, load_types

OURS = """
kind: catalogue
name: ours
accelerators:
  b400:
    name: NVIDIA B400
    architecture: blackwell
    source: offer of 2026-11
    memory: 400 GB
    memory_rate: 12 TB/s
    bf16: 3 PFLOP/s
    fp8: {is: 6 PFLOP/s, source: a slide}
    link: 1800 GB/s
    idle_power: 180 W
    max_power: 1500 W
    hour_price: 3 USD/h
  h100-sxm: {source: our contract, hour_price: 1.7 USD/h}
nodes:
  b400-server:
    {source: offer, accelerator: b400, accelerators: 8, cpu: 128 cores, memory: 3072 GB, nvlink: node,
     nics: 8 x connectx-8, overhead_power: 3 kW}
racks:
  b400-x4: {source: offer, node: b400-server, nodes: 4, max_power: 66 kW}
switches:
  sw128: {source: offer, name: Switch, ports: 128, rate: 1600 Gbit/s, fabric: infiniband}
models:
  our-8b:
    {source: ours, layers: 32, hidden: 4096, heads: 32, kv_heads: 8, head_dim: 128, intermediate: 14336,
     vocabulary: 128256}
"""
REST = """
---
kind: factory
name: f
---
kind: site
name: here
racks: {type: b400-x4, count: 2}
fabrics: [{name: compute, type: infiniband, bandwidth: 1600Gbit/s, switch: sw128}]
---
kind: model
name: chat
source: ./weights/our-8b
---
kind: deployment
name: chat
model: chat
engine: vllm
replicas: 2
resources: {accelerator: b400, accelerators: 2}
engine_args: [--quantization, fp8]
"""


def written(folder: Path, text: str, name: str = "factory.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(SpecError) as error:
        load_types([written(folder, text)], {})
    return [str(one) for one in error.value.problems]


def test_a_factory_stands_on_types_of_its_own(tmp_path: Path) -> None:
    factory = load([written(tmp_path, OURS + REST)], {})
    assert len(factory.nodes) == 8
    node = factory.nodes[0]
    follows_w = SERVER_LOSS * 8 * (1500 - 180)  # of the overhead at full load
    assert node.idle_mw == round((3000 - follows_w + 8 * 180) * 1000)
    assert node.power_mw == (3000 + 8 * 1500) * 1000
    assert {gpu.kind for gpu in node.accelerators} == {"b400"}
    assert node.accelerators[0].memory_bytes == 400 * 10**9
    known = catalogue(factory.types)
    assert known.source("b400", "tflops_fp8") == "a slide"
    assert known.source("b400", "memory_gb") == "offer of 2026-11"
    assert "b400" not in catalogue().accelerators  # the shipped one is as it was


def test_a_shipped_type_takes_a_price_and_keeps_what_it_is(tmp_path: Path) -> None:
    known = catalogue(load_types([written(tmp_path, OURS)], {}))
    mine, shipped = known.accelerators["h100-sxm"], catalogue().accelerators["h100-sxm"]
    assert mine.hour_micros == 1_700_000
    same = dataclasses.replace(mine, hour_micros=shipped.hour_micros, source=shipped.source)
    assert same == shipped
    assert known.source("h100-sxm", "memory_gb_s") == shipped.source
    assert known.source("h100-sxm", "hour_micros") == "our contract"


def test_they_travel_with_the_factory_and_are_part_of_its_digest(tmp_path: Path) -> None:
    factory = load([written(tmp_path, OURS + REST)], {})
    assert from_plain(json.loads(json.dumps(to_plain(factory))), Factory) == factory
    dearer = load(
        [written(tmp_path, (OURS + REST).replace("hour_price: 3 USD/h", "hour_price: 4 USD/h"))], {}
    )
    assert digest_of(dearer) != digest_of(factory)
    added = {(one.kind, one.what, one.name) for one in diff(EMPTY, factory).changes}
    assert ("add", "catalogue", "b400") in added
    state = dataclasses.replace(EMPTY, factory=factory, version=1)
    [change] = diff(state, dearer).changes
    assert (change.what, change.name) == ("catalogue", "b400")
    assert "hour: 3.00 USD -> 4.00 USD" in change.detail


@pytest.mark.parametrize(
    ("before", "after", "where", "said"),
    [
        ("memory: 400 GB", "memory: 400", "9:13", "number with GB"),
        ("memory: 400 GB", "memory: nan GB", "9:13", "number with GB"),
        ("memory: 400 GB", "memory: 400.5 GB", "9:13", "a whole number with GB"),
        ("memory_rate: 12 TB/s", "memory_rate: 12 TFLOP/s", "10:18", "number with GB/s or TB/s"),
        ("    memory_rate: 12 TB/s\n", "", "6:5", "is missing"),
        ("memory_rate: 12", "memory_speed: 12", "10:19", "Did you mean memory_rate?"),
        ("    source: offer of 2026-11\n", "", "5:3", "has no source"),
        ("idle_power: 180 W", "idle_power: 1.8 kW", "14:17", "below 1500 W"),
        ("accelerator: b400,", "accelerator: b40,", "20:34", "Did you mean b400?"),
        ("8 x connectx-8", "connectx-8", "21:12", "such as 4 x connectx-6"),
        ("max_power: 66 kW", "max_power: 66 W", "23:68", "at least 48 kW"),
        ("node: b400-server, nodes", "node: b400-sever, nodes", "23:34", "Did you mean b400-server?"),
        ("fabric: infiniband", "fabric: token ring", "25:79", "infiniband or ethernet"),
        ("kv_heads: 8", "kv_heads: 7", "28:67", "do not divide 32 heads"),
        ("layers: 32", "layers: many", "28:28", "a whole number"),
        ("hour_price: 1.7 USD/h}", "memory: 90 GB}", "17:44", "Give the type a name of its own."),
        ("  b400:", "  B 400:", "6:5", "is not allowed"),
    ],
)
def test_what_cannot_be_is_refused_at_its_place(
    tmp_path: Path, before: str, after: str, where: str, said: str
) -> None:
    assert before in OURS
    text = "\n".join(problems(tmp_path, OURS.replace(before, after, 1)))
    assert said in text
    assert f"factory.yaml:{where}: catalogue ours: " in text


def test_a_type_is_stated_once(tmp_path: Path) -> None:
    twice = OURS + "---" + OURS.replace("name: ours", "name: theirs", 1)
    assert any("is already in the catalogue ours" in one for one in problems(tmp_path, twice))
    assert any("kind: catalogue" in one for one in problems(tmp_path, "kind: factory\nname: f\n"))
    assert load_types([written(tmp_path, OURS)], {}) != NO_TYPES


@pytest.mark.parametrize(
    ("config", "shipped"),
    [
        ("DeepseekV3Config", "deepseek-v3"),
        ("GptOssConfig", "gpt-oss-120b"),
        ("MixtralConfig", "mixtral-8x7b"),
    ],
)
def test_a_config_as_transformers_writes_it_gives_the_shipped_row(
    tmp_path: Path, config: str, shipped: str
) -> None:
    transformers = pytest.importorskip("transformers")
    getattr(transformers, config)().save_pretrained(tmp_path / "model")
    text = "kind: catalogue\nname: ours\nmodels:\n  same: {config: model/config.json}\n"
    [made] = load_types([written(tmp_path, text)], {}).models
    wanted = catalogue().models[shipped]
    assert made.source == "config.json: model/config.json"
    assert dataclasses.replace(made, id=wanted.id, source=wanted.source) == wanted


def test_what_a_config_leaves_open_is_asked_for(tmp_path: Path) -> None:
    plain = {
        "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128,
        "vocab_size": 100, "sliding_window": 128, "tie_word_embeddings": True,
    }  # fmt: skip
    assert architecture_of(plain, {})[1] == [
        "has a sliding_window and no layer_types; state full_attention_layers beside it"
    ]
    row, none = architecture_of(plain, {"full_attention_layers": 2})
    assert not none
    assert (row["head_dim"], row["kv_heads"], row["tied"], row["full_attention_layers"]) == (16, 4, True, 2)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 100}))
    body = yaml.safe_dump({"kind": "catalogue", "name": "c", "models": {"m": {"config": "config.json"}}})
    text = "\n".join(problems(tmp_path, body))
    assert "m.layers" in text
    assert "is missing" in text
    for wrong in ("absent.json", "[1]", "{"):
        (tmp_path / "bad.json").write_text(wrong)
        name = wrong if wrong == "absent.json" else "bad.json"
        assert f"{name}" in "\n".join(problems(tmp_path, body.replace("config.json", name)))


def test_latent_attention_without_a_compressed_query_has_a_full_one() -> None:
    model = dataclasses.replace(catalogue().models["deepseek-v3"], latent_query=0)
    query = model.hidden * model.heads * (model.head_dim + model.rope_dim)
    wide = model.heads * model.head_dim
    cache = model.hidden * (model.latent + model.rope_dim) + 2 * model.latent * wide
    assert model.attention_parameters == query + cache + wide * model.hidden
