"""How many joules a process used: counters where the machine has them, else a stated model.

Accelerators: NVML's total energy counter of each GPU that the process holds alone. CPU: RAPL's package
counter, shared out by CPU time; without it a model of watts per busy core plus a share of the idle machine,
which is an assumption and is named as such in ``source``. All sums are integers in millijoules.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tokenmill.domain.errors import invariant

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a process had used when it was sampled; all counts since its start."""

    cpu_us: int
    wall_us: int
    cpu_millis: int = 0
    accelerators: tuple[str, ...] = ()


class Counter(Protocol):
    """An energy counter of the machine, in millijoules since some moment; may start again at 0."""

    def read_mj(self) -> int: ...


@dataclass(frozen=True, slots=True)
class CpuModel:
    """Energy of a CPU without a counter: ``active`` watts for each busy core, ``idle`` for the whole machine.

    Idle power is shared in proportion to the cores that a process asked for.
    """

    active_watts_per_core: float
    idle_watts: float
    cores: int

    def energy_uj(self, cpu_us: int, wall_us: int, cpu_millis: int) -> int:
        """Microjoules: watts times microseconds. 10 W over 1 CPU second are 10,000,000."""
        share = min(1.0, cpu_millis / 1000 / self.cores) if self.cores else 0.0
        return round(self.active_watts_per_core * cpu_us + self.idle_watts * share * wall_us)

    @property
    def source(self) -> str:
        return (
            f"model: {self.active_watts_per_core:g} W per busy core + {self.idle_watts:g} W idle, "
            f"shared over {self.cores} cores (assumed, not measured)"
        )


class RaplCounter:
    """Sum of the package domains of /sys/class/powercap. Wraps are handled by ``EnergyMeter``'s deltas."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self.files = files

    def read_mj(self) -> int:
        return sum(int(file.read_text()) for file in self.files) // 1000


def find_rapl(root: Path = POWERCAP) -> RaplCounter | None:
    """Return the machine's package counters, or None where there are none, they may not be read or stay 0."""
    files = tuple(sorted(root.glob("intel-rapl:[0-9]*/energy_uj")))
    files = tuple(f for f in files if f.parent.name.count(":") == 1)
    with contextlib.suppress(OSError, ValueError):
        counter = RaplCounter(files)
        if files and counter.read_mj() > 0:
            return counter
    return None


@dataclass(slots=True)
class _Account:
    total_uj: int = 0
    last: Reading = Reading(0, 0)
    accelerator_mj: dict[str, int] = field(default_factory=dict)  # counter at the last sample


