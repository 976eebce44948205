"""The invariants, each a check after every event of a simulated world. A failure names what was broken.

A check looks at the records that the event changed (``twin.sim.touched``), which is enough to see what it
broke. What is made a second time from scratch (the step itself, index, table) takes longer than
the step, and what is wrong there mostly stays wrong. So that is compared after one event in ``SAMPLE`` and
when a world has settled, and all records are looked at then. A thorough world does it after every event.
Snapshots are compared by the world when it replays, and at the end.
"""

from __future__ import annotations

from typing import Protocol

from immutables import Map

from tokenmill.control import jobs
from tokenmill.control.core import step
from tokenmill.control.draft import Draft
from tokenmill.control.index import index_state
from tokenmill.control.placing import drawn_mw, power_reason
from tokenmill.control.snapshot import dump, load
from tokenmill.control.state import EMPTY, State
from tokenmill.control.table import table_of
from tokenmill.control.why import why
from tokenmill.domain import effects as fx
from tokenmill.domain import events as ev
from tokenmill.domain.work import Alias, Job, JobStatus, Lease, Replica, ReplicaStatus, Run, RunStatus
from tokenmill.policy.place import Demand, place
from tokenmill.policy.power import Ramp, caps_of, ramps_of
from tokenmill.twin.sim.floor import Floor
from tokenmill.twin.sim.touched import Touched, changed, touched

HOLDING = (ReplicaStatus.STARTING, ReplicaStatus.READY, ReplicaStatus.DRAINING)
LIVE = (JobStatus.STARTING, JobStatus.RUNNING, JobStatus.STOPPING)

SAMPLE = 32


class Watched(Protocol):
    """The world that is watched."""

    floor: Floor
    state: State
    now: int


