"""Placement and preemption over NVLink domains: named after what went wrong elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenmill.domain.factory import Accelerator, Resources, Tenant
from tokenmill.domain.work import Usage
from tokenmill.policy.backfill import Ending, foresee
from tokenmill.policy.fleet import Fleet, Room, fleet_of
from tokenmill.policy.idle import largest_gang
from tokenmill.policy.place import Demand, Placement, place
from tokenmill.policy.preempt import Held, Victim, evict, job_cost_us
from tokenmill.policy.share import HALF_LIFE_US, Holding, Shares, borrowed, refusal, used, within_guarantee

TRAY = Resources(1000, 1 << 30, 4)


def tray(rack: int, slot: int, free: int = 4, leases: int = 0) -> Room:
    name = f"r{rack:02d}/n{slot:02d}"
    cards = tuple(Accelerator(f"{name}/{i}", "gb300", 0) for i in range(4))[:free]
    return Room(name, "s", f"r{rack:02d}", f"r{rack:02d}", "EU", 144_000, 900 << 30, cards, leases)


def by_node(rooms: Iterable[Room]) -> dict[str, Room]:
    return {room.node: room for room in rooms}


def racks(count: int, trays: int = 18, most: int = 0) -> Fleet:
    rooms = [tray(rack, slot) for rack in range(count) for slot in range(trays)]
    return fleet_of(rooms, {f"r{rack:02d}": most for rack in range(count)} if most else None)


def by_rack(placement: Placement | None) -> dict[str, int]:
    assert placement is not None
    return dict(Counter(node.split("/")[0] for node in placement.nodes))


def test_slices_are_even_over_the_fewest_domains() -> None:
    for workers in (24, 40, 64, 100, 128):
        sizes = by_rack(place(racks(12), Demand(TRAY, workers))).values()
        assert len(sizes) == -(-workers // 18)
        assert max(sizes) - min(sizes) <= 1
    assert set(by_rack(place(racks(12), Demand(TRAY, 128))).values()) == {16}


def test_two_bad_trays_per_rack() -> None:
    rooms = [tray(rack, slot) for rack in range(10) for slot in range(18) if slot not in (3, 11)]
    for workers in (24, 48, 128):
        sizes = by_rack(place(fleet_of(rooms), Demand(TRAY, workers))).values()
        assert max(sizes) - min(sizes) <= 1
        assert len(sizes) == -(-workers // 16)


def test_a_domain_keeps_its_spares() -> None:
    fleet = racks(2, most=16)
    assert by_rack(place(fleet, Demand(TRAY, 16))) == {"r00": 16}
    assert by_rack(place(fleet, Demand(TRAY, 18))) == {"r00": 9, "r01": 9}
    assert place(fleet, Demand(TRAY, 33)) is None
    assert largest_gang(fleet, Demand(TRAY, 40)) == 32
    full = fleet.with_rooms(by_node(tray(0, slot, 0, 1) for slot in range(16)))
    assert by_rack(place(full, Demand(Resources(accelerators=1)))) == {"r01": 1}


def test_gang_larger_than_any_free_domain_waits_whole() -> None:
    rooms = [
        tray(rack, slot, 4 if slot < 9 else 0, int(slot >= 9)) for rack in range(2) for slot in range(18)
    ]
    lonely = fleet_of(rooms[:18])
    assert place(lonely, Demand(TRAY, 10)) is None
    assert by_rack(place(fleet_of(rooms), Demand(TRAY, 10))) == {"r00": 5, "r01": 5}
    uneven = fleet_of([tray(0, slot) for slot in range(18)] + [tray(1, slot) for slot in range(2)])
    assert place(uneven, Demand(TRAY, 19)) is None, "18 + 1 is no way to cut a gang"


def test_small_and_cpu_work_goes_where_domains_are_broken() -> None:
    fleet = racks(6)
    fleet = fleet.with_rooms(by_node(tray(4, slot, 2, 1) for slot in range(4)))
    assert by_rack(place(fleet, Demand(Resources(1000, 0, 1)))) == {"r04": 1}
    assert by_rack(place(fleet, Demand(Resources(1000, 0, 4)))) == {"r04": 1}
    assert by_rack(place(fleet, Demand(Resources(144_000, 0, 0)))) == {"r04": 1}
    found = by_rack(place(fleet, Demand(Resources(16_000, 0, 0), 64)))
    assert found == {"r04": 64}, "a CPU-only job of 64 nodes breaks no intact rack"


def test_replicas_keep_apart() -> None:
    fleet = racks(2)
    near = Demand(Resources(1000, 0, 1), 1, (), "node", ("r00/n00",))
    assert place(fleet.with_rooms(by_node([tray(0, 0, 3, 1)])), near) == Placement(
        ("r00/n01",), (("r00/n01/0",),)
    )
    far = Demand(Resources(1000, 0, 1), 1, (), "rack", ("r00/n00",))
    assert by_rack(place(fleet.with_rooms(by_node([tray(0, 0, 3, 1)])), far)) == {"r01": 1}


def victim(name: str, trays: list[tuple[int, int]], cost: int) -> Victim:
    held = tuple(Held(tray(r, s).node, 1000, 1 << 30, tray(r, s).accelerators) for r, s in trays)
    return Victim(name, cost, held)


def packed(count: int) -> Fleet:
    return racks(count).with_rooms(by_node(tray(r, s, 0, 1) for r in range(count) for s in range(18)))


def test_smallest_set_of_victims_that_frees_a_domain() -> None:
    fleet = packed(3)
    dear = [victim(f"dear{s}", [(0, s)], 100) for s in range(18)]
    cheap = [victim(f"cheap{s}", [(1, s)], 10) for s in range(18)]
    gang = [victim("gang", [(2, s) for s in range(18)], 150)]
    found = evict(fleet, Demand(TRAY, 16), [*dear, *cheap, *gang])
    assert found is not None
    assert [v.id for v in found.victims] == ["gang"]
    assert by_rack(found.placement) == {"r02": 16}
    found = evict(fleet, Demand(TRAY, 4), [*dear, *cheap, *gang])
    assert found is not None
    assert sorted(v.id for v in found.victims) == [f"cheap{s}" for s in range(4)]


def test_nobody_is_evicted_in_vain() -> None:
    scattered = [victim(f"v{r}{s}", [(r, s)], 1) for r in range(3) for s in range(5)]
    assert evict(packed(3), Demand(TRAY, 6), scattered) is not None, "three racks, two trays each"
    assert evict(packed(1), Demand(TRAY, 6), scattered[:5]) is None
    assert evict(packed(3), Demand(TRAY, 16), scattered) is None
    assert evict(packed(3), Demand(TRAY, 2), []) is None


def test_the_cost_is_what_is_lost_since_the_checkpoint() -> None:
    assert job_cost_us(4, 0, 900, 1000) < job_cost_us(4, 0, 0, 1000)
    assert job_cost_us(8, 0, 0, 1000) == 2 * job_cost_us(4, 0, 0, 1000)


def test_backfill_foresees_the_first_end_that_is_enough() -> None:
    endings = [Ending(100 * (s + 1), f"j{s:02d}", victim("", [(0, s)], 0).held) for s in range(18)]
    found = foresee(packed(1), Demand(TRAY, 5), endings)
    assert found is not None
    assert found[0] == 500
    assert set(found[1].nodes) == {f"r00/n{s:02d}" for s in range(5)}
    assert foresee(packed(1), Demand(TRAY, 19), endings) is None


def test_bounds_of_tenants() -> None:
    tenants = {
        "org": Tenant("org", limit=100),
        "a": Tenant("a", parent="org", guarantee=40),
        "b": Tenant("b", parent="org", reserve=16),
    }
    view = Shares({"a": Holding(0, 0, 60), "b": Holding(0, 0, 10)}, {}, Holding(1, 1, 200), tenants)
    assert "holds 70 of at most 100" in refusal("a", 32, 130, view)
    assert refusal("a", 30, 130, view) == ""
    assert "10 accelerators free, 6 of them reserved" in refusal("a", 8, 10, view)
    assert refusal("b", 8, 10, view) == ""
    assert borrowed("a", view) == 20
    assert not within_guarantee("a", 1, view)
    assert within_guarantee("a", 8, Shares({"a": Holding(0, 0, 30)}, {}, view.total, tenants))


def test_what_was_held_lately_counts_and_fades() -> None:
    day = used(Usage(0, 1), 500_000, 1 + HALF_LIFE_US)
    assert day.integral == 500_000 * HALF_LIFE_US
    later = used(day, 0, 1 + 2 * HALF_LIFE_US)
    assert later.integral == day.integral // 2
    half = used(day, 0, 1 + HALF_LIFE_US * 3 // 2)
    assert later.integral < half.integral < day.integral
