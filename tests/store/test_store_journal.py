"""Leader lease and journal: one writer at a time, numbers without gaps, snapshots to start from."""

from __future__ import annotations

import threading

import psycopg
import pytest
from sqlalchemy import delete, update

from tokenmill.domain.errors import ConflictError, DataError, NotLeaderError, StoreError
from tokenmill.domain.events import Event, NodeLost, SpecApplied
from tokenmill.domain.factory import Factory, Tenant
from tokenmill.store import Store, open_store
from tokenmill.store.database import Database
from tokenmill.store.schema import journal, leader, snapshots


def lost(number: int) -> Event:
    return NodeLost(number, f"n{number}", 'said "bye"\n\x00')


def test_the_lease_has_one_holder(store: Store) -> None:
    assert store.leader.acquire("a", 10_000_000, 0) == 1
    with pytest.raises(NotLeaderError, match="'a' leads") as caught:
        store.leader.acquire("b", 10_000_000, 9_000_000)
    assert "1 s from now" in caught.value.problem.expected
    assert store.leader.acquire("b", 10_000_000, 10_000_000) == 2
    with pytest.raises(NotLeaderError, match="epoch 1 is over"):
        store.leader.renew(1, 10_000_001)
    assert store.leader.view().holder == "b"


def test_a_store_is_led_from_its_own_data_directory_only(store: Store) -> None:
    assert store.leader.acquire("one:/mill", 10, 0) == 1, "of a version that knew no ids"
    assert store.leader.acquire("one:/mill", 10, 10, "aa11") == 2
    store.leader.release(2)
    for now_us in (11, 99):
        with pytest.raises(ConflictError, match="belongs to the data directory of one:/mill") as caught:
            store.leader.acquire("two:/other", 10, now_us, "bb22")
        assert "write aa11 into" in caught.value.problem.fix
    assert store.leader.acquire("two:/moved", 10, 100, "aa11") == 4, "moved, or seen from another machine"
    assert store.leader.view().home == "aa11 two:/moved"
    with pytest.raises(NotLeaderError, match="two:/moved"):
        store.leader.acquire("one:/mill", 10, 109, "aa11")


def test_renewing_moves_the_end(store: Store) -> None:
    epoch = store.leader.acquire("a", 10, 0)
    store.leader.renew(epoch, 8)
    with pytest.raises(NotLeaderError):
        store.leader.acquire("b", 10, 17)
    assert store.leader.acquire("b", 10, 18) > epoch


def test_a_holder_takes_over_its_own_lease(store: Store) -> None:
    first = store.leader.acquire("a", 10, 0)
    second = store.leader.acquire("a", 10, 1)
    assert second > first
    with pytest.raises(NotLeaderError):
        store.journal.append([lost(1)], first)


def test_releasing_fences_the_one_who_released(store: Store) -> None:
    epoch = store.leader.acquire("a", 10_000, 0)
    store.leader.release(epoch)
    with pytest.raises(NotLeaderError, match="nobody leads"):
        store.journal.append([lost(1)], epoch)
    later = store.leader.acquire("b", 10_000, 1)
    store.leader.release(epoch)
    store.leader.renew(later, 2)


def test_what_was_decided_is_kept_beside_its_event(store: Store) -> None:
    epoch = store.leader.acquire("a", 10, 0)
    store.journal.append([lost(1)], epoch)
    said = ('job j-1 stops: it said "bye"\n\x00', "job j-2 waits")
    assert store.journal.append([lost(2), lost(3), lost(4)], epoch, [(), said, ()]) == 4
    assert store.journal.decisions(1, 4) == {3: said}
    assert store.journal.decisions(1, 2) == {}
    assert [seq for seq, _ in store.journal.read()] == [1, 2, 3, 4]


def test_two_contend_and_one_wins(url: str) -> None:
    stores = [open_store(url) for _ in range(4)]
    start = threading.Barrier(4)
    won: list[int] = []
    refused: list[str] = []

    def contend(number: int) -> None:
        start.wait()
        try:
            won.append(stores[number].leader.acquire(f"holder-{number}", 1_000_000, 5))
        except NotLeaderError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [1]
    assert len(refused) == 3
    for each in stores:
        each.close()


def test_events_come_back_in_order(store: Store) -> None:
    epoch = store.leader.acquire("a", 10, 0)
    applied = SpecApplied(1, 0, Factory("f", tenants=(Tenant("acme ü 漢"),)))
    assert store.journal.append([lost(1), applied], epoch) == 2
    assert store.journal.append([lost(3)], epoch) == 3
    assert store.journal.append([], epoch) == 3
    assert store.journal.read() == [(1, lost(1)), (2, applied), (3, lost(3))]
    assert store.journal.read(after=1, limit=1) == [(2, applied)]
    assert store.journal.tail(2) == [(2, applied), (3, lost(3))]
    assert list(store.journal.replay(1)) == [(2, applied), (3, lost(3))]


def test_many_events_at_once(store: Store) -> None:
    epoch = store.leader.acquire("a", 10, 0)
    assert store.journal.append([lost(number) for number in range(1, 20_006)], epoch) == 20_005
    assert [seq for seq, _ in store.journal.replay()] == list(range(1, 20_006))
    assert len(store.journal.read()) == 10_000


