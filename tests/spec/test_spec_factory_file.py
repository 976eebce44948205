"""Good factory files: what they become."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.domain.codec import from_plain, to_plain
from tokenmill.domain.errors import SpecError
from tokenmill.domain.factory import Factory, Objective, Quota
from tokenmill.domain.stations import station_params
from tokenmill.spec.documents import KINDS
from tokenmill.spec.factory_file import load, template
from tokenmill.spec.schema import json_schema
from tokenmill.spec.source import plain_scalar

EXAMPLE = Path(__file__).parents[2] / "examples" / "first" / "factory.yaml"


def made(text, **environ):
    return load([Path("f.yaml")], environ, lambda path: text)


def test_template_serves_the_small_model_and_has_a_line():
    factory = made(template())
    assert [t.name for t in factory.tenants] == ["acme", "globex"]
    assert [(d.name, d.model, d.line) for d in factory.deployments] == [
        ("smol", "smollm2", ""),
        ("desk", "", "desk"),
        ("embed", "minilm", ""),
    ]
    [line] = factory.lines
    assert [s.kind for s in line.stations] == ["intake", "curate", "tune", "evaluate", "gate", "pack"]
    assert all(station_params(s.kind, s.params) for s in line.stations)
    assert line.stations[0].params["path"] == "data/tickets.jsonl"
    assert factory.nodes == ()
    cpu = sum(d.resources.cpu_millis * d.replicas for d in factory.deployments)
    assert cpu + max(s.resources.cpu_millis for s in line.stations) <= 2000
    assert factory.tenants[0].quota == Quota(1200, 500_000, 50_000_000, 32)
    assert {p.currency for p in factory.prices} == {"USD"}


def test_example_is_a_factory():
    assert load([EXAMPLE], {}).name == "first"
    assert load([EXAMPLE.parent], {}) == load([EXAMPLE], {})


def test_factory_survives_the_journal():
    factory = made(template())
    assert from_plain(to_plain(factory), Factory) == factory


def test_racks_are_expanded_by_the_catalogue():
    factory = made(
        "kind: factory\nname: f\n---\n{kind: site, name: s, racks: {type: gb300-nvl72, count: 96}}\n"
    )
    assert len(factory.nodes) == 96 * 18
    assert sum(len(node.accelerators) for node in factory.nodes) == 6912
    assert len({a.id for node in factory.nodes for a in node.accelerators}) == 6912
    assert len({node.domain for node in factory.nodes}) == 96


def test_stated_nodes_and_fabrics():
    factory = made(
        "kind: factory\nname: f\n---\nkind: site\nname: s\npower_cap: 2 MW\npue: 1.15\nnodes:\n"
        "- {name: gpu, type: hgx-h200, count: 2, rack: r1}\n"
        "- {name: cpu, cpu: 64, memory: 512GB, idle_power: 150W, max_power: 0.6kW}\n"
        "fabrics: [{name: ib, type: infiniband, bandwidth: 400Gbit/s, latency: 2us}]\n"
    )
    assert [n.id for n in factory.nodes] == ["s/gpu-001", "s/gpu-002", "s/cpu"]
    assert factory.nodes[0].rack == "s/r1"
    assert (factory.nodes[2].idle_mw, factory.nodes[2].power_mw) == (150_000, 600_000)
    assert (factory.sites[0].power_cap_mw, factory.sites[0].pue_milli) == (2 * 10**9, 1150)
    assert (factory.fabrics[0].gbit_s, factory.fabrics[0].latency_ns) == (400, 2000)


def test_environment_fills_in_values_and_quotes_keep_text():
    text = "kind: factory\nname: ${NAME:-none}\n---\n"
    text += "kind: tenant\nname: t\nshare: ${SHARE}\nprojects: ['$${X}']\n"
    with pytest.raises(SpecError):
        made(text, SHARE="3")
    factory = made(text.replace("'$${X}'", "'${P}'"), SHARE="3", P="p", NAME="n")
    assert (factory.name, factory.tenants[0].share, factory.tenants[0].projects[0].name) == ("n", 3, "p")


def test_secret_reference_is_kept_as_it_is():
    peer = "{kind: peer, name: p, url: 'https://h', jurisdiction: de, key: secret://env/K, aliases: [m]}"
    text = f"kind: factory\nname: f\n---\n{peer}\n"
    assert made(text, K="s3cret").peers[0].key_ref == "secret://env/K"
    assert "s3cret" not in str(made(text, K="s3cret"))


def test_extending_merges_by_field():
    files = {
        "base/f.yaml": "kind: factory\nname: base\n---\nkind: tenant\nname: t\nshare: 2\n"
        "quota: {tokens_per_day: 5, concurrent_requests: 1}\n",
        "f.yaml": "kind: factory\nextends: base/f.yaml\nname: own\n---\nkind: tenant\nname: t\n"
        "quota: {tokens_per_day: 7}\n---\nkind: tenant\nname: u\n",
    }
    factory = load([Path("f.yaml")], {}, lambda path: files[str(path)])
    assert factory.name == "own"
    assert [
        (t.name, t.share, t.quota.tokens_per_day, t.quota.concurrent_requests) for t in factory.tenants
    ] == [
        ("t", 2, 7, 1),
        ("u", 1, None, None),
    ]


def test_long_line_has_the_stations_that_are_written():
    factory = made(
        "kind: factory\nname: f\n---\n{kind: tenant, name: t, projects: [p]}\n---\n"
        "{kind: model, name: m, source: ./m.gguf}\n---\n"
        "kind: line\nname: l\ntenant: t\nproject: p\nbase: m\nresources: {cpu: 2}\nstations:\n"
        "- {name: read, kind: intake, params: {path: d.jsonl}}\n"
        "- {name: clean, kind: curate, needs: [read], resources: {memory: 1GB}, timeout: 5m}\n"
    )
    clean = factory.lines[0].stations[1]
    assert (clean.needs, clean.timeout_us) == (("read",), 300_000_000)
    assert (clean.resources.cpu_millis, clean.resources.memory_bytes) == (2000, 10**9)


def test_replica_ranges_and_engine_defaults():
    factory = made(
        "kind: factory\nname: f\n---\n{kind: model, name: m, source: 'hf://a/b'}\n---\n"
        "{kind: deployment, name: a, model: m, replicas: 1..4}\n---\n"
        "{kind: deployment, name: b, model: m, engine: vllm, replicas: 2}\n---\n"
        "{kind: deployment, name: c, model: m, engine: openai, url: 'http://h:1'}\n"
    )
    a, b, c = factory.deployments
    assert (a.replicas, a.max_replicas, a.resources.cpu_millis) == (1, 4, 250)
    assert (b.replicas, b.max_replicas, b.resources.accelerators) == (2, 2, 1)
    assert c.resources.cpu_millis == 0


def test_an_objective_is_read_with_its_units():
    factory = made(
        "kind: factory\nname: f\n---\n{kind: model, name: m, source: 'hf://a/b'}\n---\n"
        "{kind: deployment, name: a, model: m, slo: {ttft: 2s, tpot: 80ms, attainment: 99%}}\n---\n"
        "{kind: deployment, name: b, model: m, slo: {ttft: 500ms}}\n"
    )
    assert [d.slo for d in factory.deployments] == [
        Objective(2_000_000, 80_000, 990),
        Objective(500_000, 0, 950),
    ]


def test_schema_names_every_kind():
    schema = json_schema()
    assert len(schema["oneOf"]) == len(KINDS)
    for kind in KINDS:
        assert schema["$defs"][f"{kind}_document"]["properties"]["kind"] == {"const": kind, "type": "string"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1e3", 1000.0),
        ("~", None),
        ("-7", -7),
        ("true", True),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    assert plain_scalar(text) == value


@given(st.text(alphabet="abk: \n-[]{}'\"#&*!|>%@`,?\t0.$", max_size=200))
def test_any_text_is_read_or_explained(text):
    try:
        made(text)
    except SpecError as error:
        for problem in error.problems:
            if not problem.where.startswith("f.yaml:"):
                pytest.fail(f"no place: {problem}")


def test_example_and_template_are_one():
    assert EXAMPLE.read_text(encoding="utf-8") == template()
