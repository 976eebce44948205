"""What the admin API stands on: the runtime, the store and the files of one factory.

``compose`` builds one ``ApiContext`` for the running controller; tests build one over a simulated floor.
Protocols name only what the console calls, so it can be read without knowing the rest.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from tokenmill.console.tenant.files import FileShelf
from tokenmill.control.state import State
from tokenmill.domain.events import Event
from tokenmill.domain.factory import Factory
from tokenmill.domain.ledger import EngineCount, Posting, Settlement
from tokenmill.domain.work import Release
from tokenmill.floor.load import gateway_url
from tokenmill.spec.paths import Paths
from tokenmill.spec.settings import Settings
from tokenmill.store.tenancy import BatchRecords, FileRecords
from tokenmill.twin.profiles import Profile
from tokenmill.twin.rehearse import rehearse_plain

SAMPLES = 150  # of the throughput ring buffer
SAMPLE_INTERVAL_S = 2.0


class RuntimePort(Protocol):
    """The part of ``floor.runtime.Runtime`` that the console uses."""

    @property
    def state(self) -> State: ...

    @property
    def ready(self) -> asyncio.Event:
        """Set when the state is rebuilt from the journal and this controller leads."""

    @property
    def progress(self) -> Mapping[str, Mapping[str, Any]]:
        """Job id (or ``import-<model>``) to its last progress line."""

    @property
    def stats(self) -> Mapping[str, Any]: ...

    async def submit(self, event: Event) -> Any:
        """Return when the event is journalled. Raises what ``control.core.check`` raises."""


class JournalPort(Protocol):
    def read(self, after: int = 0, limit: int = 10_000) -> list[tuple[int, Event]]: ...

    def tail(self, limit: int = 200) -> list[tuple[int, Event]]: ...

    def decisions(self, first: int, last: int) -> Mapping[int, tuple[str, ...]]: ...


class LedgerPort(Protocol):
    def usage(
        self, by: Sequence[str], since_us: int = 0, until_us: int = 0, tenant: str = ""
    ) -> Sequence[Any]: ...

    def forwarded(self, since_us: int = 0, until_us: int = 0) -> Sequence[Any]: ...

    def verify(self, spool_dir: Path, count_engines: Callable[[], Sequence[EngineCount]]) -> Any: ...

    def find(self, name: str) -> Settlement | None: ...

    def postings(self, entry: str) -> Sequence[Posting]: ...

    def served_by(self, release: str, since_us: int = 0) -> Sequence[Any]: ...

    def give_feedback(self, settlement: Settlement, good: bool, at_us: int) -> bool: ...

    def feedback(self, request: str) -> bool | None: ...


class RegistryPort(Protocol):
    def release(self, name: str) -> Release | None: ...


class StorePort(Protocol):
    @property
    def journal(self) -> JournalPort: ...

    @property
    def ledger(self) -> LedgerPort: ...

    @property
    def registry(self) -> RegistryPort: ...

    @property
    def files(self) -> FileRecords: ...

    @property
    def batches(self) -> BatchRecords: ...


@dataclass(frozen=True, slots=True)
class Sample:
    at_us: int
    tokens_per_s: float
    requests_per_s: float


@dataclass(slots=True)
class ApiContext:
    """``stop`` ends the controller and everything that it runs; ``forecast`` rehearses a factory."""

    runtime: RuntimePort
    store: StorePort
    settings: Settings
    paths: Paths
    factory_file: Path
    now_us: Callable[[], int]
    started_us: int
    stop: Callable[[], None]
    forecast: Callable[[State, Factory, Profile | None], Mapping[str, Any]] = rehearse_plain
    pid: int = field(default_factory=os.getpid)
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    shelf: FileShelf = field(init=False)

    def __post_init__(self) -> None:
        self.shelf = FileShelf(self.store.files, self.paths.artifacts, self.now_us)

    @property
    def state(self) -> State:
        return self.runtime.state

    @property
    def url(self) -> str:
        """Where clients reach the gateway, from its processes' own files; empty while none is up."""
        return gateway_url(self.paths.run, self.now_us())


def read_json(path: Path) -> dict[str, Any]:
    """One of our own small JSON files; empty when it is absent or half written."""
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return {}
    return found if isinstance(found, dict) else {}


async def sample_throughput(context: ApiContext) -> None:
    """Fill the ring buffer of the sparkline until cancelled."""
    tokens, requests, before_us = _totals(context)
    while True:
        await asyncio.sleep(SAMPLE_INTERVAL_S)
        now_tokens, now_requests, now_us = _totals(context)
        seconds = max(now_us - before_us, 1) / 1e6
        context.samples.append(
            Sample(
                now_us,
                max(now_tokens - tokens, 0) / seconds,
                max(now_requests - requests, 0) / seconds,
            )
        )
        tokens, requests, before_us = now_tokens, now_requests, now_us


def _totals(context: ApiContext) -> tuple[int, int, int]:
    stats = context.runtime.stats
    tokens = int(stats.get("input_tokens", 0)) + int(stats.get("output_tokens", 0))
    return tokens, int(stats.get("requests", 0)), context.now_us()
