"""Energy: the model's arithmetic, counters, exact sharing, and accounts that survive a controller."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.domain.errors import InvariantError
from tokenmill.floor.accounts import EnergyAccounts
from tokenmill.floor.energy import CpuModel, EnergyMeter, Reading, find_rapl, share_out

MODEL = CpuModel(active_watts_per_core=10.0, idle_watts=4.0, cores=4)


class Counter:
    def __init__(self, value: int = 0) -> None:
        self.value = value

    def read_mj(self) -> int:
        return self.value


def test_model_is_watts_times_time() -> None:
    assert MODEL.energy_uj(cpu_us=1_000_000, wall_us=0, cpu_millis=0) == 10_000_000
    # One of four cores carries a quarter of the idle machine.
    assert MODEL.energy_uj(cpu_us=0, wall_us=2_000_000, cpu_millis=1000) == 2_000_000
    assert "assumed" in MODEL.source
    assert "10 W per busy core" in MODEL.source


def test_meter_adds_only_what_is_new() -> None:
    meter = EnergyMeter(MODEL)
    meter.sample({"a": Reading(1_000_000, 1_000_000)})
    assert meter.totals() == {}
    meter.open("a")
    meter.sample({"a": Reading(1_000_000, 1_000_000)})
    meter.sample({"a": Reading(3_000_000, 2_000_000)})
    assert meter.total_mj("a") == 30_000
    assert meter.finish("a", 4_000_000, 3_000_000) == 40_000
    assert meter.total_mj("a") == 0


def test_accelerator_counter_is_added_from_the_first_sample_on() -> None:
    gpu = Counter(500)
    meter = EnergyMeter(MODEL, accelerators={"local/gpu0": gpu})
    meter.open("a")
    meter.open("b")
    meter.sample({"a": Reading(0, 0, 0, ("local/gpu0",)), "b": Reading(0, 0)})
    gpu.value = 2500
    meter.sample({"a": Reading(0, 0, 0, ("local/gpu0",)), "b": Reading(0, 0)})
    assert (meter.total_mj("a"), meter.total_mj("b")) == (2000, 0)
    assert meter.source.startswith("NVML")


def test_package_counter_is_shared_by_cpu_time() -> None:
    package, busy = Counter(1_000), Counter(0)
    meter = EnergyMeter(MODEL, package=package, busy_us=busy.read_mj)
    meter.open("a")
    meter.open("b")
    package.value, busy.value = 9_000, 4_000_000  # 8 J over 4 busy seconds of the whole machine
    meter.sample({"a": Reading(1_000_000, 1_000_000), "b": Reading(3_000_000, 1_000_000)})
    assert (meter.total_mj("a"), meter.total_mj("b")) == (2_000, 6_000)
    assert "RAPL" in meter.source


def test_rapl_counts_packages_only_and_not_when_it_stays_zero(tmp_path: Path) -> None:
    for name, value in (("intel-rapl:0", "0"), ("intel-rapl:0:0", "7")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(value)
    assert find_rapl(tmp_path) is None
    (tmp_path / "intel-rapl:0/energy_uj").write_text("5000000")
    counter = find_rapl(tmp_path)
    assert counter is not None
    assert counter.read_mj() == 5000
    assert find_rapl(tmp_path / "absent") is None


@given(
    st.integers(0, 10**15),
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(0, 10**9), min_size=1),
)
def test_share_out_conserves_every_unit(amount: int, weights: dict[str, int]) -> None:
    shares = share_out(amount, weights)
    assert sum(shares.values()) == amount
    total = sum(weights.values())
    for name, weight in weights.items():
        exact = amount * weight / total if total else amount / len(weights)
        assert abs(shares[name] - exact) <= 1 + exact * 1e-9


def test_share_out_breaks_ties_by_name() -> None:
    assert share_out(1, {"b": 1, "a": 1}) == {"a": 1, "b": 0}
    with pytest.raises(InvariantError):
        share_out(1, {})


def make_accounts(tmp_path: Path, meter: EnergyMeter) -> EnergyAccounts:
    return EnergyAccounts(tmp_path / "energy.json", meter, lambda: 1_000_000)


def test_accounts_survive_a_controller(tmp_path: Path) -> None:
    meter = EnergyMeter(MODEL)
    accounts = make_accounts(tmp_path, meter)
    meter.open("r-1")
    accounts.open("r-1")
    meter.sample({"r-1": Reading(1_000_000, 1_000_000), "job": Reading(5_000_000, 1)})
    assert accounts.owed() == {"r-1": 10_000}
    accounts.take({"r-1": 4_000})

    after = EnergyMeter(MODEL)
    accounts = make_accounts(tmp_path, after)
    accounts.load()
    assert accounts.owed() == {"r-1": 6_000}
    after.sample({"r-1": Reading(1_500_000, 2_000_000)})
    assert accounts.owed() == {"r-1": 11_000}


def test_account_of_a_replica_that_ended_is_kept_until_it_is_paid(tmp_path: Path) -> None:
    meter = EnergyMeter(MODEL)
    accounts = make_accounts(tmp_path, meter)
    meter.open("r-1")
    accounts.open("r-1")
    accounts.close("r-1", meter.finish("r-1", 2_000_000, 1))
    assert accounts.owed() == {"r-1": 20_000}
    assert accounts.ended() == {"r-1"}
    accounts.take({"r-1": 20_000})
    accounts.forget_ended()
    assert accounts.owed() == {}


def test_what_was_given_back_is_owed_again(tmp_path: Path) -> None:
    meter = EnergyMeter(MODEL)
    accounts = make_accounts(tmp_path, meter)
    meter.open("r-1")
    accounts.open("r-1")
    meter.sample({"r-1": Reading(1_000_000, 1)})
    accounts.take({"r-1": 10_000})
    accounts.give_back({"r-1": 10_000})
    assert accounts.owed() == {"r-1": 10_000}
