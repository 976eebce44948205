"""What a rehearsed day draws beside serving: each node its own figures, also where jobs train."""

from dataclasses import replace

import pytest

from tokenmill.control.nodes import all_joined
from tokenmill.control.state import EMPTY, State
from tokenmill.domain.factory import Accelerator, Node
from tokenmill.domain.work import Lease
from tokenmill.spec.catalogue import catalogue
from tokenmill.twin.day_power import TRAINING_SHARE, Power, training_w, unheld_w

KINDS = catalogue().accelerators
POWER = Power(KINDS)


def node(name: str, kind: str, count: int, idle_w: int = 0, most_w: int = 0) -> Node:
    gpus = tuple(Accelerator(f"{name}/{i}", kind, 1) for i in range(count))
    return Node(name, "s", accelerators=gpus, idle_mw=idle_w * 1000, power_mw=most_w * 1000)


OLD, NEW = node("old", "a100-sxm-80gb", 8, 2480, 5200), node("new", "b200-sxm", 8, 3820, 10_700)
SIZED = node("sized", "l40s", 4)


def state(*leases: tuple[str, Node, int]) -> State:
    made = {
        f"l{at}": Lease(
            f"l{at}", where.id, owner, "t", "p", 0, 0, tuple(g.id for g in where.accelerators[:n]), 0
        )
        for at, (owner, where, n) in enumerate(leases)
    }
    up = all_joined(EMPTY, (OLD, NEW, SIZED, Node("cpu", "s")), 0)
    return replace(up, leases=type(up.leases)(made))


def test_jobs_draw_what_the_nodes_that_they_hold_do() -> None:
    on_new = training_w(POWER, state(("job", NEW, 8)), ["job"])
    on_old = training_w(POWER, state(("job", OLD, 8)), ["job"])
    assert on_new == pytest.approx(3820 + TRAINING_SHARE * (10_700 - 3820))
    assert on_old == pytest.approx(2480 + TRAINING_SHARE * (5200 - 2480))
    both = state(("job", NEW, 4), ("job", OLD, 2), ("other", OLD, 6))
    assert training_w(POWER, both, ["job"]) == pytest.approx(on_new / 2 + on_old / 4)
    assert training_w(POWER, both, []) == 0


def test_what_says_no_power_draws_what_its_accelerators_do() -> None:
    kind = KINDS["l40s"]
    wanted = 4 * (kind.idle_w + TRAINING_SHARE * (kind.max_w - kind.idle_w))
    assert training_w(POWER, state(("job", SIZED, 4)), ["job"]) == pytest.approx(wanted)
    assert unheld_w(POWER, state()) == 2480 + 3820 + 4 * kind.idle_w  # a node without any counts as nothing
    assert unheld_w(POWER, state(("job", NEW, 2))) == pytest.approx(2480 + 0.75 * 3820 + 4 * kind.idle_w)
