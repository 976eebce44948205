"""What a step decided, as sentences for people: what starts, goes, scales, waits, and because of what.

It reads the states before and after and the effects between them, and decides nothing. Each sentence is
recorded beside the event at which it was decided, so that it still says then what was known now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenmill.control.deployments import scaling_reason
from tokenmill.control.index import HELD_US
from tokenmill.control.state import State
from tokenmill.domain.effects import Effect, StartJob, StartReplica, StopJob, StopReplica
from tokenmill.domain.events import (
    Event,
    JobExited,
    JobSubmitted,
    LeaseRequested,
    LoadReported,
    ReplicaExited,
    StepsTimed,
)
from tokenmill.domain.units import format_cores, format_duration, format_memory
from tokenmill.domain.work import Alias, Job, JobStatus, Lease, ReplicaStatus

NODES_NAMED = 4


def told(before: State, event: Event, after: State, effects: Iterable[Effect]) -> tuple[str, ...]:
    """The decisions of the step from ``before`` to ``after``, in the order in which they were made."""
    said = [*_over(before, after, event.at_us)]
    if isinstance(event, LoadReported):
        said += _scaled(before, event, after)
    said += filter(None, (_asked(after, effect) for effect in effects))
    if isinstance(event, JobSubmitted) and after.jobs[event.job].status is JobStatus.PENDING:
        said.append(f"it waits: `tokenmill why {event.job}` says for what")
    if isinstance(event, JobExited) and before.jobs.get(event.job) is not after.jobs.get(event.job):
        said += _goes_on(before.jobs[event.job], after.jobs[event.job], event.at_us)
    if isinstance(event, ReplicaExited):
        said += _replaced(after, event)
    if isinstance(event, StepsTimed):
        said += _cordoned(before, after)
    if isinstance(event, LeaseRequested) and event.lease in after.leases:
        said.append(_granted(after.leases[event.lease]))
    if before.aliases is not after.aliases:
        said += _steered(before, after)
    return tuple(said)


def _scaled(before: State, event: LoadReported, after: State) -> Iterator[str]:
    name = event.deployment
    reason = scaling_reason(before, event)
    if reason:
        yield reason
    for replica in after.index.replicas_of.get(name, ()):
        if replica not in before.replicas and after.replicas[replica].status is ReplicaStatus.PENDING:
            yield f"replica {replica} of {name} waits for room: `tokenmill why {replica}` says for what"


def _asked(after: State, effect: Effect) -> str:
    """An effect with its reason; empty for those that say nothing to a person."""
    match effect:
        case StartReplica(replica=replica, deployment=deployment, node=node):
            return f"replica {replica} of {deployment.name} starts on {node or deployment.url}"
        case StopReplica(replica=name):
            replica_of = after.replicas[name]
            return f"replica {name} of {replica_of.deployment} drains{_because(replica_of.reason)}"
        case StartJob(job=job, spec=spec, nodes=nodes):
            return f"job {job}{_named(spec.name or spec.station)} starts on {_places(nodes)}"
        case StopJob(job=name):
            job_of = after.jobs[name]
            named = _named(job_of.spec.name or job_of.spec.station)
            return f"job {name}{named} is told to stop{_because(job_of.reason)}"
        case _:
            return ""


def _goes_on(was: Job, job: Job, now_us: int) -> Iterator[str]:
    """What becomes of a job whose attempt has ended."""
    tries = f"attempt {job.attempt} of {job.spec.max_attempts}"
    if was.stop == "preempted":
        yield "it waits again, and has lost no attempt by it"
    elif job.status is JobStatus.PENDING and now_us < job.retry_us < HELD_US:
        yield f"it is tried again in {format_duration(job.retry_us - now_us)}, since that was {tries}"
    elif job.status is JobStatus.FAILED:
        final = job.attempt < job.spec.max_attempts
        yield f"it is given up after {tries}{': another would end the same' if final else ''}"


def _replaced(after: State, event: ReplicaExited) -> Iterator[str]:
    replica = after.replicas.get(event.replica)
    if replica is not None and replica.status is ReplicaStatus.FAILED and replica.retry_us > event.at_us:
        yield f"another takes its place in {format_duration(replica.retry_us - event.at_us)}"


def _cordoned(before: State, after: State) -> Iterator[str]:
    for name, held in sorted(after.nodes.items()):
        was = before.nodes.get(name)
        if was is held or was is None:
            continue
        if held.cordon and not was.cordon:
            yield f"node {name} takes no more work: {held.cordon}"
        elif held.slow and not was.slow:
            yield f"node {name} is slow, but stays: {held.slow}"


def _granted(lease: Lease) -> str:
    """What a tenant holds from now on, where, and for how long."""
    span = format_duration(lease.until_us - lease.since_us, words=True)
    return f"it is granted: {held(lease)} on {lease.node} for {span}"


def held(lease: Lease) -> str:
    """The resources of a lease, in words."""
    cores = [format_cores(lease.cpu_millis)] if lease.cpu_millis else []
    memory = [format_memory(lease.memory_bytes)] if lease.memory_bytes else []
    return ", ".join([*cores, *memory, *lease.accelerators])


def _over(before: State, after: State, now_us: int) -> Iterator[str]:
    """Tenants' leases that ended because their time is over."""
    for at_us, kind, name in before.index.timers:
        if at_us > now_us:
            break
        if kind == "lease" and name not in after.leases:
            yield f"lease {name} of {before.leases[name].tenant} is over"


def _steered(before: State, after: State) -> Iterator[str]:
    for name, alias in sorted(after.aliases.items()):
        was = before.aliases.get(name)
        if was is alias or (was is None and not alias.targets) or (was and was.targets == alias.targets):
            continue
        yield f"traffic of {name} goes to {_targets(alias)}{_because(alias.reason)}"


def _targets(alias: Alias) -> str:
    if len(alias.targets) == 1:
        return alias.targets[0].release
    parts = [f"{target.release} ({target.weight_milli / 10:g} %)" for target in alias.targets]
    return " and ".join(parts) or "nothing"


def _places(nodes: tuple[str, ...]) -> str:
    different = list(dict.fromkeys(nodes))
    more = len(different) - NODES_NAMED
    return ", ".join(different[:NODES_NAMED]) + (f" and {more} more nodes" if more > 0 else "")


def _named(name: str) -> str:
    return f" ({name})" if name else ""


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""