class EnergyMeter:
    """Energy of each supervised process since its start.

    ``accelerators`` maps an accelerator's id to its counter. ``busy_us`` returns the CPU time that the whole
    machine has spent working, by which RAPL's joules are shared out.
    """

    def __init__(
        self,
        model: CpuModel,
        package: Counter | None = None,
        accelerators: Mapping[str, Counter] | None = None,
        busy_us: Callable[[], int] | None = None,
    ) -> None:
        self._model = model
        self._package = package
        self._accelerators = dict(accelerators or {})
        self._busy_us = busy_us or machine_busy_us
        self._accounts: dict[str, _Account] = {}
        self._package_mj = package.read_mj() if package else 0
        self._busy = self._busy_us() if package else 0
        self._uj_per_busy_us = 0.0
        self._lock = threading.Lock()

    @property
    def source(self) -> str:
        cpu = "RAPL package counter, by CPU time" if self._package else self._model.source
        return f"NVML total energy; CPU: {cpu}" if self._accelerators else cpu

    def open(self, process_id: str) -> None:
        """Begin an account, unless there is one that was saved; only what has one is metered."""
        with self._lock:
            self._accounts.setdefault(process_id, _Account())

    def resume(self, process_id: str, total_uj: int, last: Reading, counters_mj: Mapping[str, int]) -> None:
        """Go on with the account that an earlier controller saved for a process that outlived it."""
        self._accounts[process_id] = _Account(total_uj, last, dict(counters_mj))

    def accounts(self) -> dict[str, tuple[int, Reading, dict[str, int]]]:
        """Return what ``resume`` needs, for every living account."""
        return {
            name: (account.total_uj, account.last, dict(account.accelerator_mj))
            for name, account in sorted(self._accounts.copy().items())
        }

    def keep(self, living: frozenset[str]) -> None:
        """Drop every account whose process is not one of these."""
        self._accounts = {name: a for name, a in self._accounts.items() if name in living}

    def last(self, process_id: str) -> Reading:
        """Return the last reading of a process; zeros when there is none."""
        account = self._accounts.get(process_id)
        return account.last if account else Reading(0, 0)

    def sample(self, readings: Mapping[str, Reading]) -> None:
        """Add what each process used since the last sample."""
        with self._lock:
            self._sample_package()
            for process_id, reading in sorted(readings.items()):
                account = self._accounts.get(process_id)
                if account is not None:
                    self._add(account, reading)

    def total_mj(self, process_id: str) -> int:
        account = self._accounts.get(process_id)
        return account.total_uj // 1000 if account else 0

    def totals(self) -> dict[str, int]:
        return {process_id: self.total_mj(process_id) for process_id in sorted(self._accounts.copy())}

    def finish(self, process_id: str, cpu_us: int, wall_us: int) -> int:
        """Close an account with the final CPU time and return the whole energy in millijoules."""
        with self._lock:
            account = self._accounts.pop(process_id, _Account())
            last = account.last
            self._add(account, Reading(max(cpu_us, last.cpu_us), wall_us, last.cpu_millis, last.accelerators))
            return account.total_uj // 1000

    def _sample_package(self) -> None:
        if self._package is None:
            return
        with contextlib.suppress(OSError, ValueError):
            energy, busy = self._package.read_mj(), self._busy_us()
            if energy >= self._package_mj and busy > self._busy:  # a counter that wrapped is skipped once
                self._uj_per_busy_us = (energy - self._package_mj) * 1000 / (busy - self._busy)
            self._package_mj, self._busy = energy, busy

    def _add(self, account: _Account, reading: Reading) -> None:
        cpu_us = reading.cpu_us - account.last.cpu_us
        wall_us = reading.wall_us - account.last.wall_us
        if cpu_us < 0 or wall_us < 0:
            account.last = reading
            return
        if self._package is not None and self._uj_per_busy_us > 0:
            account.total_uj += round(self._uj_per_busy_us * cpu_us)
        else:
            account.total_uj += self._model.energy_uj(cpu_us, wall_us, reading.cpu_millis)
        for accelerator in reading.accelerators:
            counter = self._accelerators.get(accelerator)
            if counter is None:
                continue
            with contextlib.suppress(OSError, ValueError):
                now = counter.read_mj()
                account.total_uj += max(0, now - account.accelerator_mj.get(accelerator, now)) * 1000
                account.accelerator_mj[accelerator] = now
        account.last = reading


def machine_busy_us() -> int:
    """CPU time that all cores spent working since boot, from /proc/stat (idle and iowait left out)."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    ticks = sum(int(f) for f in fields) - int(fields[3]) - int(fields[4])
    return ticks * 1_000_000 // os.sysconf("SC_CLK_TCK")


def share_out(amount: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Divide an integer in proportion to weights without losing a unit (largest remainder, ties by name).

    All weights 0 divides evenly. No weights at all is a programmer's mistake.
    """
    invariant(bool(weights) and amount >= 0, "there must be somebody to share with")
    total = sum(weights.values())
    effective = dict(weights) if total else dict.fromkeys(weights, 1)
    total = total or len(effective)
    shares = {name: amount * weight // total for name, weight in effective.items()}
    order = sorted(effective, key=lambda name: (-(amount * effective[name] % total), name))
    for name in order[: amount - sum(shares.values())]:
        shares[name] += 1
    return shares


class NvmlCounter:
    """Total energy of one GPU since the driver was loaded."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle

    def read_mj(self) -> int:
        try:
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except self._nvml.NVMLError as error:
            raise OSError(str(error)) from error
