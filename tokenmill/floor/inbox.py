"""What waits for the runtime: events with whoever brought them, and the loop's few options."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from tokenmill.domain.errors import NotLeaderError, TokenmillError
from tokenmill.domain.events import Event
from tokenmill.domain.work import Release


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """``holder`` names this factory's controller in the lease: the same name takes its lease over."""

    holder: str
    queue_events: int = 10_000
    leader_ttl_us: int = 10_000_000
    snapshot_every: int = 2_000
    ingest_every_us: int = 500_000
    openlineage: str = ""  # where events about runs go: file:PATH or a URL
    sign: Callable[[Release], None] | None = None  # bless a release before it is recorded


@dataclass(slots=True)
class Item:
    event: Event
    checked: bool  # refuse what ``control.check`` refuses, instead of ignoring it
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    refusal: TokenmillError | None = None

    def tell(self) -> None:
        """Let whoever brought the event go on."""
        if self.done.done():
            return
        if self.refusal is not None:
            self.done.set_exception(self.refusal)
        else:
            self.done.set_result(None)


def first_of(errors: BaseExceptionGroup[NotLeaderError]) -> NotLeaderError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, NotLeaderError)
    return error
