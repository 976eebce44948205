"""Who is slow: by the median of the gang, only where the same work should take the same time."""

from tokenmill.domain.factory import Accelerator, Node
from tokenmill.policy.slow import SLOW_MILLI, comparable, out_most, slowest

NODES = ("n0", "n0", "n1", "n2")


def test_the_slowest_worker_of_a_node_counts():
    assert slowest(NODES, 100, [(0, 130), (1, 150), (3, 120)]) == {"n0": 1500}
    assert slowest(NODES, 1000, [(2, SLOW_MILLI)]) == {"n1": SLOW_MILLI}
    assert slowest(NODES, 100, []) == {}


def test_nonsense_and_a_single_node_say_nothing():
    assert slowest(NODES, 0, [(2, 500)]) == {}
    assert slowest(NODES, 100, [(9, 500), (-1, 500)]) == {}
    assert slowest(("n0", "n0"), 100, [(1, 500)]) == {}


def test_only_gpus_of_one_kind_are_compared():
    old, new = (Node(kind, "here", accelerators=(Accelerator("a", kind, 0),)) for kind in ("h100", "b300"))
    assert comparable([new, new], 1)
    assert not comparable([old, new], 1)
    assert comparable([old, new], 0)


def test_few_may_be_out_at_a_time():
    assert [out_most(count) for count in (2, 39, 40, 1728)] == [1, 1, 2, 86]
