"""The loop that joins journal, control core and floor: events in, step, effects out.

Order is everything here: an event is journalled before its effects are carried out and before whoever
brought it is told. When the store is away, the loop waits with what it has, in a bounded queue, and nothing
is carried out. When another controller has taken the lease, the loop ends at once; what it had not
journalled never happened.

What outlives the journal's horizon (charges, releases) is posted before the next snapshot, and again for
every event that is replayed at a start; the store takes each only once.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tokenmill.control.core import check, replay, resume, step
from tokenmill.control.snapshot import dump, load
from tokenmill.control.state import EMPTY, State
from tokenmill.control.told import told
from tokenmill.control.triggers import last_started_us, read_until_us
from tokenmill.domain.effects import ChargeWork, Effect, RecordRecall, RecordRelease, WakeAt
from tokenmill.domain.errors import NotLeaderError, StoreError, TokenmillError
from tokenmill.domain.events import ControllerStarted, Event, NodeJoined, NodeLost, SpecApplied, Tick
from tokenmill.floor.books import Books
from tokenmill.floor.clock import LOOKED_BACK, ClockWatch
from tokenmill.floor.inbox import Item, RuntimeOptions, fail, first_of, too_many, unanswered
from tokenmill.floor.line_watch import LineWatch
from tokenmill.floor.load import LoadWatch, OutcomeWatch
from tokenmill.floor.openlineage import LineageSink
from tokenmill.floor.ports import Clock, Floor
from tokenmill.floor.trainers import TrainerWatch
from tokenmill.store.opening import Store

log = logging.getLogger(__name__)

BATCH = 512  # events of one transaction
TICK_US = 5_000_000  # a Tick comes at least so often, because clocks jump and timers may be forgotten
MAX_TIMERS = 100_000
RETRY_S = (0.1, 5.0)  # first and longest wait for a store that is away


class Runtime:
    """One controller's loop. ``run`` returns after ``stop``, or raises ``NotLeaderError``."""

    def __init__(
        self,
        store: Store,
        floor: Floor,
        books: Books,
        load_watch: LoadWatch,
        now_us: Clock,
        options: RuntimeOptions,
        line_watch: LineWatch | None = None,
    ) -> None:
        self.state: State = EMPTY
        self.epoch = 0
        self.seq = 0
        self.ready = asyncio.Event()
        self.troubles: dict[str, str] = {}  # part -> what is wrong with it now
        self._store = store
        self._floor = floor
        self._books = books
        self._load_watch = load_watch
        self._lineage = LineageSink(options.openlineage)
        self._line_watch = line_watch
        self._outcome_watch = OutcomeWatch(load_watch.folder)
        self._trainer_watch = TrainerWatch()
        self._now_us = now_us
        self._clock = ClockWatch(now_us, options.steady_us or now_us)
        self._options = options
        self._queue: asyncio.Queue[Item] = asyncio.Queue(options.queue_events)
        self._batch: list[Item] = []
        self._acting = asyncio.Lock()
        self._timers: list[int] = []
        self._timer_set = asyncio.Event()
        self._stop = asyncio.Event()
        self._closing = False
        self._snapshot_seq = 0

    # What the console reads.

    @property
    def progress(self) -> Mapping[str, Mapping[str, Any]]:
        return self._floor.progress()

    @property
    def stats(self) -> Mapping[str, Any]:
        """Counters since this controller started, and how things stand."""
        account = self._floor.energy()
        return {
            **self._books.stats,
            "queue": self._queue.qsize(),
            "seq": self.seq,
            "lineage_lost": self._lineage.lost,
            "lineage_problem": self._lineage.problem,
            "troubles": dict(sorted(self.troubles.items())),
            "energy_source": account.source(),
            "watts": account.watts(),
            "answers": self._load_watch.answers(),
        }

    async def submit(self, event: Event) -> None:
        """Return when ``event`` is journalled. Raises what ``control.core.check`` raises, and
        ``ResourceError`` when too many events wait, or the store is away for long."""
        item = Item(event, checked=True)
        if self._queue.full():
            raise too_many(self._queue.maxsize, self.troubles)
        self._queue.put_nowait(item)
        await asyncio.wait((item.done,), timeout=self._options.answer_us / 1e6)
        if not item.done.done():
            raise unanswered(item, self.troubles, taken=item in self._batch)
        item.done.result()

    async def _report(self, event: Event) -> None:
        """The floor's way in. Waits when the queue is full: what happened is never dropped."""
        item = Item(event, checked=False)
        await self._queue.put(item)
        await item.done

    def stop(self) -> None:
        self._stop.set()

    async def run(self, first: Sequence[Event] = ()) -> None:
        """Lead the factory until ``stop``: take the lease, rebuild the state, take over the floor, go on.

        ``first`` are events to journal at the start (a factory file that was given to ``up``).
        """
        self.epoch = await self._until_done(
            "store",
            self._store.leader.acquire,
            self._options.holder,
            self._options.leader_ttl_us,
            self._now_us(),
            self._options.home,
        )
        try:
            await self._rebuild()
            async with asyncio.TaskGroup() as group:
                running = [
                    group.create_task(part, name=name)
                    for name, part in (
                        ("events", self._work()),
                        ("leader", self._renew()),
                        ("timers", self._wake()),
                        ("ledger", self._ingest()),
                        ("load", self._watch_load()),
                        ("lineage", self._lineage.send_forever()),
                    )
                ]
                await self._begin(first)
                await self._stop.wait()
                await self._end()
                for task in running:
                    task.cancel()
        except* NotLeaderError as errors:
            self._closing = True
            self._fail_waiting(errors.exceptions[0])
            raise first_of(errors) from None
        else:
            await asyncio.to_thread(self._store.leader.release, self.epoch)

    async def _begin(self, first: Sequence[Event]) -> None:
        await self._floor.start(self._report, lambda: self.state)
        # What an earlier controller left is taken over before anything new is started beside it.
        await self._report(ControllerStarted(self._now_us(), self.epoch))
        await self._floor.adopt(self.state)
        if self.state.version:
            for event in self._inventory():
                await self._report(event)
        async with self._acting:  # what was adopted may end now; it must not be started for a state gone by
            for effect in resume(self.state, self._now_us()):
                await self._carry_out(effect)
        for event in first:
            await self._report(event)
        self.ready.set()
        log.info("controller leads with epoch %d from event %d", self.epoch, self.seq)

    def _inventory(self) -> list[Event]:
        """The floor's nodes as the factory file names them now; a name that one had before is gone."""
        now_us, nodes = self._now_us(), self._floor.inventory(self.state.factory)
        here = {node.id for node in nodes}
        gone = [
            NodeLost(now_us, name, "the floor has no node of this name")
            for name, held in sorted(self.state.nodes.items())
            if name not in here and not held.lost
        ]
        return [*gone, *(NodeJoined(now_us, node) for node in nodes)]

    async def _end(self) -> None:
        """A clean stop: end what runs, tell the journal, settle what was spooled, leave a snapshot."""
        self._closing = True
        await self._floor.close(stop_all=True)
        with contextlib.suppress(StoreError):
            await asyncio.to_thread(self._books.pass_over, self.state.factory, self._now_us())
        await self._snapshot()

    async def _rebuild(self) -> None:
        found = await self._until_done("store", self._store.journal.latest_snapshot)
        if found is not None:
            self.seq, body = found
            self._snapshot_seq = self.seq
            self.state = load(body)
        after = await self._until_done("store", lambda: list(self._store.journal.replay(self.seq)))
        self.state, owed = replay(self.state, (event for _, event in after))
        self.seq = after[-1][0] if after else self.seq
        self._clock.follow(await self._until_done("store", self._store.journal.tail, LOOKED_BACK))
        for effect in owed:
            await self._carry_out(effect)
        log.info("state rebuilt up to event %d, %d charges and releases looked at again", self.seq, len(owed))

    async def _work(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            async with self._acting:
                await self._process(batch)

    async def _process(self, batch: list[Item]) -> None:
        """Step through a batch, journal what changed in one transaction, then act."""
        batch = [*(Item(event, False) for event in self._clock.look()), *batch]
        self._batch = batch
        state, changed, decided, effects = self._step(batch)
        if changed:
            await self._append(changed, decided)
        self._lineage.observe(self.state, state, self._now_us())
        self.state = state
        for item in batch:
            item.tell()
        for effect in effects:
            await self._carry_out(effect)
        if any(isinstance(event, SpecApplied) for event in changed):
            # The file may give this machine another name, site or size.
            await self._process([Item(event, False) for event in self._inventory()])
        if self.seq - self._snapshot_seq >= self._options.snapshot_every:
            await self._snapshot()

    def _step(self, batch: list[Item]) -> tuple[State, list[Event], list[tuple[str, ...]], list[Effect]]:
        """The state after a batch, the events that changed it, what was decided at each, and what to do."""
        state = self.state
        changed: list[Event] = []
        decided: list[tuple[str, ...]] = []
        effects: list[Effect] = []
        for item in batch:
            if item.withdrawn:
                continue
            if item.checked:
                try:
                    check(state, item.event)
                except TokenmillError as error:
                    item.refusal = error
                    continue
            following, wanted = step(state, item.event)
            if following is not state:
                changed.append(item.event)
                decided.append(told(state, item.event, following, wanted))
            state = following
            effects += wanted
        return state, changed, decided, effects

    async def _append(self, events: Sequence[Event], decided: Sequence[Sequence[str]]) -> None:
        """Write events, waiting for a store that is away. A commit whose answer was lost is not repeated."""
        wait_s = RETRY_S[0]
        while True:
            try:
                self.seq = await asyncio.to_thread(self._append_once, events, decided)
            except NotLeaderError:
                raise
            except (StoreError, OSError) as error:
                self._worse("store", error)
            else:
                self._better("store")
                return
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, RETRY_S[1])

    def _append_once(self, events: Sequence[Event], decided: Sequence[Sequence[str]]) -> int:
        if "store" in self.troubles and len(self._store.journal.read(self.seq, len(events))) == len(events):
            return self.seq + len(events)  # only this epoch can have written them
        return self._store.journal.append(events, self.epoch, decided)

    async def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, ChargeWork | RecordRelease | RecordRecall):
            await self._post(effect)
        elif self._closing:
            pass  # the next controller's ``resume`` asks again for whatever is still wanted
        elif isinstance(effect, WakeAt):
            self._set_timer(effect.at_us)
        else:
            await self._floor.carry_out(effect)

    async def _post(self, effect: ChargeWork | RecordRelease | RecordRecall) -> None:
        if isinstance(effect, ChargeWork):
            await self._until_done("store", self._books.charge, self.state.factory, effect, self._now_us())
        elif isinstance(effect, RecordRecall):
            await self._until_done("store", self._store.registry.record_recall, effect.recall)
        else:
            if self._options.sign is not None:  # before anything may load it
                await self._until_done("signatures", self._options.sign, effect.release)
            await self._until_done("store", self._store.registry.record_release, effect.release)

    async def _snapshot(self) -> None:
        body = await asyncio.to_thread(dump, self.state)
        with contextlib.suppress(StoreError):  # the next one will do; the journal holds everything
            await asyncio.to_thread(self._store.journal.save_snapshot, self.seq, body)
            self._snapshot_seq = self.seq
            await asyncio.to_thread(self._store.journal.compact)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._options.leader_ttl_us / 3e6)
            try:
                await asyncio.to_thread(self._store.leader.renew, self.epoch, self._now_us())
                self._better("lease")
            except NotLeaderError:
                raise
            except (StoreError, OSError) as error:
                self._worse("lease", error)

    def _set_timer(self, at_us: int) -> None:
        if at_us not in self._timers and len(self._timers) < MAX_TIMERS:
            heapq.heappush(self._timers, at_us)
            self._timer_set.set()

    async def _wake(self) -> None:
        while True:
            now_us = self._now_us()
            wait_us = min(TICK_US, self._timers[0] - now_us) if self._timers else TICK_US
            self._timer_set.clear()
            with contextlib.suppress(TimeoutError):
                # Not ``wait_for``: that of Python 3.11 can swallow the cancellation that ends this task.
                async with asyncio.timeout(max(0.0, wait_us / 1e6)):
                    await self._timer_set.wait()
                continue  # an earlier timer may have been set
            now_us = self._now_us()
            while self._timers and self._timers[0] <= now_us:
                heapq.heappop(self._timers)
            await self._report(Tick(now_us))

    async def _ingest(self) -> None:
        while True:
            await asyncio.sleep(self._options.ingest_every_us / 1e6)
            try:
                await asyncio.to_thread(self._books.pass_over, self.state.factory, self._now_us())
                self._better("ledger")
            except (TokenmillError, OSError) as error:
                self._worse("ledger", error)
                await asyncio.sleep(1.0)

    async def _watch_load(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            now_us = self._now_us()
            found: list[Event] = [*await asyncio.to_thread(self._outcome_watch.look, now_us)]
            found += await asyncio.to_thread(self._load_watch.look, now_us)
            found += self._trainer_watch.look(self.progress, self.state.jobs, now_us)
            if self._line_watch is not None:
                lines, read = self.state.factory.lines, partial(read_until_us, self.state)
                found += await asyncio.to_thread(self._line_watch.look, lines, now_us, self._opinions, read)
            for event in found:
                await self._report(event)

    def _opinions(self, line: str) -> Sequence[tuple[str, int, int]]:
        return self._books.opinions(self.state.factory, line, last_started_us(self.state, line))

    async def _until_done(self, part: str, call: Any, *arguments: Any) -> Any:
        """Repeat a store call until the store answers. ``NotLeaderError`` is an answer."""
        wait_s = RETRY_S[0]
        while True:
            try:
                result = await asyncio.to_thread(call, *arguments)
            except NotLeaderError:
                raise
            except (StoreError, OSError) as error:
                self._worse(part, error)
            else:
                self._better(part)
                return result
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, RETRY_S[1])

    def _worse(self, part: str, error: Exception) -> None:
        if self.troubles.get(part) != str(error):
            log.error("%s: %s", part, error)
        self.troubles[part] = str(error)

    def _better(self, part: str) -> None:
        if self.troubles.pop(part, None) is not None:
            log.info("%s works again", part)

    def _fail_waiting(self, error: BaseException) -> None:
        fail([*self._batch, *(self._queue.get_nowait() for _ in range(self._queue.qsize()))], error)
