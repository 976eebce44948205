"""The floor of this machine: one node, and the head beside it, under one supervisor.

Everything it starts is found again by the next controller (``adopt``) or ended (``close``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenmill.control.state import State
from tokenmill.domain.effects import Effect
from tokenmill.domain.factory import Factory, Node
from tokenmill.floor import machine
from tokenmill.floor.head import Head
from tokenmill.floor.node import NodeWorkers
from tokenmill.floor.ports import Clock, Current, EnergyAccount, Report
from tokenmill.spec.paths import Paths
from tokenmill.spec.settings import Settings

log = logging.getLogger(__name__)


class LocalFloor:
    """Implements ``ports.Floor`` with processes. ``factory_dir`` is where the factory file lies."""

    def __init__(self, paths: Paths, settings: Settings, factory_dir: Path, now_us: Clock) -> None:
        self.node = NodeWorkers(paths, settings, factory_dir, now_us)
        self.head = Head(self.node.supervisor, paths, settings, factory_dir, now_us)

    async def start(self, report: Report, current: Current) -> None:
        await self.node.start(report, current)
        self.head.start(report)

    async def adopt(self, state: State) -> None:
        await self.node.adopt(state)
        await self.head.adopt()
        await asyncio.to_thread(self.node.supervisor.kill_strays)

    async def carry_out(self, effect: Effect) -> None:
        if not (self.node.carry_out(effect) or await self.head.carry_out(effect)):
            log.error("a floor cannot carry out %s", type(effect).__name__)

    def inventory(self, factory: Factory) -> tuple[Node, ...]:
        return (machine.local_node(factory),)

    def energy(self) -> EnergyAccount:
        return self.node.accounts

    def progress(self) -> Mapping[str, Mapping[str, Any]]:
        return {**self.node.progress(), **self.head.progress()}

    def url(self) -> str:
        return self.head.edge.url()

    async def close(self, stop_all: bool) -> None:
        """Stop watching. With ``stop_all`` the gateway ends first, so that open requests finish on living
        engines; then jobs and engines; then whatever still bears our mark."""
        await self.head.close(stop_all)
        await (self.node.end() if stop_all else self.node.leave())
        await self.node.close(stop_all)
