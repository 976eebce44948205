"""Which energy has been paid for: the meter's totals against what settlements took, kept across restarts.

The file ``run/energy.json`` holds every account, so that an engine which outlives its controller is billed
from where it was. It is written before a posting is made: a crash between the two leaves energy that
nobody pays for, never energy that two pay for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tokenmill.domain.codec import from_plain, to_plain
from tokenmill.domain.errors import DataError, invariant
from tokenmill.floor.energy import EnergyMeter, Reading
from tokenmill.floor.ports import Clock
from tokenmill.spec.files import write_atomically

SAVE_EVERY_US = 10_000_000


@dataclass(frozen=True, slots=True)
class SavedAccount:
    """One process's account as it lies in the file. ``billed`` are accounts that settlements draw on."""

    total_uj: int
    last: Reading
    counters_mj: Mapping[str, int]
    paid_mj: int = 0
    billed: bool = False


@dataclass(slots=True)
class EnergyAccounts:
    """Implements ``ports.EnergyAccount`` over a meter. Threads may share it."""

    file: Path
    meter: EnergyMeter
    now_us: Clock
    refresh: Callable[[], None] = lambda: None
    paid_mj: dict[str, int] = field(default_factory=dict)  # replica -> paid since its start
    ended_mj: dict[str, int] = field(default_factory=dict)  # replica that is gone -> total
    _saved_us: int = 0
    _watts: float = 0.0
    _before: tuple[int, dict[str, int]] = (0, {})
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def load(self) -> None:
        """Take over the accounts that an earlier controller kept; an unreadable file counts as none."""
        try:
            saved = from_plain(msgspec.json.decode(self.file.read_bytes()), dict[str, SavedAccount])
        except (OSError, msgspec.DecodeError, DataError):
            return
        for process_id, account in saved.items():
            self.meter.resume(process_id, account.total_uj, account.last, account.counters_mj)
            if account.billed:
                self.paid_mj[process_id] = account.paid_mj

    def open(self, replica: str) -> None:
        """Begin to bill a replica's energy."""
        with self._lock:
            self.paid_mj.setdefault(replica, 0)

    def close(self, replica: str, total_mj: int) -> None:
        """Keep the last total of a replica that ended until somebody has paid for it."""
        with self._lock:
            if replica in self.paid_mj:
                self.ended_mj[replica] = total_mj

    def drop(self, living: Iterable[str]) -> None:
        """Forget accounts of processes that no controller knows any more."""
        with self._lock:
            self.meter.keep(frozenset(living))

    def owed(self) -> dict[str, int]:
        with self._lock:
            return {
                replica: max(0, self.ended_mj.get(replica, self.meter.total_mj(replica)) - paid)
                for replica, paid in sorted(self.paid_mj.items())
            }

    def ended(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self.ended_mj)

    def take(self, amounts: Mapping[str, int]) -> None:
        with self._lock:
            for replica, amount in amounts.items():
                invariant(amount >= 0, "energy is not given")
                self.paid_mj[replica] = self.paid_mj.get(replica, 0) + amount
            self._save()

    def give_back(self, amounts: Mapping[str, int]) -> None:
        with self._lock:
            for replica, amount in amounts.items():
                self.paid_mj[replica] = self.paid_mj.get(replica, 0) - amount

    def forget_ended(self) -> None:
        """Drop replicas that ended and owe nothing."""
        with self._lock:
            for replica, owed in self.owed().items():
                if replica in self.ended_mj and owed == 0:
                    del self.ended_mj[replica], self.paid_mj[replica]

    def source(self) -> str:
        return self.meter.source

    def watts(self) -> float:
        return self._watts

    def sampled(self) -> None:
        """Note that the meter was read: measure power, and save now and then."""
        with self._lock:
            now, totals = self.now_us(), self.meter.totals()
            before_us, before = self._before
            if now - before_us >= 2_000_000:
                spent = sum(max(0, total - before.get(p, 0)) for p, total in totals.items() if p in before)
                self._watts = spent * 1000 / (now - before_us) if before_us else 0.0
                self._before = (now, totals)
            if now - self._saved_us >= SAVE_EVERY_US:
                self._save()

    def _save(self) -> None:
        accounts = {
            process_id: SavedAccount(
                total_uj, last, counters, self.paid_mj.get(process_id, 0), process_id in self.paid_mj
            )
            for process_id, (total_uj, last, counters) in self.meter.accounts().items()
        }
        write_atomically(self.file, msgspec.json.encode(to_plain(accounts)))
        self._saved_us = self.now_us()
