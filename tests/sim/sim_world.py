"""A seeded factory whose floor lies, dies and repeats itself, to drive ``control.step`` with.

The floor keeps the truth (which processes are alive); the checkers compare it with the state after every
event. Time is virtual. Everything is drawn from one ``random.Random(seed)``, so a failing seed replays.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import replace
from typing import Any

from sim_checkers import Checkers
from sim_floor import SECOND, Floor, sha

from tokenmill.control.core import check, replay, resume, step
from tokenmill.control.snapshot import dump, load
from tokenmill.control.state import EMPTY, State
from tokenmill.domain import effects as fx
from tokenmill.domain import events as ev
from tokenmill.domain.codec import decode_event, encode_event
from tokenmill.domain.errors import TokenmillError
from tokenmill.domain.factory import (
    Accelerator,
    CanaryPlan,
    CanaryStep,
    Deployment,
    Factory,
    JobTemplate,
    Line,
    Model,
    Node,
    Peer,
    Project,
    Quota,
    Resources,
    Site,
    Station,
    Tenant,
)
from tokenmill.domain.outcomes import Outcomes
from tokenmill.domain.work import JobResult, JobSpec, Key, Tuning

START = 1_800_000_000 * SECOND
GB = 1 << 30


class World:
    """One seeded run: ``run()`` is chaos, ``settle()`` is what comes after the faults have stopped."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = START
        self.state: State = EMPTY
        self.journal: list[ev.Event] = []
        self.mail: list[tuple[int, int, Any]] = []
        self.sequence = 0
        self.faults = True
        self.frailty = self.rng.choice((0.1, 0.1, 0.6))  # how often an engine fails to start
        self.floor = Floor(self)
        self.seen: dict[str, int] = {}
        self.serial = 0
        self.checkers = Checkers(self)
        self.snapshot: tuple[int, dict[str, Any]] = (0, dump(EMPTY))

    # The world's clock and post.

    def later(self, seconds: float, what: Any) -> None:
        self.sequence += 1
        heapq.heappush(self.mail, (self.now + int(seconds * SECOND), self.sequence, what))

    def post(self, event: ev.Event, seconds: float) -> None:
        """Deliver a report after a while; faults may double it, or hold it up past others."""
        if self.faults and self.rng.random() < 0.1:
            seconds += self.rng.uniform(0, 20)
        self.later(seconds, event)
        if self.faults and self.rng.random() < 0.1:
            self.later(seconds + self.rng.uniform(0, 30), event)

    # The controller.

    def tell(self, event: ev.Event) -> None:
        """One event through the core, as the runtime does it: step, journal, carry out."""
        event = replace(event, at_us=self.now) if event.at_us == 0 else event
        kind = type(event).__name__
        before = self.state
        after, effects = step(before, event)
        assert step(before, event) == (after, effects), "step is a function"
        if after is before:
            assert not effects
            self.seen.setdefault(kind, 0)
            return
        self.seen[kind] = self.seen.get(kind, 0) + 1
        self.journal.append(decode_event(*encode_event(event)))
        self.state = after
        self.checkers.after(before, event, after, effects)
        if self.faults and self.rng.random() < 0.02:
            self.crash()
            return
        self.carry_out(effects)

    def carry_out(self, effects: tuple[fx.Effect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, fx.WakeAt):
                self.sequence += 1  # not by ``later``: rounding down would wake a microsecond too early
                heapq.heappush(self.mail, (max(self.now, effect.at_us), self.sequence, ev.Tick(0)))
            elif isinstance(effect, fx.ChargeWork):
                self.checkers.charged(effect)
            else:
                self.floor.carry_out(effect)

    def crash(self) -> None:
        """Die between the journal and the effects; what was in the post is lost. Then start again."""
        self.mail = [item for item in self.mail if callable(item[2]) or self.rng.random() < 0.5]
        heapq.heapify(self.mail)
        at, body = self.snapshot
        rebuilt, redo = replay(load(body), self.journal[at:])
        assert rebuilt == self.state, "the state rebuilt from the journal is the state"
        self.state = rebuilt
        self.carry_out(redo)
        if self.rng.random() < 0.5:
            self.snapshot = (len(self.journal), dump(self.state))
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
                getattr(self, self.rng.choice(ACTIONS))()
            else:
                self.deliver()

    def deliver(self) -> None:
        at, _, what = heapq.heappop(self.mail)
        self.now = max(self.now, at)
        if callable(what):
            what()
        else:
            self.tell(what)

    def begin(self) -> None:
        self.tell(ev.ControllerStarted(self.now, 1))
        for number in range(self.rng.randrange(2, 5)):
            count = self.rng.choice((0, 2, 4))
            node = Node(
                id=f"n{number}",
                site=self.rng.choice(("here", "there")),
                rack=f"rack{number % 2}",
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

    def factory(self) -> Factory:
        rng = self.rng
        small = Resources(cpu_millis=1000, memory_bytes=2 * GB)
        gpu = Resources(cpu_millis=500, memory_bytes=2 * GB, accelerators=1)
        chat = Deployment(
            "chat",
            model=rng.choice(("small", "other")),
            replicas=rng.choice((1, 2)),
            max_replicas=rng.choice((1, 3)),
            slots=rng.choice((2, 4)),
            context_tokens=rng.choice((2048, 4096)),
            resources=rng.choice((small, gpu)),
        )
        tuned = Deployment("tuned", line="tickets", replicas=rng.choice((1, 2)), resources=small)
        plan = CanaryPlan(
            (CanaryStep(100, 20 * SECOND, shadow=True), CanaryStep(100, 30 * SECOND)),
            min_requests=20,
            patience_us=120 * SECOND,
        )
        chat, tuned = (replace(d, canary=rng.choice((None, plan))) for d in (chat, tuned))
        away = Deployment("away", model="giant", engine="openai", url="https://far.example:8443/v1")
        deployments = [d for d in (chat, tuned, away) if rng.random() < 0.9]
        stations = (
            Station("intake", "intake", params={"path": "rows.jsonl"}, resources=small),
            Station("curate", "curate", ("intake",), {"max_rows": rng.choice((100, 200))}, small),
            Station("tune", "tune", ("curate",), {"rank": 8}, rng.choice((small, gpu))),
            Station("evaluate", "evaluate", ("tune", "curate"), {"metric": "exact_match"}, small),
            Station("gate", "gate", ("evaluate",), {"against": "both", "min_items": 30}),
            Station("pack", "pack", ("gate",), {}, small),
        )
        return Factory(
            name="sim",
            sites=(Site("here", "EU"), Site("there", "US")),
            tenants=(
                Tenant(
                    "alpha", (Project("main"),), Quota(requests_per_minute=60), priority=rng.choice((0, 1))
                ),
                Tenant(
                    "beta", (Project("main"),), jurisdictions=("EU",) if rng.random() < 0.5 else (), share=2
                ),
            ),
            models=(
                Model("small", rng.choice(("package:a", "package:b"))),
                Model("other", "hf://o/other", digest=sha("hf://o/other")),
                Model("giant", "hf://g/giant"),
            ),
            deployments=tuple(deployments),
            lines=(Line("tickets", "alpha", "main", "small", stations),),
            jobs=tuple(
                JobTemplate(f"burn{i}", "beta", "main", ("true",), gpu, workers=2)
                for i in range(rng.randrange(2))
            ),
            peers=(Peer("neighbour", "https://peer.example", "EU", "env:KEY", ("chat", "far")),),
        )

    def new(self, prefix: str) -> str:
        self.serial += 1
        return f"{prefix}-w{self.serial:04d}"

    def ask(self, event: ev.Event) -> None:
        """What the API does, which checks first; and what it would refuse, to see that it is."""
        before = self.state
        try:
            check(before, event)
        except TokenmillError:
            assert step(before, event) == (before, ())
        self.tell(event)

    def submit_job(self) -> None:
        rng = self.rng
        spec = JobSpec(
            "command",
            rng.choice(("alpha", "beta", "nobody")),
            "main",
            ("true",),
            resources=Resources(rng.choice((500, 3000)), GB, rng.choice((0, 0, 1, 2))),
            workers=rng.choice((1, 1, 2, 3)),
            priority=rng.choice((0, 0, 5)),
            timeout_us=rng.choice((20, 600)) * SECOND,
            max_attempts=rng.choice((1, 3)),
        )
        self.ask(ev.JobSubmitted(self.now, self.new("j"), spec))

    def cancel_job(self) -> None:
        if self.state.jobs:
            self.ask(ev.JobCancelled(self.now, self.rng.choice(sorted(self.state.jobs))))

    def submit_run(self) -> None:
        self.ask(
            ev.RunSubmitted(
                self.now, self.new("run"), "tickets", force=self.rng.choice(("", "", "curate", "nothing"))
            )
        )

    def cancel_run(self) -> None:
        if self.state.runs:
            self.ask(ev.RunCancelled(self.now, self.rng.choice(sorted(self.state.runs))))

    def pause_run(self) -> None:
        if self.state.runs:
            name = self.rng.choice(sorted(self.state.runs))
            kind = ev.RunResumed if self.state.runs[name].paused else ev.RunPaused
            self.ask(kind(self.now, name, "ada"))

    def rerun(self) -> None:
        if self.state.runs:
            parent, begin = (
                self.rng.choice(sorted(self.state.runs)),
                self.rng.choice(("", "tune", "evaluate")),
            )
            self.ask(ev.RunSubmitted(self.now, self.new("run"), "tickets", force=begin, parent=parent))

    def fine_tune(self) -> None:
        """A tenant asks for a model of its own, or wants one no more."""
        if self.state.tunings and self.rng.random() < 0.5:
            self.ask(ev.TuningDropped(self.now, self.rng.choice(sorted(self.state.tunings))))
            return
        lines = [line for line in self.state.factory.lines if line.name == "tickets"]
        if lines:
            name = self.new("ftjob")
            line = replace(lines[0], name=f"ft/{name}", tenant=self.rng.choice(("alpha", "beta", "nobody")))
            own = Deployment(
                f"ft:small:{name}", line=line.name, resources=Resources(500, GB), tenants=("alpha",)
            )
            self.ask(ev.TuningRequested(self.now, Tuning(name, line, own, self.now), self.new("run")))

    def apply(self) -> None:
        stale = self.rng.random() < 0.2
        self.ask(ev.SpecApplied(self.now, self.state.version - (1 if stale else 0), self.factory()))

    def roll_back(self) -> None:
        if self.state.aliases:
            name = self.rng.choice(sorted(self.state.aliases))
            to = self.rng.choice(["", *sorted(self.state.releases)])
            self.ask(ev.RollbackRequested(self.now, name, to))

    def steer(self) -> None:
        if self.state.aliases:
            name = self.rng.choice(sorted(self.state.aliases))
            action = self.rng.choice(("hold", "resume", "resume", "promote", "fly"))
            release = self.rng.choice(["", *sorted(self.state.releases)])
            self.ask(ev.AliasSteered(self.now, name, action, release))

    def recall(self) -> None:
        if self.state.releases and self.rng.random() < 0.2:
            self.ask(ev.ReleaseRecalled(self.now, self.rng.choice(sorted(self.state.releases))))

    def outcomes(self) -> None:
        """Both releases of a canary are seen, for a while; sometimes the candidate fails."""
        for _ in range(self.rng.randrange(1, 5)):
            for name, alias in sorted(self.state.aliases.items()):
                found = alias.canary
                if found is None:
                    continue
                bad = self.rng.random() < 0.1
                mine = Outcomes(30, 20 if bad else 0, ((20, 10 if bad else 30),))
                self.ask(ev.OutcomesReported(self.now, name, found.champion, Outcomes(30, 0, ((20, 30),))))
                self.ask(ev.OutcomesReported(self.now, name, found.candidate, mine))
            self.now += self.rng.choice((SECOND, 31 * SECOND))
            self.tell(ev.Tick(self.now))

    def key(self, tenant: str = "") -> None:
        name = self.new("key")
        tenant = tenant or self.rng.choice(("alpha", "beta", "nobody"))
        self.ask(ev.KeyCreated(self.now, Key(name, sha(name), tenant, "main")))

    def disable_key(self) -> None:
        self.ask(ev.KeyDisabled(self.now, self.rng.choice(sorted(self.state.keys))))

    def lease(self) -> None:
        amount = self.rng.choice((0, 1))
        self.ask(
            ev.LeaseRequested(
                self.now, self.new("l"), "alpha", "main", 500, GB, amount, self.rng.choice((10, 60)) * SECOND
            )
        )

    def give_lease_back(self) -> None:
        if self.state.leases:
            self.ask(ev.LeaseReleased(self.now, self.rng.choice(sorted(self.state.leases))))

    def load(self) -> None:
        for _ in range(self.rng.randrange(1, 4)):
            full = self.rng.choice((0, 0, 2))
            self.ask(
                ev.LoadReported(self.now, self.rng.choice(("chat", "gone")), self.rng.randrange(20), full)
            )
            self.now += self.rng.choice((SECOND, 130 * SECOND))

    def lose_node(self) -> None:
        node = self.rng.choice(sorted(self.floor.nodes))
        if node not in self.floor.down:
            self.floor.down.add(node)
            self.tell(ev.NodeLost(self.now, node, "no heartbeat"))

    def return_node(self) -> None:
        for node in sorted(self.floor.down)[:1]:
            self.come_back(node)

    def come_back(self, node: str) -> None:
        self.floor.down.discard(node)
        self.tell(ev.NodeJoined(self.now, self.floor.nodes[node]))
        self.floor.adopt(self.state)
        self.carry_out(
            tuple(e for e in resume(self.state, self.now) if isinstance(e, fx.StopJob | fx.StopReplica))
        )

    def kill_engine(self) -> None:
        alive = [p for _, p in sorted(self.floor.processes.items()) if p.alive]
        if alive:
            self.floor.exit(self.rng.choice(alive), 137, "it was killed")

    def lie(self) -> None:
        """A report about something that never was, or is long over."""
        name = self.rng.choice(["r-999999", *sorted(self.state.replicas)])
        replica = self.state.replicas.get(name)
        process = self.floor.processes.get((name, 0))
        if replica is None or (process is not None and process.last is not None):
            self.tell(ev.ReplicaExited(self.now, name, "an echo"))
        self.tell(ev.JobExited(self.now, "j-999999", 1, 0))

    def result(self, spec: JobSpec) -> JobResult:
        """What a station's worker leaves: outputs that depend on its inputs only."""
        params = spec.params
        made = sha(str((params["kind"], params["params"], params["inputs"])))
        if params["kind"] == "tune":
            return JobResult({"adapter_gguf": made})
        if params["kind"] == "pack":
            return JobResult({"release": made}, evidence={"manifest_digest": made})
        if params["kind"] != "evaluate":
            return JobResult({"rows": sha(str(params["kind"]))})
        good = self.rng.random() < 0.6
        pairs = {
            "both": 60,
            "neither": 20,
            "candidate_only": 18 if good else 9,
            "reference_only": 2 if good else 11,
        }
        by_name = {"base": pairs, "champion": dict(pairs) if params["champion"] else None}
        if self.rng.random() < 0.1:
            by_name["base"] = None
        return JobResult(
            {"predictions": made}, evidence={"metric": "exact_match", "n": 100, "pairs": by_name}
        )

    def settle(self) -> None:
        """Faults stop: nodes come back, nobody kills anything, and time passes until the post is empty."""
        self.faults = False
        for node in sorted(self.floor.down):
            self.come_back(node)
        for name, run in sorted(self.state.runs.items()):
            if run.paused and not run.status.ended:
                self.tell(ev.RunResumed(self.now, name))
        self.crash()
        for _ in range(4000):
            if not self.mail:
                break
            self.deliver()
        self.checkers.settled()


ACTIONS = (
    *("submit_job",) * 6,
    *("submit_run",) * 3,
    *("load",) * 2,
    "cancel_job",
    "cancel_run",
    "apply",
    "roll_back",
    "steer",
    "pause_run",
    "rerun",
    *("fine_tune",) * 2,
    "recall",
    *("outcomes",) * 4,
    "key",
    "disable_key",
    *("lease",) * 2,
    "give_lease_back",
    "lose_node",
    *("return_node",) * 2,
    "kill_engine",
    "lie",
)
