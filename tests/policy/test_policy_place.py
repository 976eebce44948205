from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.domain.factory import Accelerator, Resources, Tenant
from tokenmill.domain.value import replace
from tokenmill.policy.fleet import Room, fleet_of
from tokenmill.policy.lacks import explain, would_hold
from tokenmill.policy.place import Demand, Placement
from tokenmill.policy.place import place as place_in
from tokenmill.policy.share import Head, Holding, Shares, dominant_ppm, doublings, pick

GB = 1 << 30


def place(rooms: list[Room], demand: Demand) -> Placement | None:
    return place_in(fleet_of(rooms), demand)


def room(
    name: str, free: int = 8, rack: str = "", domain: str = "", site: str = "s", law: str = "EU"
) -> Room:
    gpus = tuple(Accelerator(f"{name}/{i}", "h200", 141 * GB) for i in range(free))
    return Room(name, site, rack, domain, law, 64_000, 512 * GB, gpus)


def test_what_is_lacking_is_said_in_units_with_what_would_fit() -> None:
    rooms = [room("a", 2), replace(room("b", 0), memory_bytes=(512 << 30) - 1)]
    asked = Demand(Resources(96_500, 512 << 30, 8, "h200"))
    assert {node: reason for node, _, reason in explain(rooms, asked)} == {
        "a": "has 64 cores free, 96.5 cores asked; has 2 h200 free, 8 asked",
        "b": "has 64 cores free, 96.5 cores asked; has 549755813887 of memory free, 549755813888 asked; "
        "has no h200 free, 8 asked",
    }
    assert would_hold(rooms, asked).startswith("Ask for at most 64 cores, 512 GiB and 2 h200 for each worker")
    abroad = Demand(Resources(1), 1, ("de", "fr"))
    assert would_hold(rooms, abroad) == "Add a node in de or fr, where the tenant's data may be."


def test_one_worker_takes_the_fullest_node_that_fits() -> None:
    found = place([room("a", 8), room("b", 3), room("c", 1)], Demand(Resources(accelerators=2)))
    assert found is not None
    assert found.nodes == ("b",)
    assert found.accelerators == (("b/0", "b/1"),)


def test_gang_is_whole_or_not_at_all() -> None:
    rooms = [room("a", 4), room("b", 3)]
    assert place(rooms, Demand(Resources(accelerators=1), workers=8)) is None
    found = place(rooms, Demand(Resources(accelerators=1), workers=7))
    assert found is not None
    assert len({gpu for worker in found.accelerators for gpu in worker}) == 7


def test_gang_stays_close() -> None:
    rooms = [
        room("a", 8, "r1", "nv1"),
        room("b", 8, "r2", "nv2"),
        room("c", 8, "r2", "nv2"),
        room("d", 8, "r1", "nv3"),
    ]
    found = place(rooms, Demand(Resources(accelerators=8), workers=2))
    assert found is not None
    assert set(found.nodes) == {"b", "c"}
    bare = [room("a", 8, "r1"), room("b", 8, "r2"), room("c", 8, "r1")]
    racked = place(bare, Demand(Resources(accelerators=8), workers=2))
    assert racked is not None
    assert set(racked.nodes) == {"a", "c"}


def test_residency_and_kind_are_hard() -> None:
    demand = Demand(Resources(accelerators=1, accelerator_kind="b200"), 1, ("US",))
    assert place([room("a"), room("b", law="US")], demand) is None
    reasons = explain([room("b", law="US"), room("a")], demand)
    assert [name for name, ok, _ in reasons if not ok] == ["a", "b"]
    assert "is in EU" in reasons[0][2]
    assert "no b200 free" in reasons[1][2]


def even_layout(rooms: list[Room], per_worker: int, workers: int) -> bool:
    """Whether some number of blocks takes the gang in slices that differ by at most one, by trying all."""
    sizes = sorted(
        (sum(len(r.accelerators) // per_worker for r in b.rooms) for b in fleet_of(rooms).blocks.values()),
        reverse=True,
    )
    for count in range(1, min(len(sizes), workers) + 1):
        small, more = divmod(workers, count)
        wanted = [small + 1] * more + [small] * (count - more)
        if all(size >= want for size, want in zip(sizes, wanted, strict=False)):
            return True
    return False


@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.sampled_from("xyz"), st.sampled_from("pq")), min_size=1, max_size=8
    ),
    st.integers(1, 4),
    st.integers(1, 12),
)
def test_placements_are_real_and_none_is_missed(
    nodes: list[tuple[int, str, str]], per_worker: int, workers: int
) -> None:
    rooms = [room(f"n{i}", free, rack, domain) for i, (free, rack, domain) in enumerate(nodes)]
    demand = Demand(Resources(accelerators=per_worker), workers)
    found = place(rooms, demand)
    fits = sum(len(r.accelerators) // per_worker for r in rooms) >= workers
    if found is None:
        assert not fits or not even_layout(rooms, per_worker, workers)
    else:
        assert fits
    if found is not None:
        taken = [gpu for worker in found.accelerators for gpu in worker]
        assert len(taken) == len(set(taken)) == per_worker * workers
        assert all(
            gpu.startswith(f"{n}/") for n, w in zip(found.nodes, found.accelerators, strict=True) for gpu in w
        )
    assert place(list(reversed(rooms)), demand) == found


def test_share_is_priority_then_dominant_share_then_age_then_id() -> None:
    total = Holding(100, 100, 10)
    held = {"a": Holding(10, 0, 5), "b": Holding(40, 0, 0)}
    even = Shares(held, {}, total, {})
    assert dominant_ppm(held["a"], total) == 500_000
    a, b = Head(0, "a", 1, "j1"), Head(0, "b", 2, "j2")
    assert pick([a, b], even, 9) is b
    assert pick([a, b], Shares(held, {}, total, {"a": Tenant("a", share=2)}), 9) is a
    assert pick([b, Head(5, "a", 9, "j9")], even, 9).id == "j9"
    assert pick([Head(0, "c", 2, "j4"), Head(0, "d", 2, "j3")], even, 9).id == "j3"


def test_of_one_tenant_who_waits_longest_for_its_own_length_goes_first() -> None:
    view, minute_us, day_us = Shares({}, {}, Holding(100, 100, 10), {}), 60_000_000, 86_400_000_000
    long, short = Head(0, "a", 0, "j1", day_us), Head(0, "a", 5, "j2", minute_us)
    assert pick([long, short], view, 9 * minute_us) is long, "nobody has waited for long: as they came"
    assert pick([long, short], view, 11 * minute_us) is short, (
        "ten minutes are long for a minute, not for a day"
    )
    assert [doublings(short, 5 + n * minute_us) for n in (9, 10, 19, 20, 40, 80)] == [0, 1, 1, 2, 3, 4]
    assert [doublings(long, n * day_us // 2) for n in (1, 2, 3, 4, 8)] == [0, 1, 1, 2, 3]
    late = Head(0, "a", 3 * day_us - 11 * minute_us, "j0", minute_us)
    assert pick([long, late], view, 3 * day_us) is long, (
        "a job of a day moves up too, each time its wait doubles"
    )
    weeks = Head(0, "a", 0, "j3", 30 * day_us)
    assert doublings(weeks, day_us) == doublings(long, day_us) == 1, "no job counts as longer than a day"
    assert doublings(Head(0, "a", 9, "j4"), 5) == 0, "the clock was set back"
    poor = Head(0, "b", 7, "j5", 30 * day_us)
    rich = Shares({"a": Holding(50, 0, 0)}, {}, view.total, {})
    assert pick([long, short, poor], rich, 11 * minute_us) is poor, "between tenants the shares decide"