@pytest.mark.postgres
def test_who_stands_still_within_a_transaction_is_let_go(postgres_url: str) -> None:
    """As a leader that is stopped at the wrong moment: whoever takes over does not wait for it for ever."""
    store, still = open_store(postgres_url), Database(postgres_url, wait_s=0.2)
    epoch = store.leader.acquire("a", 10, 0)

    def stand_still() -> None:
        with still.write() as connection:
            connection.execute(update(leader).values(holder="b"))
            assert store.leader.acquire("a", 10, 1) > epoch

    with pytest.raises(StoreError):
        stand_still()
    assert store.leader.view().holder == "a"
    still.close()
    store.close()


@pytest.mark.postgres
def test_the_server_hangs_up_and_the_store_goes_on(postgres_url: str) -> None:
    store = open_store(postgres_url)
    epoch = store.leader.acquire("a", 10, 0)
    with psycopg.connect(postgres_url, autocommit=True) as other:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        other.execute(f"{others} AND datname = current_database()")
    assert store.journal.append([lost(1)], epoch) == 1
    with psycopg.connect(postgres_url) as other:
        other.execute("LOCK TABLE leader")
        impatient = open_store_quickly(postgres_url)
        with pytest.raises(StoreError, match="is locked"):
            impatient.leader.renew(epoch, 1)
        impatient.close()
    store.close()


def open_store_quickly(url: str) -> Store:
    return Store(Database(url, wait_s=0.05))


def test_an_old_epoch_writes_nothing(store: Store) -> None:
    old = store.leader.acquire("a", 10, 0)
    store.journal.append([lost(1)], old)
    store.leader.acquire("b", 10, 10)
    with pytest.raises(NotLeaderError, match="'b' leads"):
        store.journal.append([lost(2)], old)
    assert store.journal.last_seq() == 1
    assert len(store.journal.read()) == 1


def test_two_leaders_in_turn_leave_no_gap(url: str) -> None:
    """Appends race with a takeover; whatever was acknowledged is there, under one numbering."""
    one, two = open_store(url), open_store(url)
    old = one.leader.acquire("a", 10, 0)
    acknowledged: list[int] = []

    def append_until_fenced() -> None:
        try:
            for number in range(1_000):
                acknowledged.append(one.journal.append([lost(number)], old))
        except NotLeaderError:
            pass

    thread = threading.Thread(target=append_until_fenced)
    thread.start()
    while not acknowledged and thread.is_alive():
        pass
    new = two.leader.acquire("b", 10, 10)
    taken = [two.journal.append([lost(10_000 + number)], new) for number in range(5)]
    thread.join()
    assert [seq for seq, _ in one.journal.read()] == list(range(1, two.journal.last_seq() + 1))
    assert sorted(acknowledged + taken) == [seq for seq, _ in one.journal.read()]
    one.close()
    two.close()


def test_snapshots_keep_two(store: Store) -> None:
    assert store.journal.latest_snapshot() is None
    for seq in (10, 20, 30):
        store.journal.save_snapshot(seq, {"seq": seq, "text": "ü\x00"})
    store.journal.save_snapshot(30, {"ignored": True})
    assert store.journal.latest_snapshot() == (30, {"seq": 30, "text": "ü\x00"})
    with store.database.read() as connection:
        assert [row.seq for row in connection.execute(snapshots.select())] == [20, 30]


def test_a_damaged_snapshot_is_passed_over(store: Store) -> None:
    for seq in (10, 20):
        store.journal.save_snapshot(seq, {"seq": seq})
    with store.database.write() as connection:
        connection.execute(update(snapshots).where(snapshots.c.seq == 20).values(body='{"seq":21}'))
    assert store.journal.latest_snapshot() == (10, {"seq": 10})
    with store.database.write() as connection:
        connection.execute(update(snapshots).values(body="{}"))
    with pytest.raises(StoreError, match="none of 2 snapshots"):
        store.journal.latest_snapshot()


def test_compaction_keeps_what_the_older_snapshot_needs(store: Store) -> None:
    epoch = store.leader.acquire("a", 10, 0)
    store.journal.append([lost(number) for number in range(1, 31)], epoch)
    store.journal.save_snapshot(20, {})
    assert store.journal.compact(keep_events=0) == 0
    store.journal.save_snapshot(25, {})
    assert store.journal.compact(keep_events=15) == 15
    assert store.journal.compact(keep_events=0) == 5
    assert [seq for seq, _ in store.journal.read()] == list(range(21, 31))
    assert [seq for seq, _ in store.journal.replay(20)] == list(range(21, 31))
    store.journal.save_snapshot(29, {})
    store.journal.save_snapshot(30, {})
    assert store.journal.compact(keep_events=0) == 9
    assert store.journal.append([lost(31)], epoch) == 31


def test_a_hole_in_the_journal_stops_the_replay(store: Store) -> None:
    epoch = store.leader.acquire("a", 10, 0)
    store.journal.append([lost(number) for number in range(1, 6)], epoch)
    with store.database.write() as connection:
        connection.execute(delete(journal).where(journal.c.seq == 3))
    with pytest.raises(StoreError, match="no event 3"):
        list(store.journal.replay())
    with store.database.write() as connection:
        connection.execute(delete(journal).where(journal.c.seq > 3))
    with pytest.raises(StoreError, match="no event 4"):
        list(store.journal.replay(3))


def test_an_unknown_event_names_the_way_out(store: Store) -> None:
    epoch = store.leader.acquire("a", 10, 0)
    store.journal.append([lost(1)], epoch)
    with store.database.write() as connection:
        connection.execute(update(journal).values(kind="MoonLanded"))
    with pytest.raises(DataError, match="MoonLanded"):
        store.journal.read()
