"""Why is it so? Explains anything that has an id: pending, placed there, not serving, rejected, charged.

An explanation names the rule, every candidate with its reason, and what would change the outcome. It decides
nothing: it asks the same policies that decided.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.control.draft import Draft
from tokenmill.control.index import HELD_US
from tokenmill.control.jobs import is_pace_fixed
from tokenmill.control.releases import fits
from tokenmill.control.slow import spare_reason
from tokenmill.control.state import State
from tokenmill.control.table import is_asleep, reason_of
from tokenmill.control.told import held
from tokenmill.control.why_waiting import (
    candidates,
    demand_of,
    demand_of_replica,
    holders,
    kept,
    power,
    shape,
    turn,
)
from tokenmill.domain.codec import from_plain
from tokenmill.domain.errors import NotFoundError
from tokenmill.domain.factory import Deployment
from tokenmill.domain.units import format_accelerators, format_cores, format_memory
from tokenmill.domain.work import (
    GateVerdict,
    Job,
    JobStatus,
    Lease,
    Replica,
    ReplicaStatus,
    Run,
    StationStatus,
)
from tokenmill.policy.checkpoint import pace
from tokenmill.policy.place import Demand
from tokenmill.policy.power import bounded_places, unknown_draw
from tokenmill.policy.scale import LIMIT_US


@dataclass(frozen=True, slots=True)
class Choice:
    """One candidate that was looked at."""

    name: str
    accepted: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """``rule`` is what decided; ``reasons`` are why in this case; ``changes`` are what would change it."""

    id: str
    kind: str
    status: str
    rule: str
    reasons: tuple[str, ...]
    candidates: tuple[Choice, ...] = ()
    changes: tuple[str, ...] = ()


RULE_PLACE = "A gang starts whole or not at all, where every worker has its CPU, memory and accelerators."

RULE_PEER = "A peer is asked when no replica here can answer, for tenants whose data may be where it is."


def why(state: State, name: str, now_us: int) -> Explanation:
    """Explain the job, replica, deployment, run, release, lease, node, model, key, line or peer ``name``.

    A job goes by its name too, the last one of that name. Raises ``NotFoundError`` for anything else.
    """
    if name in state.jobs:
        return _job(state, state.jobs[name], now_us)
    if name in state.replicas:
        return _replica(state, state.replicas[name], now_us)
    if name in state.aliases:
        return _alias(state, name, now_us)
    if name in state.runs:
        return _run(state, state.runs[name], now_us)
    if name in state.releases:
        return _release(state, name)
    if name in state.leases:
        return _lease(state.leases[name], now_us)
    return _named(state, name, now_us)


def _job(state: State, job: Job, now_us: int) -> Explanation:
    if job.status is not JobStatus.PENDING:
        reasons = [job.reason] if job.reason else []
        if job.nodes:
            reasons.append(f"attempt {job.attempt} of {job.spec.max_attempts} is on {', '.join(job.nodes)}")
        reasons += pace_reasons(state, job, now_us)
        lost = sorted({node for node in job.nodes if node in state.nodes and state.nodes[node].lost})
        changes = [f"node {node} comes back, so that its processes are known to be gone" for node in lost]
        return Explanation(job.id, "job", job.status, RULE_PLACE, tuple(reasons), (), tuple(changes))
    if job.retry_us >= HELD_US:
        rule = "A paused run starts nothing; what it had begun goes on from its checkpoint."
        return Explanation(
            job.id, "job", "pending", rule, ("it is paused",), (), (f"{job.spec.run} is resumed",)
        )
    if job.retry_us > 0:
        wait_s = max(0, job.retry_us - now_us) // 1_000_000
        rule = "A failed attempt is repeated after a back-off that doubles, at most a minute."
        reasons = [f"attempt {job.attempt} of {job.spec.max_attempts} failed: {job.reason}"]
        return Explanation(job.id, "job", "pending", rule, tuple(reasons), (), (f"{wait_s} s pass",))
    reasons, changes = turn(state, job, now_us)
    return _waiting(state, job.id, "job", demand_of(state, job), reasons, changes, now_us)


def pace_reasons(state: State, job: Job, now_us: int) -> list[str]:
    """How often a running job keeps a checkpoint, why so, and how old the last one is."""
    if job.status is not JobStatus.RUNNING or not job.saved_us:
        return []
    nodes = len(dict.fromkeys(job.nodes))
    found = pace(nodes, job.checkpoints, now_us - job.started_us, state.uptime, now_us)
    last = f"its last checkpoint was made {max(0, now_us - job.saved_us) / 1e6:.0f} s ago"
    if is_pace_fixed(job.spec):
        return [f"{last}; checkpoint_seconds says how often"]
    return [last, *([found.reason] if found else [])]


def _waiting(
    state: State, name: str, kind: str, demand: Demand, reasons: list[str], changes: list[str], now_us: int
) -> Explanation:
    """Explain something that waits for room: by node, or by block on a large floor."""
    choices = tuple(Choice(*found) for found in candidates(state, demand))
    need = demand.resources
    asked = f"it asks for {demand.workers} worker{'' if demand.workers == 1 else 's'} of "
    memory = format_memory(need.memory_bytes) if need.memory_bytes else "memory without a bound"
    asked += f"{format_cores(need.cpu_millis)}, {memory} and "
    asked += format_accelerators(need.accelerators, need.accelerator_kind)
    theirs, follows = kept(state, name, now_us)
    found = [asked, *reasons, *theirs, *power(state, name, demand)]
    if not choices:
        found.append("no node is alive")
    elif not any(choice.accepted for choice in choices):
        found.append("no node holds even one of its workers now")
    else:
        found += shape(state, demand)
    named = ", ".join(holders(state, demand))
    ends = f"work that holds room ends: {named}" if named else ""
    changes += [*follows, *filter(None, (ends, "a node joins that has room", "it asks for less"))]
    return Explanation(name, kind, "pending", RULE_PLACE, tuple(found), choices, tuple(changes))


def _replica(state: State, replica: Replica, now_us: int) -> Explanation:
    demand = demand_of_replica(state, replica)
    if replica.status is ReplicaStatus.PENDING and demand is not None:
        reasons = [f"deployment {replica.deployment} wants it"]
        return _waiting(state, replica.id, "replica", demand, reasons, [], now_us)
    rule = "A replica holds its lease from its placement until its process is gone."
    reasons = [reason for reason in (replica.reason,) if reason]
    changes: list[str] = []
    if replica.node:
        reasons.append(f"it was placed on {replica.node}")
    if replica.status is ReplicaStatus.FAILED:
        rule = "A failed replica is replaced after a back-off that doubles from 1 s to 60 s."
        changes.append(f"{max(0, replica.retry_us - now_us) // 1_000_000} s pass")
    node = state.nodes.get(replica.node)
    if replica.status is ReplicaStatus.DRAINING:
        lost = node is not None and node.lost
        changes.append(f"node {replica.node} comes back" if lost else "its process ends")
    return Explanation(replica.id, "replica", replica.status, rule, tuple(reasons), (), tuple(changes))


def _alias(state: State, name: str, now_us: int) -> Explanation:
    alias = state.aliases[name]
    deployment = state.index.deployments[alias.deployment]
    targets = tuple(target.release for target in alias.targets)
    replicas = [state.replicas[found] for found in state.index.replicas_of.get(alias.deployment, ())]
    choices = tuple(
        Choice(
            r.id,
            r.status is ReplicaStatus.READY and r.release in targets,
            f"{r.status}, serves {r.release}" + (f": {r.reason}" if r.reason else ""),
        )
        for r in replicas
    )
    reasons = [alias.reason] if alias.reason else []
    changes: list[str] = []
    serving = any(choice.accepted for choice in choices)
    asleep = is_asleep(state, deployment, alias)
    if not serving:
        reasons.append(reason_of(state, deployment, alias))
    if alias.desired and alias.desired not in targets and not asleep:
        reasons.append(f"{alias.desired} is desired; traffic goes to {', '.join(targets) or 'nothing'}")
        changes.append(f"enough replicas of {alias.desired} are ready")
    reasons += _answered_by_peers(state, name)
    reasons += _scaling(state, deployment, now_us)
    waiting = [r for r in replicas if r.status is ReplicaStatus.PENDING]
    if waiting:
        first = _replica(state, waiting[0], now_us)
        reasons.append(f"{len(waiting)} replica(s) wait for room, {first.id} of them first")
        reasons += first.reasons
        choices += first.candidates
        changes += first.changes
    rule = "Traffic goes to a release when enough of its replicas are ready; only then do the others drain."
    if asleep:
        rule, changes = "A deployment that may have no replica sleeps while nobody asks.", ["a request comes"]
    status = "serving" if serving else "asleep" if asleep else "not serving"
    return Explanation(
        name, "deployment", status, rule, tuple(dict.fromkeys(reasons)), choices, tuple(changes)
    )


def _scaling(state: State, deployment: Deployment, now_us: int) -> list[str]:
    """How many replicas are wanted between the bounds, and what the objective has to do with it."""
    memory = state.scaling.get(deployment.name)
    reasons: list[str] = []
    if deployment.max_replicas > deployment.replicas and memory is not None:
        span = f"{deployment.replicas}..{deployment.max_replicas}"
        reasons.append(f"{memory.wanted} of {span} replicas are wanted for the load")
    slo = deployment.slo
    if slo is not None:
        bounds = [("the first token", slo.ttft_us), ("each token after it", slo.tpot_us)]
        within = " and ".join(f"{name} within {us / 1000:g} ms" for name, us in bounds if us)
        reasons.append(f"its objective is {within} for {slo.attainment_milli / 10:g} % of the answers")
        if memory is not None and memory.limit_us and now_us - memory.limit_us < LIMIT_US:
            reasons.append(
                f"that was missed {(now_us - memory.limit_us) // 60_000_000} min ago with "
                f"{memory.limit_milli / 10:g} % of the slots in use, so it is kept below that"
            )
    return reasons


def _run(state: State, run: Run, now_us: int) -> Explanation:
    verdict = verdict_of(run)
    said = run.reason if verdict is None or verdict.passed else "the gate said no"
    reasons = [said] if said else []
    reasons += _judged(verdict) if verdict is not None else []
    choices: list[Choice] = []
    changes: list[str] = []
    for station in run.stations:
        done = station.status in (StationStatus.DONE, StationStatus.REUSED)
        reason = station.reason or (f"job {station.job}" if station.job else "")
        reason = "" if station.result and station.result.evidence.get("passed") is False else reason
        choices.append(
            Choice(station.name, done, f"{station.status}: {reason}" if reason else station.status)
        )
        job = state.jobs.get(station.job)
        if station.status is StationStatus.RUNNING and job is not None:
            found = _job(state, job, now_us)
            reasons += [f"station {station.name}: job {job.id} is {job.status}", *found.reasons]
            changes += found.changes
    line = state.index.lines.get(run.line)
    base = next((m for m in state.factory.models if line and m.name == line.base), None)
    if not run.status.ended and line and (base is None or not fits(base, state.models.get(line.base))):
        reasons.append(f"base model {line.base} is being imported")
        changes.append(f"the import of {line.base} ends")
    rule = "A station starts when all that it needs is done; a gate that says no, or a failure, ends the run."
    return Explanation(run.id, "run", run.status, rule, tuple(reasons), tuple(choices), tuple(changes))


def _release(state: State, name: str) -> Explanation:
    release = state.releases[name]
    serving = sorted(a.name for a in state.aliases.values() if any(t.release == name for t in a.targets))
    desired = sorted(a.name for a in state.aliases.values() if a.desired == name)
    reasons = [f"made by {release.origin}" if release.line else f"imported weights of {release.model}"]
    if release.verdict is not None:
        reasons += release.verdict.reasons
    reasons += [f"serves {alias}" for alias in serving]
    reasons += [f"is desired by {alias}" for alias in desired if alias not in serving]
    rule = "Only imports and releases whose gate passed may serve."
    return Explanation(name, "release", "serving" if serving else "kept", rule, tuple(reasons))


def _lease(lease: Lease, now_us: int) -> Explanation:
    rule = "A lease holds its resources until the process is gone, or the tenant's time is over."
    if lease.until_us:
        who = f"{lease.tenant}/{lease.project} was granted it and"
        changes = [f"{max(0, lease.until_us - now_us) // 1_000_000} s pass", "it is released"]
    else:
        who, changes = lease.owner, [f"{lease.owner} ends"]
    reasons = (f"{who} holds {held(lease)} of {lease.node}",)
    return Explanation(lease.id, "lease", "held", rule, reasons, (), tuple(changes))


def _named(state: State, name: str, now_us: int) -> Explanation:
    """Nodes, models, keys and lines."""
    if name in state.nodes:
        node = state.nodes[name]
        owners = sorted({lease.owner for lease in state.leases.values() if lease.node == name})
        rule = "A lost node takes nothing new; what it held stays held until its end is known."
        status = "lost" if node.lost else "cordoned" if node.cordon else "alive"
        slow = (
            f"it is slow: {node.slow}; it stays, since {spare_reason(Draft(state), name)}"
            if node.slow
            else ""
        )
        dark = unknown_draw(node.node, bounded_places(state.factory))
        reasons = (*filter(None, (node.cordon, slow, dark)), *(f"{owner} is on it" for owner in owners))
        back = f"`tokenmill cordon {name} --undo`"
        changes: tuple[str, ...] = (back,) if node.cordon else ()
        changes = (f"job {node.test} ends well",) if node.test else changes
        changes += ("the factory file states its `idle_power` and `max_power`",) if dark else ()
        return Explanation(name, "node", status, rule, reasons, (), changes)
    if name in state.keys:
        key = state.keys[name]
        expired = bool(key.expires_us) and key.expires_us <= now_us
        status = "disabled" if key.disabled else "expired" if expired else "works"
        rule = "A key works while it is not disabled or expired and its tenant and project are in the file."
        return Explanation(name, "key", status, rule, (f"it belongs to {key.tenant}/{key.project}",))
    runs = sorted(run.id for run in state.runs.values() if run.line == name)
    if name in state.index.lines:
        reasons = (
            (state.runs[runs[-1]].reason or f"its last run is {runs[-1]}",) if runs else ("it has not run",)
        )
        status = state.runs[runs[-1]].status if runs else "idle"
        return Explanation(name, "line", status, "A line runs when it is asked to.", reasons)
    model = next((found for found in state.factory.models if found.name == name), None)
    if model is not None:
        imported = state.models.get(name)
        status = "importing" if imported is None else "failed" if imported.error else "imported"
        reason = imported.error or f"digest {imported.digest}" if imported else f"from {model.source}"
        changes = ("the factory file is applied again",) if status == "failed" else ()
        return Explanation(name, "model", status, "A pinned digest must match.", (reason,), (), changes)
    jobs = [job for job in state.jobs.values() if name and job.spec.name == name]
    if jobs:
        return _job(state, max(jobs, key=lambda job: (job.submitted_us, job.id)), now_us)
    peer = next((found for found in state.factory.peers if found.name == name), None)
    if peer is not None:
        reasons = (f"it answers for {', '.join(peer.aliases)} in {peer.jurisdiction}",)
        return Explanation(name, "peer", "in the file", RULE_PEER, reasons, (), ())
    away = _answered_by_peers(state, name)
    if away:
        changes = (f"the factory file has a deployment {name}",)
        return Explanation(name, "deployment", "elsewhere", RULE_PEER, tuple(away), (), changes)
    raise NotFoundError(
        f"nothing is called {name!r}",
        expected="the id of a job, replica, run, release, lease, key or node, or a deployment, line, model "
        "or peer",
        fix="`tokenmill status` lists them.",
    )


def _answered_by_peers(state: State, name: str) -> list[str]:
    """Who may answer for an alias when nobody here can."""
    return [
        f"peer {peer.name} answers for it in {peer.jurisdiction} when no replica here can"
        for peer in state.factory.peers
        if name in peer.aliases
    ]


def _judged(verdict: GateVerdict) -> list[str]:
    """The gate's reasons, and what it judged, by digest."""
    named = ", ".join(f"{name} {_short(value)}" for name, value in sorted(verdict.digests.items()) if value)
    return [*verdict.reasons, *([f"Judged were: {named}."] if named else [])]


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12] if digest.startswith("sha256:") else digest


def verdict_of(run: Run) -> GateVerdict | None:
    """The verdict of a run's gate, or ``None`` while there is none."""
    for station in run.stations:
        evidence = station.result.evidence if station.result else {}
        if "passed" in evidence and "p_value" in evidence:
            return from_plain(evidence, GateVerdict)
    return None
