"""The gateway as one object: what all connections share, built once by ``server``.

Holds the table, the memory of admission and routing, the spool, metrics, connections and requests. It
opens nothing by itself and decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from tokenmill.control.edge import set_back
from tokenmill.control.requests import EdgeMemory, refresh
from tokenmill.federation.secrets import Secrets
from tokenmill.gateway.alone import OwnEndpoints, OwnMeters
from tokenmill.gateway.caller import PROOF_FILE, Caller, Proof, caller_of
from tokenmill.gateway.capturing import Captures
from tokenmill.gateway.client import ClientConnection, Responder
from tokenmill.gateway.idempotency import Replays
from tokenmill.gateway.message import HttpRequest, RequestHead
from tokenmill.gateway.metrics import Metrics
from tokenmill.gateway.options import Options
from tokenmill.gateway.origins import SharingConnection
from tokenmill.gateway.outcomes import OutcomeCounts
from tokenmill.gateway.pool import Pool
from tokenmill.gateway.shadow_file import Shadows
from tokenmill.gateway.shared import SharedEndpoints, SharedFile, SharedMeters
from tokenmill.gateway.spool import Spool
from tokenmill.gateway.table import Serving, TableFile
from tokenmill.gateway.upstream import address_of
from tokenmill.spec.paths import Paths

SET_BACK_US = 1_000_000
"""A clock that is slewed goes back by less between two looks at it."""

FORGET_S = 3600.0
"""How often captured days that are too old are looked for."""

log = logging.getLogger("tokenmill.gateway")


def clock() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


class OpenRequest(Protocol):
    """A model request that is admitted and not settled."""

    http: HttpRequest
    model: str
    settling: bool

    @property
    def replica(self) -> str:
        """Where it is being answered."""

    @property
    def started(self) -> bool:
        """Whether the client has had bytes."""

    def sweep(self, now: float) -> None:
        """Enforce time limits."""

    def interrupt(self) -> None:
        """Settle at once: the gateway stops."""


class Gateway:
    """See the module. ``route`` says what answers a request."""

    def __init__(self, options: Options, loop: asyncio.AbstractEventLoop, spool: Spool, route: Route) -> None:
        self._route = route
        self.options = options
        self.loop = loop
        self.clock = clock
        self.tables = TableFile(options.table)
        self.spool = spool
        self.shared = SharedFile(options.meters, options.index, options.processes)
        self._own_meters: OwnMeters | None = None
        if self.shared.alone:
            self._own_meters = OwnMeters(self.shared, "meter ", loop.call_soon)
            self.memory = EdgeMemory(self._own_meters, OwnEndpoints())
        else:
            together = SharedEndpoints(self.shared, "replica ")
            self.memory = EdgeMemory(SharedMeters(self.shared, "meter "), together)
        self.metrics = Metrics()
        self.pool = Pool(loop, options.connect_s)
        self.secrets = Secrets()
        self.proof = Proof(options.state.with_name(PROOF_FILE))
        self.replays = Replays()
        self.tokenizing = 0
        self.connections: set[ClientConnection] = set()
        self.exchanges: set[OpenRequest] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.buffered = 0
        self.draining = False
        self.started_us = clock()
        self.loop_lag_s = 0.0
        self.state_problem = ""  # why the state file cannot be written, when it cannot
        self.ticked_s = loop.time()
        self.port = options.port
        self.outcomes = OutcomeCounts()
        self.shadows = Shadows(options.spool.parent.parent / "shadow" / options.spool.name)
        captures = Paths(options.spool.parent.parent).captures
        self.captures = Captures(captures, options.index, loop, self.metrics.captures)
        self._forgot_s = loop.time() - FORGET_S  # days that grew too old while no gateway ran go at once
        self.refused_full: dict[str, int] = {}
        self.asleep: dict[str, int] = {}  # requests for a model of which no replica runs
        self._ahead = self._ahead_us()
        self._random = random.Random()
        self._serial = 0
        self._nonce = os.urandom(4).hex()

    @property
    def serving(self) -> Serving:
        return self.tables.serving

    def draw(self) -> int:
        """0..999, by chance."""
        return self.lot() % 1000

    def lot(self) -> int:
        """40 random bits."""
        return self._random.getrandbits(40)

    def request_id(self) -> str:
        """Unique over restarts and processes: time, a random part per process and a serial number."""
        self._serial += 1
        return f"req-{clock():x}-{self._nonce}{self._serial & 0xFFFFFF:06x}"

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` beside the connections; a failure is reported, and the drain waits for it."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            context = {"message": "a task of the gateway failed", "exception": task.exception()}
            self.loop.call_exception_handler(context)

    def client(self) -> ClientConnection:
        """A protocol for one accepted connection."""
        kind = SharingConnection if self.options.allowed_origins else ClientConnection
        return kind(self, self.loop, self.clock)

    def sibling(self) -> ClientConnection:
        """The same for a connection from another process on this port."""
        return ClientConnection(self, self.loop, self.clock, inside=True)

    def dispatch(self, connection: ClientConnection, request: HttpRequest) -> Responder | None:
        """Answer a request or say who does. A mistake of ours costs this connection only."""
        return self._route(self, connection, request)

    def known(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a large body may be read for this caller."""
        return caller_of(self.serving, self.proof, headers, self.clock()) is not None

    def caller(self, head: RequestHead) -> Caller | None:
        """Who sends this head. A key found for the same bytes and the same table is the same key."""
        noted, serving = head.sender, self.tables.serving
        if noted is not None and noted[0] is serving:
            caller: Caller = noted[1]
            if not caller.key.expires_us or self.clock() < caller.key.expires_us:
                return caller
        found = caller_of(serving, self.proof, head.fields, self.clock())
        head.sender = (serving, found) if found is not None and not found.batch else None
        return found

    def count_response(self, status: int) -> None:
        self.metrics.add(self.metrics.responses, (str(status),))

    def poll_table(self) -> bool:
        """Take a newer table; True when there is one. Called ten times a second, if the loop is well."""
        self.ticked_s = self.loop.time()
        if not self.tables.poll():
            return False
        index = self.serving.index
        with self.shared:
            self.memory = refresh(index, self.memory)
        quotas = {f"meter {limit.meter}" for limits in index.all_limits() for limit in limits}
        self.shared.compact(quotas | {f"replica {name}" for name in self.serving.endpoints})
        return True

    def sweep(self) -> None:
        """Once a second: time limits, the disk, idle connections."""
        now = self.loop.time()
        for connection in list(self.connections):
            connection.sweep(now)
        for exchange in list(self.exchanges):
            exchange.sweep(now)
        self.spool.check()
        self._watch_clock()
        if now - self._forgot_s > FORGET_S:
            self._forgot_s = now
            self.captures.forget(self.clock())
        live = set()
        for endpoint in self.serving.endpoints.values():
            try:
                live.add(address_of(endpoint.address, endpoint.tls))
            except ValueError:
                continue  # requests to it are refused with this reason
        self.pool.sweep(live)

    def _watch_clock(self) -> None:
        ahead_us = self._ahead_us()
        if ahead_us < self._ahead - SET_BACK_US:
            log.warning("the clock was set back by %.1f s", (self._ahead - ahead_us) / 1e6)
            self.clock_set_back()
        self._ahead = ahead_us

    def clock_set_back(self) -> None:
        """What was to end by the clock ends as if it began now, at the latest."""
        with self.shared:
            self.memory = set_back(self.serving.index, self.memory, self.clock())

    def _ahead_us(self) -> int:
        """The clock before the loop's time, which nobody sets."""
        return self.clock() - int(self.loop.time() * 1e6)

    def close_memory(self) -> None:
        """What is remembered is in the file; decide nothing after this."""
        if self._own_meters is not None:
            self._own_meters.close()
        self.shared.close()

    def oldest_pending_s(self) -> float:
        """How long the oldest open request has waited for its first byte."""
        now = self.loop.time()
        waiting = [now - e.http.arrived_s for e in self.exchanges if not e.started]
        return max(waiting, default=0.0)


Route = Callable[[Gateway, ClientConnection, HttpRequest], Responder | None]
