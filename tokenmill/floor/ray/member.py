"""One node of the cluster as the controller knows it: its agent, and what was heard of it last."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tokenmill.control.state import State
from tokenmill.domain.effects import Effect
from tokenmill.domain.events import Event
from tokenmill.domain.factory import Node
from tokenmill.floor.ray import cluster
from tokenmill.floor.ray.agent import News
from tokenmill.floor.workers import Share

NO_NEWS = News((), {}, {}, frozenset(), 0.0, "")


@dataclass(slots=True)
class Member:
    """``agent`` is the actor's handle. Orders and questions are answered by it; this only keeps count."""

    name: str
    ray: cluster.RayNode
    agent: Any
    measured: Node
    news: News = NO_NEWS
    pump: asyncio.Task[None] | None = None
    epoch: int = 0
    _telling: dict[int, asyncio.Future[None]] = field(default_factory=dict)

    async def attach(self, epoch: int, state: State) -> None:
        """Lead the agent; what it had told before is told anew."""
        for task in self._telling.values():
            task.cancel()
        self._telling.clear()
        self.epoch = epoch
        await cluster.call(self.agent.attach, epoch, state)

    async def carry_out(self, effect: Effect, state: State, share: Share | None) -> None:
        await cluster.call(self.agent.carry_out, self.epoch, effect, state, share)

    async def meeting_port(self) -> int:
        port: int = await cluster.call(self.agent.meeting_port, self.epoch)
        return port

    async def close(self) -> None:
        """End all work on the node; its exits are still heard, so they are journalled."""
        await cluster.call(self.agent.close, self.epoch)

    def heard(self, owed_mj: Mapping[str, int]) -> None:
        """Keep what the agent owes after a payment."""
        self.news = replace(self.news, owed_mj=owed_mj)

    async def listen(self, tell: Callable[[str, Event], Awaitable[None]]) -> None:
        """Hear the agent for ever. Each event is told once, and acknowledged when that is done."""
        while True:
            told = tuple(number for number, task in self._telling.items() if task.done())
            for number in told:
                self._telling.pop(number).result()
            self.news = await cluster.call(self.agent.news, self.epoch, told)
            for number, event in self.news.events:
                if number not in self._telling:
                    self._telling[number] = asyncio.ensure_future(tell(self.name, event))
            if self._telling:
                await asyncio.wait(self._telling.values(), timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
