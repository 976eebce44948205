"""Events of the journal as one sentence each, for people, and as JSON for the API."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tokenmill.console.context import JournalPort
from tokenmill.domain import events
from tokenmill.domain.codec import to_plain
from tokenmill.domain.units import format_duration

Names = Mapping[str, str]
NO_NAMES: Names = MappingProxyType({})

QUIET = (
    *(events.Tick, events.LoadReported, events.LineObserved, events.OutcomesReported, events.JobSaved),
    *(events.StepsTimed, events.JobStarted, events.ReplicaStarted),
)
"""Kinds that say little to a person, and are left out of the page where nothing was decided at them."""


STOPPED = "stopped"
"""The floor's reason for the end of a job that it was asked to stop."""


def event_views(
    journal: JournalPort, found: list[tuple[int, events.Event]], names: Names = NO_NAMES
) -> list[dict[str, Any]]:
    """Events of the journal, each with what was decided at it."""
    decided = journal.decisions(found[0][0], found[-1][0]) if found else {}
    return [event_view(seq, event, names, decided.get(seq, ())) for seq, event in found]


def is_quiet(event: events.Event, view: dict[str, Any]) -> bool:
    return isinstance(event, QUIET) and not view["decided"]


def event_view(
    seq: int, event: events.Event, names: Names = NO_NAMES, decided: tuple[str, ...] = ()
) -> dict[str, Any]:
    """One line of the journal. A key's digest stays out of it. ``names`` say what a job or replica is for."""
    body: dict[str, Any] = to_plain(event)
    if isinstance(body.get("key"), dict):
        body["key"] = {name: value for name, value in body["key"].items() if name != "digest"}
    return {
        "seq": seq,
        "kind": type(event).__name__,
        "at_us": event.at_us,
        "text": event_text(event, names),
        "decided": list(decided),
        "body": body,
    }


def event_text(event: events.Event, names: Names = NO_NAMES) -> str:
    """What happened, in words that the rest of the console uses too."""
    match event:
        case events.ControllerStarted(epoch=epoch):
            return f"The controller started (epoch {epoch})"
        case events.SpecApplied(base_version=base):
            return f"The factory file was applied as version {base + 1}"
        case events.NodeJoined(node=node):
            return f"Node {node.id} joined with {node.cpu_millis / 1000:g} cores"
        case events.NodeLost(node=node_id, reason=reason):
            return f"Node {node_id} was lost{_because(reason)}"
        case events.ModelImported(imported=imported):
            return f"Weights of {imported.model} {_import_end(imported.error)}"
        case events.KeyCreated(key=key):
            return f"Key {key.id} was made for {key.tenant}/{key.project}"
        case events.RollbackRequested(alias=alias, to=to):
            return f"Roll-back of {alias} to {to or 'the release before'} was asked for"
        case events.LeaseRequested(lease=lease, tenant=tenant):
            return f"{tenant} asked for lease {lease}"
        case events.LoadReported():
            return _load_text(event)
        case _:
            return _work_text(event, names)


def _work_text(event: events.Event, names: Names) -> str:
    match event:
        case events.ReplicaStarted(replica=replica, address=address):
            return f"Replica {replica}{_named(replica, names)} started at {address}"
        case events.ReplicaReady(replica=replica):
            return f"Replica {replica}{_named(replica, names)} is ready"
        case events.ReplicaExited(replica=replica, reason=reason):
            return f"Replica {replica}{_named(replica, names)} ended{_because(reason)}"
        case events.JobSubmitted(job=job, spec=spec):
            return f"Job {job} ({spec.name or spec.station or spec.kind}) was submitted"
        case events.JobStarted(job=job, attempt=attempt):
            return f"Job {job}{_named(job, names)} started{f' (attempt {attempt})' if attempt > 1 else ''}"
        case events.JobExited(job=job, result=result, code=code, reason=reason):
            return f"Job {job}{_named(job, names)} {_job_end(code, reason, done=result is not None)}"
        case events.NodeCordoned(node=node, reason=reason):
            return f"Node {node} was cordoned{_because(reason)}"
        case events.NodeTrusted(node=node):
            return f"Node {node} takes work again"
        case events.RunSubmitted(run=run, line=line):
            return f"Run {run} of line {line} was submitted"
        case _:
            return _plain_text(event)


def _load_text(load: events.LoadReported) -> str:
    """A report is in the journal only when scaling took note: a busy or idle time began, or more or fewer
    replicas are wanted. It says what was seen; ``why DEPLOYMENT`` says how many are wanted now.
    """
    seen = [f"{load.in_flight} {'request' if load.in_flight == 1 else 'requests'} in flight"]
    if load.wait_us:
        seen.append(f"the oldest has waited {load.wait_us / 1_000_000:.1f} s for its first token")
    if load.refused_full:
        seen.append(f"{load.refused_full} turned away for want of a slot")
    if load.asleep:
        seen.append(f"{load.asleep} turned away while it slept")
    if load.measured:
        seen.append(f"{load.attained} of {load.measured} answers in time")
    return f"Scaling of {load.deployment} took note: {', '.join(seen)}"


def _plain_text(event: events.Event) -> str:
    """``KeyDisabled`` as "Key key-1f2e disabled"."""
    if isinstance(event, events.Tick):
        return "A time came that something waited for"
    if isinstance(event, events.ClockSet):
        way = "forward" if event.by_us > 0 else "back"
        return f"The machine's clock was set {way} by {format_duration(abs(event.by_us))}"
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(event).__name__).split()
    named = [getattr(event, name) for name in ("key", "job", "run", "lease") if hasattr(event, name)]
    return " ".join([words[0], *map(str, named[:1]), *(word.lower() for word in words[1:])])


def _job_end(code: int, reason: str, *, done: bool) -> str:
    if reason == STOPPED:
        return "has stopped, as it was told to"
    end = "finished" if done or code == 0 else f"failed with code {code}"
    return f"{end}{_because(reason)}"


def _named(name: str, names: Names) -> str:
    return f" ({names[name]})" if names.get(name) else ""


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _import_end(error: str) -> str:
    return f"could not be imported: {error}" if error else "are in the store"
