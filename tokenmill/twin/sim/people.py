"""What people and the weather do to a simulated factory: each method is one thing that is asked, or happens.

A new event of the core gets its method here and its name in ``ACTIONS``; a batch fails while it never occurs.
Everything is drawn from the world's own random stream.
"""

from __future__ import annotations

from pathlib import Path

from tokenmill.control.core import check, resume, step
from tokenmill.control.state import State
from tokenmill.domain import effects as fx
from tokenmill.domain import events as ev
from tokenmill.domain.codec import digest_of as sha
from tokenmill.domain.errors import TokenmillError
from tokenmill.domain.factory import Deployment, Resources
from tokenmill.domain.outcomes import Outcomes
from tokenmill.domain.value import replace
from tokenmill.domain.work import JobResult, JobSpec, Key, Tuning
from tokenmill.policy.gate import NAMED
from tokenmill.twin.sim.floor import SECOND, Floor
from tokenmill.twin.sim.wishes import GB, Wishes


class People(Wishes):
    """The actions of a ``World``, which says what ``tell`` does."""

    now: int
    state: State
    floor: Floor
    skew: int
    faults: bool
    serial: int
    swarm: frozenset[str]
    refusals: set[tuple[str, int]]

    def tell(self, event: ev.Event) -> None:
        raise NotImplementedError

    def carry_out(self, effects: tuple[fx.Effect, ...]) -> None:
        raise NotImplementedError

    def new(self, prefix: str) -> str:
        self.serial += 1
        return f"{prefix}-w{self.serial:04d}"

    def ask(self, event: ev.Event) -> None:
        """What the API does, which checks first; and what it would refuse, to see that it is."""
        before = self.state
        try:
            check(before, event)
        except TokenmillError as error:
            self.refusals.add(raised_at(error))
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
            priority=rng.choice((0, 0, 5, 200)),
            min_run_us=rng.choice((0, 0, 30)) * SECOND,
            runtime_us=rng.choice((0, 10)) * SECOND,
            preemptible=rng.random() < 0.8,
            timeout_us=rng.choice((20, 600)) * SECOND,
            max_attempts=rng.choice((1, 3)),
        )
        self.ask(ev.JobSubmitted(self.now, self.new("j"), spec))

    def cancel_job(self) -> None:
        if self.state.jobs:
            self.ask(ev.JobCancelled(self.now, self.rng.choice(sorted(self.state.jobs))))

    def submit_run(self) -> None:
        """Somebody asks for a run, or the line's data have grown."""
        if self.rng.random() < 0.3:
            self.ask(ev.LineObserved(self.now, "tickets", (0, self.rng.randrange(300))))
            return
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
        """A plan is applied; sometimes a stale one, or two that were made for the same version."""
        base = self.state.version - (1 if self.rng.random() < 0.2 else 0)
        for _ in range(2 if self.rng.random() < 0.1 else 1):
            self.ask(ev.SpecApplied(self.now, base, self.factory()))

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
        if self.state.keys:
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
                ev.LoadReported(
                    self.now,
                    self.rng.choice(("chat", "gone")),
                    self.rng.choice((0, 0, self.rng.randrange(20))),
                    full,
                    self.rng.choice((0, 1)),
                    self.rng.choice((0, 0, 5 * SECOND)),
                    measured := self.rng.choice((0, 0, 40)),
                    measured // self.rng.choice((1, 2)),
                )
            )
            self.now += self.rng.choice((SECOND, 130 * SECOND))

    def lose_node(self) -> None:
        node = self.rng.choice(sorted(self.floor.nodes))
        if node not in self.floor.down:
            self.floor.down.add(node)
            self.tell(ev.NodeLost(self.now, node, "no heartbeat"))

    def slow_node(self) -> None:
        """A node's GPUs throttle, or are well again."""
        self.floor.slow ^= {self.rng.choice(sorted(self.floor.nodes))}

    def mistake(self) -> None:
        """Somebody asks for what is not there, twice, or out of bounds. Nothing of it may change anything."""
        state, rng, now = self.state, self.rng, self.now
        spec = JobSpec("command", "alpha", "main", ("true",))
        key = Key(self.new("key"), sha("x"), "alpha", "main")
        owing = replace(
            state.factory, tenants=tuple(replace(one, guarantee=-1) for one in state.factory.tenants)
        )
        wrong: list[ev.Event] = [
            ev.JobSubmitted(now, "j-x", replace(spec, workers=0)),
            ev.JobSubmitted(now, "j-x", replace(spec, project="nothing")),
            ev.JobSubmitted(now, "j-x", replace(spec, workers=99_999, resources=Resources(1000, GB, 64))),
            ev.JobCancelled(now, "j-x"),
            ev.JobSubmitted(now, "j-x", replace(spec, resources=Resources(-1, GB))),
            ev.KeyCreated(now, replace(key, scope="all")),
            ev.KeyCreated(now, replace(key, expires_us=1)),
            ev.KeyDisabled(now, "key-x"),
            ev.LeaseRequested(now, "l-x", "alpha", "main", 0, 0, 0, SECOND),
            ev.LeaseReleased(now, "l-x"),
            ev.ReleaseRecalled(now, "release-x"),
            ev.RunSubmitted(now, "run-x", "nothing"),
            ev.RollbackRequested(now, "nothing"),
            ev.AliasSteered(now, "nothing", "hold"),
            ev.TuningDropped(now, "ft-x"),
            ev.NodeCordoned(now, "n-x", "it is slow"),
        ]
        wrong.append(ev.SpecApplied(now, state.version, owing))
        wrong += [ev.JobSubmitted(now, name, spec) for name in sorted(state.jobs)[:1]]
        wrong += [ev.KeyCreated(now, state.keys[name]) for name in sorted(state.keys)[:1]]
        wrong += [
            ev.LeaseRequested(now, name, "alpha", "main", 500, GB, 0, SECOND) for name in sorted(state.leases)
        ]
        wrong += [ev.ReleaseRecalled(now, name) for name in sorted(state.recalls)[:1]]
        for name in sorted(state.aliases)[:1]:
            wrong += [
                ev.RollbackRequested(now, name, "release-x"),
                ev.AliasSteered(now, name, "promote", "release-x"),
            ]
        for name, run in sorted(state.runs.items()):
            wrong.append(ev.RunSubmitted(now, name, run.line))
            wrong.append(ev.RunPaused(now, name) if run.paused else ev.RunResumed(now, name))
        for name, tuning in sorted(state.tunings.items())[:1]:
            wrong.append(ev.TuningRequested(now, tuning, self.new("run")))
            line = replace(tuning.line, base="nothing", name=f"ft/x{name}")
            other = replace(tuning, id=f"x{name}", line=line)
            wrong.append(ev.TuningRequested(now, other, self.new("run")))
        self.ask(rng.choice(wrong))

    def lose_rack(self) -> None:
        """A rack's power, or its leaf: all of its nodes at once."""
        rack = self.rng.choice(sorted({node.rack for node in self.floor.nodes.values()}))
        for name, node in sorted(self.floor.nodes.items()):
            if node.rack == rack and name not in self.floor.down:
                self.floor.down.add(name)
                self.tell(ev.NodeLost(self.now, name, f"{rack} has no power"))

    def cordon(self) -> None:
        """A person does not trust a node, or trusts it again."""
        if self.state.nodes:
            name = self.rng.choice(sorted(self.state.nodes))
            known = self.state.nodes[name]
            trust = bool(known.cordon) != (self.rng.random() < 0.1)
            asked = (
                ev.NodeTrusted(self.now, name)
                if trust
                else ev.NodeCordoned(self.now, name, "it is slow", "ada")
            )
            self.ask(asked)

    def step_clock(self) -> None:
        """The controller's clock is set, forward or back; half of the times it is seen."""
        before, self.skew = self.skew, int(self.rng.uniform(-60, 120) * SECOND)
        if before % 2:
            self.tell(ev.ClockSet(self.now, self.skew - before))

    def late_controller(self) -> None:
        """Another controller, whose epoch is over, tries to go on."""
        self.ask(ev.ControllerStarted(self.now, self.rng.randrange(self.state.epoch + 1)))

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
        alive = [process for _, process in sorted(self.floor.alive.items())]
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
        named = dict.fromkeys((*NAMED, "base_weights", "champion_weights"), made)
        if self.rng.random() < 0.05:
            del named["engine"]
        evidence = {"metric": "exact_match", "n": 100, "pairs": by_name, "digests": named}
        return JobResult({"predictions": made}, evidence=evidence)


def raised_at(error: BaseException) -> tuple[str, int]:
    """File and line of the refusal, so that a batch can say which ones never occurred."""
    found = ("", 0)
    trace = error.__traceback__
    while trace is not None:
        found = (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return Path(found[0]).name, found[1]


WEATHER = ("lose_node", "lose_rack", "kill_engine", "step_clock", "slow_node", "lie")
"""Actions that are faults: a world has the ones of its swarm only."""

POST = ("late", "double", "lost")
STORE = ("before_commit", "after_commit", "crash")

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
    "late_controller",
    *("cordon",) * 2,
    *("mistake",) * 4,
    "lose_node",
    *("return_node",) * 2,
    "lose_rack",
    "step_clock",
    "slow_node",
    "kill_engine",
    "lie",
)
