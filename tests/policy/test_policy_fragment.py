"""Which node one worker takes, by what it would leave to nobody."""

from __future__ import annotations

from tokenmill.domain.factory import Accelerator, Resources
from tokenmill.domain.value import replace
from tokenmill.policy.fleet import Room, fleet_of
from tokenmill.policy.fragment import KINDS_MOST, growth, most_asked
from tokenmill.policy.place import Demand, place

GB = 1 << 30
BIG = (8, 64_000, 64 * GB)
ONE = (1, 8_000, 8 * GB)


def room(name: str, free: int, cpu_millis: int, domain: str = "", leases: int = 1) -> Room:
    gpus = tuple(Accelerator(f"{name}/{i}", "h200", 141 * GB) for i in range(free))
    return Room(name, "s", "", domain, "EU", cpu_millis, 512 * GB, gpus, leases)


def test_what_grows_is_what_no_kind_can_use_any_more() -> None:
    kinds = ((ONE, 9), (BIG, 1))
    whole = room("a", 8, 128_000)
    assert growth(kinds, whole, Resources(8_000, GB, 1)) == 7, (
        "seven are left to the nine, not to the big one"
    )
    assert growth(kinds, whole, Resources(121_000, GB, 0)) == 80, "no CPU is left for any of them"
    broken = room("b", 3, 32_000)
    assert growth(kinds, broken, Resources(8_000, GB, 1)) == -1, "what was of no use to the big one is used"
    assert growth(kinds, room("c", 0, 9_000), Resources(9_000, GB, 0)) == 0


def test_cpu_work_spares_the_cpu_beside_free_accelerators() -> None:
    """Best fit by CPU alone would take the last cores beside four free accelerators."""
    rooms = [room("a", 4, 40_000), room("b", 0, 90_000)]
    fleet = fleet_of(rooms)
    demand = Demand(Resources(36_000, GB, 1))
    found = place(fleet, demand, None, ((ONE, 1),))
    assert found is not None
    assert found.nodes == ("a",), "nothing else holds it"
    rooms.append(room("c", 5, 80_000))
    found = place(fleet_of(rooms), demand)
    assert found is not None
    assert found.nodes == ("a",)
    found = place(fleet_of(rooms), demand, None, ((ONE, 1),))
    assert found is not None
    assert found.nodes == ("c",), "three accelerators of a would be of no use to anybody"


def test_no_whole_domain_is_broken_for_it() -> None:
    rooms = [room("a", 4, 40_000), room("b", 8, 128_000, "nv", 0), room("c", 8, 128_000, "nv", 0)]
    found = place(fleet_of(rooms), Demand(Resources(36_000, GB, 1)), None, ((ONE, 1),))
    assert found is not None
    assert found.nodes == ("a",)


def test_the_largest_machine_stays_for_what_only_it_holds() -> None:
    """The large node is fuller, so best fit would take it; a job of days there would keep out whole ones."""
    small = replace(room("b", 4, 60_000), size=(8, 96_000, 384 * GB))
    large = replace(room("a", 3, 60_000), size=(8, 128_000, 768 * GB))
    for kinds in ((), ((ONE, 9), (BIG, 1))):
        found = place(fleet_of([small, large]), Demand(Resources(8_000, GB, 1)), None, kinds)
        assert found is not None
        assert found.nodes == ("b",)


def test_of_two_places_that_strand_nothing_the_smaller_is_taken() -> None:
    """The smallest would leave accelerators that nobody could use; the largest is not needed either."""
    rooms = [
        replace(room("a", 2, 10_000), size=(2, 32_000, 128 * GB)),
        replace(room("b", 3, 60_000), size=(8, 128_000, 768 * GB)),
        replace(room("c", 5, 60_000), size=(8, 96_000, 384 * GB)),
    ]
    found = place(fleet_of(rooms), Demand(Resources(8_000, GB, 1)), None, ((ONE, 9), (BIG, 1)))
    assert found is not None
    assert found.nodes == ("c",)


def test_the_most_frequent_kinds_count() -> None:
    asked = {(1, n, 0): n for n in range(100)}
    assert len(most_asked(asked)) == KINDS_MOST
    assert most_asked({BIG: 1, ONE: 1, (2, 0, 0): 5}) == (((2, 0, 0), 5), (ONE, 1), (BIG, 1))
