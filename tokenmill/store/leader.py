"""The lease that makes one controller the leader. Its epoch fences whatever an earlier one still does.

Each change is one conditional UPDATE, so two controllers that ask at once cannot both win, on either
database. Who holds the lease is decided by the callers' clocks; that only one *writes* is decided by the
epoch alone, which ``journal.append`` checks in its own transaction.

A store belongs to one data directory, where its artifacts, spools and jobs lie: led from another one, engines
would start a second time, and what was served would never be settled.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import and_, or_, select, update

from tokenmill.domain.errors import ConflictError, NotLeaderError
from tokenmill.store.database import Database
from tokenmill.store.schema import leader


@dataclass(frozen=True, slots=True)
class LeaseView:
    """The lease as it stands. ``holder`` is empty when it was released or never taken."""

    epoch: int
    holder: str
    expires_us: int
    home: str = ""  # id and place of the data directory; empty before it was first led


class Leader:
    """The leader lease of one store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def acquire(self, holder: str, ttl_us: int, now_us: int, home: str = "") -> int:
        """Take the lease and return its new epoch, which is greater than every earlier one.

        A ``holder`` takes over its own lease at once: who may call itself so is settled before, by the lock
        on the data directory. Raises ``NotLeaderError``, which names the other holder, while theirs lasts,
        and ``ConflictError`` when the store belongs to another data directory than ``home``, its id.
        """
        free = or_(leader.c.holder.in_(("", holder)), leader.c.expires_us <= now_us)
        own = or_(leader.c.home == "", leader.c.home.startswith(f"{home} ", autoescape=True))
        values = {"holder": holder, "expires_us": now_us + ttl_us, "ttl_us": ttl_us}
        if home:
            values["home"] = f"{home} {holder}"
        change = (
            update(leader)
            .where(and_(leader.c.id == 1, free, own) if home else and_(leader.c.id == 1, free))
            .values(epoch=leader.c.epoch + 1, **values)
            .returning(leader.c.epoch)
        )
        with self._database.write() as connection:
            epoch = connection.execute(change).scalar()
        if epoch is None:
            current = self.view()
            if home and current.home and not current.home.startswith(f"{home} "):
                raise _elsewhere(current.home, self._database.where)
            raise NotLeaderError(
                f"the controller {current.holder!r} leads this factory (epoch {current.epoch})",
                expected=f"its lease to end, {max(0, current.expires_us - now_us) // 1_000_000} s from now",
                fix="Stop that controller, or wait for its lease to run out.",
                where=self._database.where,
            )
        return int(epoch)

    def renew(self, epoch: int, now_us: int) -> None:
        """Make the lease last its full time again. Raises ``NotLeaderError`` when another has taken it."""
        change = update(leader).where(leader.c.id == 1, leader.c.epoch == epoch)
        with self._database.write() as connection:
            done = connection.execute(change.values(expires_us=now_us + leader.c.ttl_us)).rowcount
        if not done:
            raise not_leader(epoch, self.view(), self._database.where)

    def release(self, epoch: int) -> None:
        """Give the lease back; nothing happens when it is not ours any more.

        The epoch moves on, so that a late write of who released it is refused as well.
        """
        change = update(leader).where(leader.c.id == 1, leader.c.epoch == epoch)
        with self._database.write() as connection:
            connection.execute(change.values(holder="", expires_us=0, epoch=leader.c.epoch + 1))

    def view(self) -> LeaseView:
        """Who holds the lease, for people."""
        with self._database.read() as connection:
            row = connection.execute(select(leader)).one()
        return LeaseView(row.epoch, row.holder, row.expires_us, row.home)


def not_leader(epoch: int, current: LeaseView, where: str) -> NotLeaderError:
    """What a controller gets whose epoch has passed."""
    holder = f"{current.holder!r} leads" if current.holder else "nobody leads"
    return NotLeaderError(
        f"this controller's epoch {epoch} is over: {holder} this factory (epoch {current.epoch})",
        expected=f"epoch {current.epoch}",
        fix="Stop this controller; whoever leads goes on from the journal.",
        where=where,
    )


def _elsewhere(home: str, where: str) -> ConflictError:
    name, _, place = home.partition(" ")
    return ConflictError(
        f"this store belongs to the data directory of {place}: its artifacts, spools and jobs lie there",
        expected="to be led from there, or from wherever that directory was moved to",
        fix=f"Start it there, or bring that directory here. If it is lost for good, write {name} into the "
        "file `home` of this one: what it had not settled is lost with it.",
        where=where,
    )
