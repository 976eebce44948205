"""The agent of one Ray node: the node's workers, driven from afar by whichever controller leads.

It runs as a detached actor, so it outlives controllers, and Ray starts it again on its node when it dies.
Engines and jobs outlive it too: an agent takes over what its node's records name. A controller of an earlier
epoch is refused. What happens is kept until the controller says that the journal has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.control.state import EMPTY, State
from tokenmill.domain.effects import Effect
from tokenmill.domain.errors import NotLeaderError, ResourceError, invariant
from tokenmill.domain.events import Event
from tokenmill.domain.factory import Node
from tokenmill.floor import machine, procfs
from tokenmill.floor.node import NodeWorkers
from tokenmill.floor.workers import Share, free_port
from tokenmill.spec.node_paths import NodePaths
from tokenmill.spec.settings import load_settings

REPORTS_WAIT_S = 2.0  # one look for news lasts at most so long
FROM_RAY = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")  # set by Ray for its own workers: not for ours


@dataclass(frozen=True, slots=True)
class Home:
    """Where an agent works: the data directory that it shares with the controller, and its node's name."""

    node: str
    root: str
    factory_dir: str
    host: str  # address that engines of this node listen on
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class News:
    """What an agent tells: events that the journal does not have yet, and how things stand."""

    events: tuple[tuple[int, Event], ...]
    progress: Mapping[str, Mapping[str, Any]]
    owed_mj: Mapping[str, int]
    ended: frozenset[str]
    watts: float
    energy_source: str


class Agent:
    """The actor. Every method but ``measure`` takes the epoch of the controller that calls."""

    def __init__(self, home: Home) -> None:
        for name in [name for name in os.environ if name in FROM_RAY or name.startswith("RAY_")]:
            if name != "RAY_RAYLET_PID":
                del os.environ[name]
        self._home = home
        self._paths = NodePaths(Path(home.root), home.node)
        self._settings = load_settings(dict(home.settings))
        self._workers: NodeWorkers | None = None
        self._state: State = EMPTY
        self._epoch = 0
        self._numbers = itertools.count(1)
        self._outbox: dict[int, tuple[Event, asyncio.Event]] = {}
        self._news = asyncio.Event()

    async def measure(self, node: str, site: str, nonce: str) -> Node:
        """Return what this machine has.

        Raises ``ResourceError`` when it does not see the data directory, where ``nonce`` was written.
        """
        path = self._paths.shared_nonce
        found = await asyncio.to_thread(lambda: path.read_text() if path.is_file() else "")
        if found != nonce:
            raise ResourceError(
                f"node {node} does not see the factory's data directory {self._home.root}",
                expected="one directory under the same path on every node (NFS, Lustre, ...)",
                fix="Mount it there, or set TOKENMILL_DATA_DIR to a path that every node shares.",
            )
        return machine.measure(node, site)

    async def attach(self, epoch: int, state: State) -> None:
        """Serve a new controller: take over what runs here, as it would after a crash of its own."""
        self._check(epoch, newer=True)
        if self._workers is not None:
            await self._workers.leave()
            await self._workers.close(stop_all=False)
        self._epoch, self._state = epoch, state
        self._outbox.clear()
        self._workers = NodeWorkers(
            self._paths, self._settings, Path(self._home.factory_dir), _now_us, self._home.host
        )
        await self._workers.start(self._report, lambda: self._state)
        await self._workers.adopt(state)
        await asyncio.to_thread(self._workers.supervisor.kill_strays)
        await asyncio.to_thread(self._guard)

    async def carry_out(self, epoch: int, effect: Effect, state: State, share: Share | None) -> None:
        """Begin to do ``effect``. ``state`` holds the factory, which engines are started by."""
        self._check(epoch)
        self._state = state
        self._there.carry_out(effect, share)

    async def news(self, epoch: int, acknowledged: tuple[int, ...]) -> News:
        """Drop events that the journal has, and return all others: at once, or when something happens."""
        self._check(epoch)
        for number in acknowledged:
            _, journalled = self._outbox.pop(number, (None, asyncio.Event()))
            journalled.set()
        if not self._outbox:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORTS_WAIT_S):
                    await self._news.wait()
        accounts = self._there.accounts
        return News(
            tuple((number, event) for number, (event, _) in sorted(self._outbox.items())),
            self._there.progress(),
            accounts.owed(),
            accounts.ended(),
            accounts.watts(),
            accounts.source(),
        )

    async def energy(self, epoch: int, call: str, amounts: Mapping[str, int]) -> dict[str, int]:
        """Refresh, take from, give back to or forget in this node's accounts; return what is owed then."""
        self._check(epoch)
        accounts = self._there.accounts
        if call in ("refresh", "forget_ended"):
            await asyncio.to_thread(getattr(accounts, call))
        else:
            invariant(call in ("take", "give_back"), "one of the calls of an energy account")
            await asyncio.to_thread(getattr(accounts, call), amounts)
        return accounts.owed()

    async def meeting_port(self, epoch: int) -> int:
        """Return a port of this machine that is free now, where the ranks of a gang can meet."""
        self._check(epoch)
        return free_port()

    async def close(self, epoch: int) -> None:
        """End everything that runs on this node. Returns when every exit is in the journal."""
        self._check(epoch)
        await self._there.end()
        await self._there.close(stop_all=True)

    @property
    def _there(self) -> NodeWorkers:
        if self._workers is None:  # Ray started this agent anew
            raise ResourceError(f"the agent of {self._home.node} was started again", expected="attach first")
        return self._workers

    def _check(self, epoch: int, *, newer: bool = False) -> None:
        if epoch < self._epoch or (newer and epoch == self._epoch and self._workers is not None):
            raise NotLeaderError(f"a controller of epoch {self._epoch} leads the agent of {self._home.node}")

    async def _report(self, event: Event) -> None:
        journalled = asyncio.Event()
        self._outbox[next(self._numbers)] = (event, journalled)
        self._news.set()
        await journalled.wait()

    def _guard(self) -> None:
        """Start what ends this node's processes when its raylet dies and no other takes them over in time."""
        raylet = procfs.stat(int(os.environ["RAY_RAYLET_PID"]))
        if raylet is None:
            return
        grace_s = self._settings.node_grace_us / 1e6
        argv = (sys.executable, "-m", "tokenmill.floor.ray.guard", str(self._paths.run))
        child = subprocess.Popen(
            (*argv, str(raylet.pid), str(raylet.start_time), str(grace_s), self._there.mark),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        child.returncode = 0  # it outlives us on purpose


def host_of(address: str, head: str) -> str:
    """Return where the engines of a node at ``address`` listen: loopback when it is the head's machine."""
    return "127.0.0.1" if address in (head, "127.0.0.1", *own_addresses()) else address


def own_addresses() -> frozenset[str]:
    """Return the addresses of this machine."""
    with contextlib.suppress(OSError):
        return frozenset(str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None))
    return frozenset()


def _now_us() -> int:
    return time.time_ns() // 1000
