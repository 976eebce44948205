"""A seeded factory whose floor lies, dies and repeats itself, to drive ``control.step`` with.

The floor keeps the truth (which processes are alive); the checkers compare it with the state after every
event. Time is virtual. Everything is drawn from one ``random.Random(seed)``, so a failing seed replays.

A crash loses the state. One in ``REPLAYS``, and every one of a thorough world, is rebuilt from the last
snapshot and the journal and compared; the others go on with what that would give.
"""

from __future__ import annotations

import heapq
import random
from typing import Any

from tokenmill.control.core import RECORDED, replay, resume, step
from tokenmill.control.snapshot import dump, load
from tokenmill.control.state import EMPTY, State
from tokenmill.domain import effects as fx
from tokenmill.domain import events as ev
from tokenmill.domain.codec import decode_event, encode_event
from tokenmill.domain.factory import Accelerator, Node
from tokenmill.domain.value import replace
from tokenmill.twin.sim.checkers import Checkers
from tokenmill.twin.sim.floor import SECOND, Floor
from tokenmill.twin.sim.people import ACTIONS, POST, STORE, WEATHER, People
from tokenmill.twin.sim.wishes import GB

START = 1_800_000_000 * SECOND
REPLAYS = 8


class World(People):
    """One seeded run: ``run()`` is chaos, ``settle()`` is what comes after the faults have stopped."""

    def __init__(self, seed: int, fail: tuple[int, str] | None = None, *, thorough: bool = False) -> None:
        """``fail`` = (n, "before_commit" or "after_commit"): the n-th write of the journal fails, once.

        ``thorough`` compares what is derived after every event, and replays after every crash.
        """
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = START
        self.skew = 0  # what the controller's clock shows beyond the world's time
        self.state: State = EMPTY
        self.journal: list[ev.Event] = []
        self.handled = 0  # events told to the core, and what happened on the floor that it was not told
        self.mail: list[tuple[int, int, Any]] = []
        self.sequence = 0
        self.faults = True
        self.fail = fail
        self.writes = 0
        faults = (*WEATHER, *POST, *STORE)
        self.swarm = frozenset(name for name in faults if self.rng.random() < 0.6)
        self.actions = [name for name in ACTIONS if name not in WEATHER or name in self.swarm]
        self.frailty = self.rng.choice((0.1, 0.1, 0.6))  # how often an engine fails to start
        self.floor = Floor(self)
        self.seen: dict[str, int] = {}
        self.refusals: set[tuple[str, int]] = set()
        self.met: set[str] = set()  # faults that occurred
        self.serial = 0
        self.checkers = Checkers(self, thorough)
        self.replays = 1 if thorough else REPLAYS
        self.crashes = seed
        self.snapshot = EMPTY
        self.since: tuple[int, int] = (0, 0)  # how much of journal and records the snapshot holds
        self.recorded: list[fx.Effect] = []
        self.ticks = 0  # in the post

    # The world's clock and post.

    def later(self, seconds: float, what: Any) -> None:
        self.send(self.now + int(seconds * SECOND), what)

    def send(self, at_us: int, what: Any) -> None:
        self.ticks += isinstance(what, ev.Tick)
        self.sequence += 1
        heapq.heappush(self.mail, (at_us, self.sequence, what))

    def strikes(self, fault: str, chance: float) -> bool:
        """Whether a fault of this world's swarm occurs now."""
        if not self.faults or fault not in self.swarm or self.rng.random() >= chance:
            return False
        self.met.add(fault)
        return True

    def post(self, event: ev.Event, seconds: float) -> None:
        """Deliver a report after a while; faults lose it, double it, or hold it up past others."""
        if self.strikes("lost", 0.05):
            return
        if self.strikes("late", 0.1):
            seconds += self.rng.uniform(0, 20)
        self.later(seconds, event)
        if self.strikes("double", 0.1):
            self.later(seconds + self.rng.uniform(0, 30), event)

    # The controller.

    def tell(self, event: ev.Event) -> None:
        """One event through the core, as the runtime does it: step, journal, carry out."""
        self.handled += 1
        at_us = (event.at_us or self.now) + self.skew
        if at_us != event.at_us:
            event = replace(event, at_us=at_us)
        kind = type(event).__name__
        before = self.state
        after, effects = step(before, event)
        if after is before:
            assert not effects
            self.seen.setdefault(kind, 0)
            return
        self.writes += 1
        if self.strikes("before_commit", 0.01) or self.fail == (self.writes, "before_commit"):
            # Nothing was written, so nothing is done; who brought the event brings it again.
            self.later(self.rng.uniform(0.1, 5), replace(event, at_us=0))
            return
        self.seen[kind] = self.seen.get(kind, 0) + 1
        self.journal.append(event)
        self.recorded += [effect for effect in effects if isinstance(effect, RECORDED)]
        self.state = after
        self.checkers.after(before, event, after, effects)
        lost_answer = self.strikes("after_commit", 0.01) or self.fail == (self.writes, "after_commit")
        if lost_answer or self.strikes("crash", 0.02):
            self.crash()
            return
        self.carry_out(effects)

    def carry_out(self, effects: tuple[fx.Effect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, fx.WakeAt):
                # Not by ``later``: rounding down would wake a microsecond too early.
                self.send(max(self.now, effect.at_us - self.skew), ev.Tick(0))
            elif isinstance(effect, fx.ChargeWork):
                self.checkers.charged(effect)
            else:
                self.floor.carry_out(effect)

    def crash(self) -> None:
        """Die between the journal and the effects; what was in the post is lost. Then start again."""
        self.mail = [item for item in self.mail if callable(item[2]) or self.rng.random() < 0.5]
        heapq.heapify(self.mail)
        self.ticks = sum(isinstance(item[2], ev.Tick) for item in self.mail)
        self.crashes += 1
        journaled, recorded = self.since
        redo = tuple(self.recorded[recorded:])
        if self.crashes % self.replays == 0:
            written = [decode_event(*encode_event(event)) for event in self.journal[journaled:]]
            rebuilt, done = replay(load(dump(self.snapshot)), written)
            assert rebuilt == self.state, "the state rebuilt from the journal is the state"
            assert done == redo, "what was recorded on the way is said again"
            self.state = rebuilt
        self.carry_out(redo)
        if self.rng.random() < 0.5:
            self.snapshot, self.since = self.state, (len(self.journal), len(self.recorded))
        faults, self.faults = self.faults, False
        self.tell(ev.ControllerStarted(self.now, self.state.epoch + 1))
        self.carry_out(resume(self.state, self.now))
        self.floor.adopt(self.state)
        self.faults = faults

    # The people and the weather.

    def run(self, events: int) -> None:
        self.begin()
        for _ in range(events):
            if self.rng.random() < 0.25 or not self.mail:
                self.now += int(self.rng.uniform(0.01, 5) * SECOND)
                name = self.rng.choice(self.actions)
                self.met.add(name)
                getattr(self, name)()
            else:
                self.deliver()

    def deliver(self) -> None:
        at, _, what = heapq.heappop(self.mail)
        self.now = max(self.now, at)
        if callable(what):
            self.handled += 1
            what()
        elif isinstance(what, ev.Tick):
            self.ticks -= 1
            self.tell(what)
            self.tick_again()
        else:
            self.tell(what)

    def tick_again(self) -> None:
        """The runtime looks at its timers now and then: a clock that was set back delays them only."""
        timers = self.state.index.timers
        if timers and not self.ticks:
            self.send(max(self.now + SECOND, timers[0][0] - self.skew), ev.Tick(0))

    def begin(self) -> None:
        self.tell(ev.ControllerStarted(self.now, 1))
        for number in range(self.rng.randrange(2, 5)):
            count = self.rng.choice((0, 2, 4))
            node = Node(
                id=f"n{number}",
                site=self.rng.choice(("here", "there")),
                rack=f"rack{number % 2}",
                domain=f"rack{number % 2}" if self.rng.random() < 0.5 else "",
                idle_mw=200_000,
                power_mw=1_200_000,
                cpu_millis=self.rng.choice((4000, 16000)),
                memory_bytes=64 * GB,
                accelerators=tuple(
                    Accelerator(f"n{number}/gpu{i}", "h200-sxm", 141 * GB) for i in range(count)
                ),
            )
            self.floor.nodes[node.id] = node
            self.tell(ev.NodeJoined(self.now, node))
        self.tell(ev.SpecApplied(self.now, 0, self.factory()))
        for tenant in ("alpha", "beta"):
            self.key(tenant)

    def settle(self) -> None:
        """Faults stop: nodes come back, nobody kills anything, and time passes until the post is empty."""
        self.faults = False
        for node in sorted(self.floor.down):
            self.come_back(node)
        for name, known in sorted(self.state.nodes.items()):
            if known.cordon and not known.test:
                self.tell(ev.NodeTrusted(self.now, name))
        for name, run in sorted(self.state.runs.items()):
            if run.paused and not run.status.ended:
                self.tell(ev.RunResumed(self.now, name))
        self.crash()
        for _ in range(4000):
            if not self.mail:
                break
            self.deliver()
        self.checkers.settled()