class Checkers:
    """Watches one world. ``charges`` is what the ledger got, ``groups`` every lease group there ever was."""

    def __init__(self, world: Watched, thorough: bool = False) -> None:
        self.world = world
        self.every = 1 if thorough else SAMPLE
        self.charges: dict[str, fx.ChargeWork] = {}
        self.groups: dict[str, str] = {}  # first lease of an owner's group -> owner
        self.count = 0
        self.reached: set[str] = set()
        self.on_node: dict[str, dict[str, Lease]] = {}
        self.begun = 0  # processes that the floor had begun when they were last looked at
        self.seen_us = 0
        self.draws: dict[Ramp, list[tuple[int, int]]] = {}  # what places with a ramp drew, and since when

    def after(self, before: State, event: ev.Event, after: State, effects: tuple[fx.Effect, ...]) -> None:
        self.count += 1
        found = touched(before, after)
        self.note(before, after, found)
        self.power_within_caps(before, after, found.came)
        self.power_within_ramps(before, event, after)
        self.slow_nodes_spared(before, event, after)
        self.plan_fresh(before, event, after)
        self.persons_word_stands(before, event, after)
        self.drained_after_flip(before, after, found.replicas)
        self.charged_on_end(before, after, effects)
        if self.count % self.every == 0:
            assert step(before, event) == (after, effects), "step is a function"
            self.derived(after)
        else:
            self.safe(before, after, found)

    def safe(self, before: State, after: State, found: Touched) -> None:
        """What has to hold of any state, of the records that changed since ``before``."""
        self.nothing_held_twice(after, found)
        self.gangs_whole(after, found.jobs)
        self.replicas_hold(after, found.replicas)
        if found.came or found.went or self.world.floor.begun != self.begun:
            self.leases_match_processes(after)
        if after.table is not before.table or after.releases is not before.releases:
            self.only_passed_serve(after)
        if after.table is not before.table or after.recalls is not before.recalls:
            self.recalled_never_serve(after)

    def derived(self, after: State) -> None:
        """All records; and what the core keeps up to date, against the same made from scratch."""
        self.on_node.clear()
        self.safe(EMPTY, after, touched(EMPTY, after))
        assert after.index == index_state(
            after.factory,
            after.nodes,
            after.leases,
            after.replicas,
            after.jobs,
            after.runs,
            after.tunings,
            after.draws,
        ), "the index is what it would be from scratch"
        assert after.table == table_of(after), "the table published is the table due"

    def note(self, before: State, after: State, found: Touched) -> None:
        """Remember which situations came up: a batch that never meets one proves nothing about it."""
        reached = self.reached
        self.note_runs(changed(before.runs, after.runs))
        for replica in found.replicas:
            reached.add(f"replica {replica.status}")
            if "makes room" in replica.reason:
                reached.add("drained to make room")
        if after.nodes is not before.nodes:
            nodes = changed(before.nodes, after.nodes)
            reached |= {"cordoned" for node in nodes if node.cordon}
            reached |= {"node tested" for node in nodes if node.test}
        for job in found.jobs:
            reached.add(f"job {job.status} {job.stop}".strip())
            if job.attempt > 1:
                reached.add("job tried again")
        for alias in changed(before.aliases, after.aliases):
            old = before.aliases.get(alias.name)
            if alias.name.startswith("ft:") and alias.targets:
                reached.add("own model served")
            if old is not None and old != alias:
                self.note_alias(old, alias)
        if any(memory.wanted > 1 for memory in changed(before.scaling, after.scaling)):
            reached.add("scaled up")

    def note_runs(self, runs: list[Run]) -> None:
        stations = [station for run in runs for station in run.stations]
        self.reached |= {"run paused" for run in runs if run.paused}
        self.reached |= {"taken over" for station in stations if station.reason.startswith("taken")}
        self.reached |= {f"run {run.status}" for run in runs}
        self.reached |= {f"station {station.status}" for station in stations}

    def note_alias(self, old: Alias, alias: Alias) -> None:
        if old.targets and alias.targets and old.targets != alias.targets:
            self.reached.add("flip")
        if alias.canary is not None:
            self.reached.add("canary")
        if "passed its canary" in alias.reason and not alias.canary:
            self.reached.add("canary passed")
        if "by itself" in alias.reason:
            self.reached.add("canary sent back")
        if "goes on serving" in alias.reason:
            self.reached.add("given up")
        if "rolled back" in alias.reason and alias.targets and alias.targets[0].release == alias.desired:
            self.reached.add("rolled back")

    def nothing_held_twice(self, state: State, found: Touched) -> None:
        for lease in found.went:
            del self.on_node[lease.node][lease.id]
        for lease in found.came:
            self.on_node.setdefault(lease.node, {})[lease.id] = lease
        for name in found.nodes:
            node, held = state.nodes[name].node, self.on_node.get(name, {}).values()
            cpu_millis = sum(lease.cpu_millis for lease in held)
            assert cpu_millis <= node.cpu_millis, f"{name} has more CPU leased than it has"
            memory_bytes = sum(lease.memory_bytes for lease in held)
            assert memory_bytes <= node.memory_bytes, f"{name} has more memory leased than it has"
            free = {accelerator.id for accelerator in node.accelerators}
            for accelerator in [one for lease in held for one in lease.accelerators]:
                assert accelerator in free, f"{accelerator} is held twice, or not of {name}"
                free.remove(accelerator)

    def power_within_caps(self, before: State, after: State, came: list[Lease]) -> None:
        """What is started never takes a place above its cap. A lowered cap only stops further starts."""
        caps = caps_of(after.factory) if came else {}
        if not caps or not any(lease.cpu_millis or lease.accelerators for lease in came):
            return  # a node that comes back brings its idle draw, and its test holds nothing
        was, now = drawn_mw(Draft(before), caps), drawn_mw(Draft(after), caps)
        for name, cap in caps.items():
            if now[name] > was[name]:
                assert now[name] * cap.factor_milli // 1000 <= cap.limit_mw, f"{name} is above its cap"
                self.reached.add("within a cap")

    def power_within_ramps(self, before: State, event: ev.Event, after: State) -> None:
        """Over no time up to the window does a start make a place rise further than its ramp.

        The draws are kept whole here; when the clock is set back, what was in the window until then counts as
        seen now.
        """
        ramps = ramps_of(after.factory)
        self.draws = {key: seen for key, seen in self.draws.items() if ramps.get(key.name) == key}
        was_us, self.seen_us = self.seen_us, event.at_us
        as_it_was = after.leases is before.leases and after.nodes is before.nodes
        if not ramps or (as_it_was and len(self.draws) == len(ramps) and event.at_us >= was_us):
            return
        if event.at_us < was_us:
            self.draws = {key: _lately(seen, was_us, key.window_us) for key, seen in self.draws.items()}
        ended = Draft(after)  # the moment at which what ended has ended, and nothing has started yet
        ended.leases = Map({n: lease for n, lease in after.leases.items() if n in before.leases})
        low, now = drawn_mw(ended, ramps), drawn_mw(Draft(after), ramps)
        for name, ramp in ramps.items():
            old = [(min(at_us, event.at_us), mw) for at_us, mw in self.draws.get(ramp, [])]
            seen = [*old, (event.at_us, low[name])]
            within = [mw for _, mw in _lately(seen, event.at_us, ramp.window_us)]
            if now[name] > low[name]:
                rise = (now[name] - min(within)) * ramp.factor_milli // 1000
                assert rise <= ramp.limit_mw, f"{name} rises by {rise} mW"
                self.reached.add("within a ramp")
                self.reached |= {"held by a ramp" for text in self.held_by(after) if "would rise" in text}
            self.draws[ramp] = [*seen, (event.at_us, now[name])]

    @staticmethod
    def held_by(state: State) -> list[str]:
        """What power keeps the first of each lane waiting for."""
        lanes = [waiting for queue in state.index.queues.values() for waiting in queue.values()]
        heads = [state.jobs[waiting[0][1]] for waiting in lanes]
        draft = Draft(state)
        return [power_reason(draft, job.id, jobs.demand_of(draft, job.spec)) for job in heads]

    def slow_nodes_spared(self, before: State, event: ev.Event, after: State) -> None:
        """Slowness takes a node out only while few are out, and only what has room elsewhere at once."""
        if not isinstance(event, ev.StepsTimed):
            return
        gone = [n for n, known in after.nodes.items() if known.cordon and not before.nodes[n].cordon]
        if any(known.slow for known in after.nodes.values()):
            self.reached.add("slow, but needed")
        for name in gone:
            out = [n for n, known in after.nodes.items() if known.cordon and known.slow_us]
            assert len(out) <= max(1, len(after.nodes) // 20), f"{out} are out for slowness"
            moved = [owner for owner, ids in before.index.leases_of.items() if self._is_on(before, ids, name)]
            assert all(owner in after.jobs or owner in after.replicas for owner in moved)
            fleet = Draft(after).fleet_if(lambda lease, moved=moved: lease.owner not in moved)  # type: ignore[misc]
            for owner in [owner for owner in moved if owner in after.jobs]:
                spec = after.jobs[owner].spec
                law = after.index.tenants[spec.tenant].jurisdictions if spec.tenant else ()
                assert place(fleet, Demand(spec.resources, spec.workers, law)), f"{owner} has no room"
            self.reached.add("slow node out")

    @staticmethod
    def _is_on(state: State, leases: tuple[str, ...], node: str) -> bool:
        return any(state.leases[name].node == node for name in leases)

    def gangs_whole(self, state: State, jobs_: list[Job]) -> None:
        for job in jobs_:
            leases = [state.leases[name] for name in state.index.leases_of.get(job.id, ())]
            expected = job.spec.workers if job.status in LIVE else 0
            assert len(leases) == expected, f"{job.id} is {job.status} with {len(leases)} leases"
            if leases:
                assert tuple(lease.node for lease in leases) == job.nodes

    def replicas_hold(self, state: State, replicas: list[Replica]) -> None:
        for replica in replicas:
            leases = len(state.index.leases_of.get(replica.id, ()))
            assert leases == (1 if replica.status in HOLDING else 0), f"{replica.id} is {replica.status}"

    def leases_match_processes(self, state: State) -> None:
        self.begun = self.world.floor.begun
        for (name, _), process in self.world.floor.alive.items():
            held = [state.leases[found] for found in state.index.leases_of.get(name, ())]
            assert tuple([lease.node for lease in held]) == process.nodes, (
                f"{name} is alive without its lease"
            )
            assert tuple([lease.accelerators for lease in held]) == process.accelerators

    def plan_fresh(self, before: State, event: ev.Event, after: State) -> None:
        if after.version != before.version:
            assert isinstance(event, ev.SpecApplied)
            assert event.base_version == before.version, "a stale plan was applied"

    def only_passed_serve(self, state: State) -> None:
        for alias in state.table.aliases:
            for name in {target for target, _ in alias.targets} | {e.release for e in alias.endpoints}:
                if name.startswith("peer:"):
                    continue
                release = state.releases[name]
                passed = release.verdict is not None and release.verdict.passed
                assert passed or release.origin == "import", f"{name} serves without a passed gate"

    def recalled_never_serve(self, state: State) -> None:
        for alias in state.table.aliases:
            live = {target for target, _ in alias.targets} | {
                e.release for e in alias.endpoints if not e.draining
            }
            assert not live & set(state.recalls), f"{alias.name} serves what was recalled"

    def persons_word_stands(self, before: State, event: ev.Event, after: State) -> None:
        """While an alias is held, no candidate takes a larger share of its traffic by itself."""
        persons = ev.AliasSteered | ev.RollbackRequested | ev.ReleaseRecalled | ev.SpecApplied
        for alias in changed(before.aliases, after.aliases):
            name, old = alias.name, before.aliases.get(alias.name)
            if old is None or not old.hold or isinstance(event, persons) or old.canary is None:
                continue
            share = {t.release: t.weight_milli for t in alias.targets}.get(old.canary.candidate, 0)
            was = {t.release: t.weight_milli for t in old.targets}.get(old.canary.candidate, 0)
            assert share <= was, f"{name} went past a person's hold"

    def drained_after_flip(self, before: State, after: State, replicas: list[Replica]) -> None:
        for replica in replicas:
            old = before.replicas.get(replica.id)
            if old is None or old.status is not ReplicaStatus.READY:
                continue
            if replica.status is ReplicaStatus.DRAINING and replica.reason.startswith("replaced by"):
                alias = after.aliases[replica.deployment]
                assert [target.release for target in alias.targets] == [alias.desired]
                assert any(
                    r.deployment == alias.deployment
                    and r.release == alias.desired
                    and r.status is ReplicaStatus.READY
                    for r in after.replicas.values()
                ), f"{replica.id} drained before {alias.desired} could serve"

    def charged_on_end(self, before: State, after: State, effects: tuple[fx.Effect, ...]) -> None:
        charged = [effect.id for effect in effects if isinstance(effect, fx.ChargeWork)]
        assert len(charged) == len(set(charged))
        old, new = before.index.leases_of, after.index.leases_of
        ended = {names[0] for names in old.values() if names[0] not in after.leases}
        assert set(charged) == ended, "every lease group that ends is charged, and no other"
        if new is not old:
            self.groups.update((names[0], owner) for owner, names in new.items())

    def charged(self, effect: fx.ChargeWork) -> None:
        known = self.charges.get(effect.id)
        assert known is None or known == effect, "a charge said again is the same charge"
        self.charges[effect.id] = effect

    def settled(self) -> None:
        """Liveness: what is pending has ended, or ``why`` gives a reason. And safety once more, of all."""
        world, state = self.world, self.world.state
        self.derived(state)
        assert load(dump(state)) == state, "a snapshot gives back the state"
        for job in state.jobs.values():
            if not job.status.ended:
                assert job.status is JobStatus.PENDING, f"{job.id} is stuck: {job}"
                found = why(state, job.id, world.now)
                assert found.reasons
                assert found.candidates
                assert found.changes
        for run in state.runs.values():
            if run.status is RunStatus.RUNNING:
                assert why(state, run.id, world.now).reasons, f"{run.id} hangs without a reason"
        self.replicas_settled(state)
        for group in self.groups:
            if group not in state.leases:
                assert group in self.charges, f"{group} was never charged"
        names = (
            state.jobs,
            state.replicas,
            state.aliases,
            state.runs,
            state.releases,
            state.leases,
            state.keys,
        )
        for name in [name for records in names for name in sorted(records)]:
            assert why(state, name, world.now).rule

    def replicas_settled(self, state: State) -> None:
        for replica in state.replicas.values():
            assert replica.status in (
                ReplicaStatus.READY,
                ReplicaStatus.PENDING,
                ReplicaStatus.STOPPED,
            ), f"{replica.id} is stuck in {replica.status}"
            if replica.status is ReplicaStatus.PENDING:
                assert why(state, replica.id, self.world.now).reasons
        for alias in state.table.aliases:
            ready = any(not endpoint.draining for endpoint in alias.endpoints)
            assert (ready and alias.targets) or alias.reason, (
                f"{alias.name} serves nothing and does not say why"
            )


def _lately(seen: list[tuple[int, int]], at_us: int, window_us: int) -> list[tuple[int, int]]:
    """Of the draws from their times on, those that lasted into the window before ``at_us``."""
    ends = [later_us for later_us, _ in seen[1:]] + [at_us + 1]
    return [draw for draw, end_us in zip(seen, ends, strict=True) if end_us > at_us - window_us]
