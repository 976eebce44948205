"""From spool files to the ledger: prices each settlement, shares out the engine's energy, posts work.

Each pass reads what gateways appended since the last one and writes it with the spool's new offset in one
transaction, so that a crash anywhere repeats a pass or skips nothing. The energy that a replica used since
its last pass is divided over the requests that settle in this one, in proportion to their tokens; what it
used while nobody asked for anything goes to the factory itself. Blocks: run it in a thread.
"""

from __future__ import annotations

import fcntl
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenmill.domain.effects import ChargeWork
from tokenmill.domain.errors import StoreError
from tokenmill.domain.factory import Factory, Price
from tokenmill.domain.ledger import Posting, Settlement
from tokenmill.floor.energy import share_out
from tokenmill.floor.ports import EnergyAccount
from tokenmill.policy.price import FREE, price_id, price_of, settlement_postings, work_postings
from tokenmill.store.ledger import Ledger
from tokenmill.store.spool import SpoolBatch, read_spool, spool_files

log = logging.getLogger(__name__)

IDLE_AFTER_US = 60_000_000
"""A replica that settled nothing for so long was idle: its energy is nobody's but the factory's."""

KEEP_READ_SPOOL_S = 60.0


@dataclass(slots=True)
class Books:
    """The ledger's side of one controller. ``stats`` counts since it started."""

    ledger: Ledger
    spool: Path
    energy: EnergyAccount
    stats: dict[str, Any] = field(
        default_factory=lambda: {
            "requests": 0,
            "input_tokens": 0,
            "output_tokens": 0,
            "damaged_lines": 0,
            "ledger_lag_s": 0.0,
        }
    )
    _settled_us: dict[str, int] = field(default_factory=dict)  # replica -> its last settlement
    _alias: dict[str, str] = field(default_factory=dict)
    _prices: tuple[Price, ...] | None = None
    _known: dict[str, Price] = field(default_factory=dict)  # by id
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def opinions(self, factory: Factory, line: str, since_us: int) -> list[tuple[str, int, int]]:
        """What clients said of a line's answers since then, by release; nothing while the store is away."""
        aliases = [found.name for found in factory.deployments if found.line == line]
        try:
            return self.ledger.opinions(aliases, since_us) if aliases else []
        except StoreError as error:
            log.warning("opinions on %s are not known: %s", line, error)
            return []

    def pass_over(self, factory: Factory, now_us: int) -> int:
        """Bring every spool file into the ledger; return how many settlements were new.

        Raises ``StoreError`` when the ledger cannot be written or a spool cannot be read; the next pass
        begins where this one could not go on.
        """
        with self._lock:
            self._keep_prices(factory)
            files = spool_files(self.spool)
            done = 0
            oldest_us = 0
            for path in files:
                count, waiting_us = self._ingest(path, factory, now_us)
                done += count
                oldest_us = min(filter(None, (oldest_us, waiting_us)), default=0)
            self._remove_read(files, now_us)
            self._post_idle(now_us)
            self.stats["ledger_lag_s"] = (now_us - oldest_us) / 1e6 if oldest_us else 0.0
            return done

    def charge(self, factory: Factory, effect: ChargeWork, now_us: int) -> bool:
        """Post what a lease used, once; False when it was posted before."""
        postings = work_postings(effect, factory.prices, now_us)
        return self.ledger.post_work(f"work:{effect.id}", postings) if postings else False

    def _ingest(self, path: Path, factory: Factory, now_us: int) -> tuple[int, int]:
        name = path.name
        offset = self.ledger.offset(name)
        done = 0
        oldest_us = 0
        while True:
            batch = read_spool(path, offset)
            if batch.offset == offset:
                return done, oldest_us
            for damage in batch.damaged:
                log.warning("spool: %s", damage)
            self.stats["damaged_lines"] += len(batch.damaged)
            if batch.settlements and not oldest_us:
                oldest_us = batch.settlements[0].at_us
            done += self._settle(name, batch, factory, now_us)
            offset = batch.offset

    def _settle(self, spool: str, batch: SpoolBatch, factory: Factory, now_us: int) -> int:
        postings: list[Posting] = []
        models = {deployment.name: deployment.model for deployment in factory.deployments}
        shares = self._energy_shares(batch.settlements)
        taken: dict[str, int] = {}
        for settlement in batch.settlements:
            lines = settlement_postings(settlement, self._price(settlement, factory, models))
            postings += lines
            energy_mj = shares.get(settlement.request, 0)
            if energy_mj:
                postings.append(_energy_posting(settlement, len(lines), energy_mj))
                taken[settlement.replica] = taken.get(settlement.replica, 0) + energy_mj
        if taken:
            self.energy.take(taken)
        try:
            new = self.ledger.settle(batch.settlements, postings, spool, batch.offset)
        except StoreError:
            self.energy.give_back(taken)
            raise
        self._count(batch.settlements, now_us)
        return new

    def _keep_prices(self, factory: Factory) -> None:
        """Write down every price that the file says, before anything is posted at it."""
        if self._prices is not factory.prices:
            self._known |= {price_id(price): price for price in (FREE, *factory.prices)}
            self.ledger.keep_prices(self._known)
            self._prices = factory.prices

    def _price(self, settlement: Settlement, factory: Factory, models: Mapping[str, str]) -> Price:
        """The price that was valid at admission: by its id, which no later change of the file can touch."""
        found = self._known.get(settlement.price)
        if found is None and settlement.price:
            found = self.ledger.price(settlement.price)
            if found is not None:
                self._known[settlement.price] = found
        if found is not None:
            return found
        # A refusal, a candidate's copy, or a line of an older gateway.
        names = (settlement.alias, models.get(settlement.alias, ""))
        return price_of(factory.prices, *names, at_us=settlement.admitted_us)

    def _energy_shares(self, settlements: tuple[Settlement, ...]) -> dict[str, int]:
        """Millijoules per request: what each replica owes, by tokens. Every millijoule is given out."""
        if any(settlement.replica for settlement in settlements):
            self.energy.refresh()
        owed = self.energy.owed()
        by_replica: dict[str, dict[str, int]] = {}
        for s in settlements:
            tokens = s.input_tokens - min(s.cached_tokens, s.input_tokens) + s.output_tokens
            if owed.get(s.replica) and tokens:
                by_replica.setdefault(s.replica, {})[s.request] = tokens
        shares: dict[str, int] = {}
        for replica, tokens_of in sorted(by_replica.items()):
            shares |= share_out(owed[replica], tokens_of)
        return shares

    def _count(self, settlements: tuple[Settlement, ...], now_us: int) -> None:
        for settlement in settlements:
            self.stats["requests"] += 1
            self.stats["input_tokens"] += settlement.input_tokens
            self.stats["output_tokens"] += settlement.output_tokens
            if settlement.replica:
                self._settled_us[settlement.replica] = now_us
                self._alias[settlement.replica] = settlement.alias

    def _post_idle(self, now_us: int) -> None:
        """Post to the factory what replicas used that settled nothing for a while, or that are gone."""
        owed = self.energy.owed()
        ended = self.energy.ended()
        for replica, amount_mj in sorted(owed.items()):
            since_us = self._settled_us.setdefault(replica, now_us)
            if amount_mj == 0 or (now_us - since_us < IDLE_AFTER_US and replica not in ended):
                continue
            self.energy.take({replica: amount_mj})
            entry = f"idle:{replica}:{now_us}"
            posting = _idle_posting(entry, now_us, self._alias.get(replica, ""), amount_mj)
            try:
                self.ledger.post_work(entry, [posting])
            except StoreError:
                self.energy.give_back({replica: amount_mj})
                raise
            self._settled_us[replica] = now_us
        for replica in ended:
            self._settled_us.pop(replica, None)
            self._alias.pop(replica, None)
        self.energy.forget_ended()

    def _remove_read(self, files: list[Path], now_us: int) -> None:
        """Delete spool files that are wholly in the ledger and that the gateway has rotated away from.

        The offset goes first: after a crash between the two the file is read again, and every request in it
        is known already.
        """
        by_stem: dict[str, list[Path]] = {}
        for path in files:
            by_stem.setdefault(path.name.rpartition("-")[0], []).append(path)
        for own in by_stem.values():
            for path in own[:-1]:
                stat = path.stat()
                old = now_us / 1e6 - stat.st_mtime > KEEP_READ_SPOOL_S
                if old and not _in_use(path) and self.ledger.offset(path.name) == stat.st_size:
                    self.ledger.forget_spool(path.name)
                    path.unlink()
                    log.info("spool file %s is in the ledger and was removed", path.name)


def _energy_posting(settlement: Settlement, line: int, amount_mj: int) -> Posting:
    return Posting(
        entry=settlement.request,
        line=line,
        at_us=settlement.at_us,
        debit=f"tenant/{settlement.tenant}/{settlement.project}",
        credit=f"factory/{settlement.alias}",
        unit="energy_mj",
        amount=amount_mj,
        tenant=settlement.tenant,
        project=settlement.project,
        key=settlement.key,
        model=settlement.alias,
        release=settlement.release,
        kind="serve",
    )


def _idle_posting(entry: str, now_us: int, alias: str, amount_mj: int) -> Posting:
    return Posting(
        entry=entry,
        line=0,
        at_us=now_us,
        debit="factory/idle",
        credit=f"factory/{alias}" if alias else "factory/engines",
        unit="energy_mj",
        amount=amount_mj,
        tenant="factory",
        project="",
        key="",
        model=alias,
        release="",
        kind="idle",
    )


def _in_use(path: Path) -> bool:
    """Whether a gateway writes this file: it holds a lock on it."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
