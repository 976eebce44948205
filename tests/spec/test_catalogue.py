"""The catalogue: every value with its unit and source, sparse never made from dense."""

import pytest

from tokenmill.domain.errors import DataError
from tokenmill.spec.catalogue import AcceleratorType, catalogue
from tokenmill.spec.catalogue.load import table


def test_it_holds_what_factories_are_built_of():
    known = catalogue()
    wanted = {"h200-nvl", "l40s", "rtxpro6000-server", "mi300x", "mi325x", "mi355x"}
    wanted |= {"a100-sxm-80gb", "h100-sxm", "h200-sxm", "b200-sxm", "b200-gb200", "b300-sxm", "b300-gb300"}
    assert wanted <= set(known.accelerators)
    rack = known.racks["gb300-nvl72"]
    assert (rack.nodes, rack.switch_trays, rack.max_w) == (18, 9, 142_000)
    assert known.nodes[rack.node].accelerators == 4
    assert known.switches["q3400-ra"].ports == 144
    for node in known.nodes.values():
        assert not node.accelerator or node.accelerator in known.accelerators
        for count_of, table_of in ((node.nics, known.nics), (node.dpus, known.dpus)):
            assert not count_of or count_of.split(" x ")[1] in table_of
    assert all(rack.node in known.nodes for rack in known.racks.values())


def test_sparse_is_not_twice_the_dense_rate():
    ultra = catalogue().accelerators["b300-gb300"]
    assert (ultra.tflops_fp4, ultra.sparse_fp4) == (15000, 20000)
    assert ultra.tops_int8 < 200 < catalogue().accelerators["b200-sxm"].tops_int8


def test_dense_rates_are_no_sparse_ones_and_halve_with_the_bits():
    """A sparse figure taken for a dense one is twice too high: the commonest slip of such a table."""
    for kind in catalogue().accelerators.values():
        for dense, sparse in ((kind.tflops_bf16, kind.sparse_bf16), (kind.tflops_fp8, kind.sparse_fp8)):
            assert not sparse or sparse == pytest.approx(2 * dense, rel=0.015), kind.id
        assert not kind.tflops_fp8 or kind.tflops_fp8 == pytest.approx(2 * kind.tflops_bf16, rel=0.015), (
            kind.id
        )
        assert 1500 > kind.max_w > 4 * kind.idle_w, kind.id
        assert any(node.accelerator == kind.id for node in catalogue().nodes.values()), kind.id


def test_each_value_has_a_source():
    assert catalogue().source("b300-gb300", "memory_gb").startswith("usable")
    assert "data sheet" in catalogue().source("b300-gb300", "tflops_fp4")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"memory": "80 GB"}, "no source"),
        ({"source": "x", "memory": 80}, "number with GB"),
        ({"source": "x", "memory": "80 TB/s"}, "number with GB"),
        ({"source": "x", "memory": "nan GB"}, "number with GB"),
        ({"source": "x", "memory": "0 GB"}, "number with GB"),
        ({"source": "x", "memory": {"is": "80 GB"}}, "is: VALUE UNIT, source: WHERE"),
        ({"source": "x", "speed": "much"}, "speed"),
    ],
)
def test_a_value_that_cannot_be_is_refused(written, said):
    with pytest.raises(DataError) as error:
        table({"new": {"name": "New", **written}}, AcceleratorType, "accelerators", {})
    assert "accelerators.yaml: new" in str(error.value)
    assert said in str(error.value)
