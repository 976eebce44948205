"""Energy accounts of all nodes as one: owed is what the agents said last, and payments go to whose it is."""

from __future__ import annotations

from collections.abc import Mapping

from tokenmill.floor.ray import cluster
from tokenmill.floor.ray.member import Member


class RayAccounts:
    """Implements ``ports.EnergyAccount``. Its methods block and run in threads, as the books call them."""

    def __init__(self, members: Mapping[str, Member]) -> None:
        self._members = members
        self._owners: dict[str, Member] = {}

    def refresh(self) -> None:
        self._call_all("refresh")

    def owed(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for member in self._here():
            for replica, amount_mj in member.news.owed_mj.items():
                self._owners[replica] = member
                found[replica] = amount_mj
        return dict(sorted(found.items()))

    def ended(self) -> frozenset[str]:
        return frozenset().union(*(member.news.ended for member in self._here()))

    def forget_ended(self) -> None:
        self._call_all("forget_ended")

    def take(self, amounts: Mapping[str, int]) -> None:
        self._pay("take", amounts)

    def give_back(self, amounts: Mapping[str, int]) -> None:
        self._pay("give_back", amounts)

    def watts(self) -> float:
        return sum(member.news.watts for member in self._here())

    def source(self) -> str:
        return next((m.news.energy_source for m in self._here() if m.news.energy_source), "")

    def _here(self) -> list[Member]:
        return [member for _, member in sorted(dict(self._members).items()) if member.epoch]

    def _call_all(self, call: str) -> None:
        for member in self._here():
            self._ask(member, call, {})

    def _pay(self, call: str, amounts: Mapping[str, int]) -> None:
        """Tell each node its own part. A node that is gone keeps no account, so nothing is paid twice."""
        parts: dict[str, dict[str, int]] = {}
        for replica, amount_mj in amounts.items():
            owner = self._owners.get(replica)
            if owner is not None:
                parts.setdefault(owner.name, {})[replica] = amount_mj
        for member in self._here():
            if member.name in parts:
                self._ask(member, call, parts[member.name])

    def _ask(self, member: Member, call: str, amounts: Mapping[str, int]) -> None:
        try:
            owed_mj = cluster.call_now(member.agent.energy, member.epoch, call, amounts)
        except cluster.GONE:
            return
        member.heard(owed_mj)
