"""What waits for the runtime: events with whoever brought them, and the loop's few options."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tokenmill.domain.errors import NotLeaderError, ResourceError, TokenmillError
from tokenmill.domain.events import Event
from tokenmill.domain.work import Release
from tokenmill.floor.ports import Clock


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """``holder`` names this factory's controller in the lease: the same name takes its lease over."""

    holder: str
    home: str = ""  # id of the data directory that the store belongs to
    queue_events: int = 10_000
    answer_us: int = 20_000_000  # how long who brings an event waits for a store that is away
    leader_ttl_us: int = 10_000_000
    snapshot_every: int = 2_000
    ingest_every_us: int = 500_000
    openlineage: str = ""  # where events about runs go: file:PATH or a URL
    steady_us: Clock | None = None  # time that nobody can set, to see by it that the clock was
    sign: Callable[[Release], None] | None = None  # bless a release before it is recorded


@dataclass(slots=True)
class Item:
    event: Event
    checked: bool  # refuse what ``control.check`` refuses, instead of ignoring it
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    refusal: TokenmillError | None = None
    withdrawn: bool = False  # nobody waits for it any more, and it is to be as though nobody had asked

    def tell(self) -> None:
        """Let whoever brought the event go on."""
        if self.done.done():
            return
        if self.refusal is not None:
            self.done.set_exception(self.refusal)
        else:
            self.done.set_result(None)


def fail(waiting: Sequence[Item], error: BaseException) -> None:
    """Tell everyone who waits that it came to nothing."""
    for item in waiting:
        if not item.done.done():
            item.done.set_exception(error)
            item.done.exception()  # whoever waited may be gone


def too_many(limit: int, troubles: Mapping[str, str]) -> ResourceError:
    """What whoever brings an event is told while the queue is full."""
    return ResourceError(
        f"{limit} events wait for the journal",
        expected="fewer than TOKENMILL_QUEUE_EVENTS",
        fix=" ".join(("Retry in some seconds.", *troubles.values())),
    )


def unanswered(item: Item, troubles: Mapping[str, str], *, taken: bool) -> ResourceError:
    """What whoever brought an event is told when the store is away for long. One that is being written down
    may already be, without an answer; one that still waits is withdrawn."""
    item.withdrawn = not taken
    return ResourceError(
        "the store has not answered; what was asked may still be done" if taken else "nothing was done",
        expected="a store that takes events",
        fix=" ".join(("Look before you ask again." if taken else "Ask again later.", *troubles.values())),
    )


def first_of(errors: BaseExceptionGroup[NotLeaderError]) -> NotLeaderError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, NotLeaderError)
    return error
