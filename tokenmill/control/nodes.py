"""Nodes: they join, are lost, are cordoned and come back. What ran on a lost node holds its lease until its
end is reported.

A lost node may be cut off with its processes alive, so nothing that it held is given to anyone else; its
replicas are replaced elsewhere and its jobs stopped, to be tried again. A floor reports the exits of what is
gone when the node is back. A cordoned node takes nothing new and what runs on it is moved. Where the site
names an acceptance test, a node that was lost, or slow (``control.slow``), stays cordoned until that command
has ended well on it.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenmill.control import jobs, replicas
from tokenmill.control.draft import Draft
from tokenmill.control.state import State
from tokenmill.domain.effects import StartJob
from tokenmill.domain.errors import ConflictError, NotFoundError, invariant
from tokenmill.domain.events import JobExited, NodeCordoned, NodeJoined, NodeLost, NodeTrusted
from tokenmill.domain.factory import Node
from tokenmill.domain.value import replace
from tokenmill.domain.work import Job, JobSpec, JobStatus, Lease, NodeState, Uptime

TEST_TIMEOUT_US = 1_800_000_000


def joined(draft: Draft, event: NodeJoined) -> None:
    """A node is here, new or back, or another size than before."""
    if _join(draft, event):
        draft.reindex()


def all_joined(state: State, nodes: Iterable[Node], now_us: int) -> State:
    """The state of a factory without work once these nodes have joined one after the other. The index is
    derived once for all of them, not once for each: that alone took most of the time to bring a twin up."""
    invariant(not state.index.deployments and not state.jobs, "nodes join at once only where nothing waits")
    draft = Draft(state)
    changed = [_join(draft, NodeJoined(now_us, node)) for node in nodes]
    if any(changed):
        draft.reindex()
    return draft.state()


def _join(draft: Draft, event: NodeJoined) -> bool:
    """Whether this changed anything; the index is still the one before."""
    old = draft.nodes.get(event.node.id)
    if old is not None and not old.lost and old.node == event.node:
        return False
    if old is None or old.lost:
        _count(draft, 1, event.at_us)
    fresh = NodeState(event.node, event.at_us)
    if old is not None:
        fresh = replace(fresh, cordon=old.cordon, slow_us=old.slow_us, test_due=old.test_due)
    draft.nodes = draft.nodes.set(event.node.id, fresh)
    command = acceptance(draft, event.node.site) if old is not None and old.lost else ()
    if command:
        begin_test(draft, event.node.id, command, event.at_us)
    return True


def _count(draft: Draft, more: int, now_us: int) -> None:
    """Keep the account of how long nodes were there, of which the rate of failures follows."""
    was = draft.uptime
    node_us = was.node_us + was.nodes * max(0, now_us - was.at_us)
    draft.uptime = Uptime(node_us, was.nodes + more, max(was.at_us, now_us), was.lost + (more < 0))


def acceptance(draft: Draft, site: str) -> tuple[str, ...]:
    """The command of the site's acceptance test; empty without one."""
    return next((one.acceptance for one in draft.factory.sites if one.name == site), ())


def begin_test(
    draft: Draft,
    node: str,
    command: tuple[str, ...],
    now_us: int,
    reason: str = "it has to pass its acceptance test",
) -> None:
    """Run the site's test on this very node, beside whatever may still be there: it holds nothing of it."""
    job = draft.new_id("j")
    known = draft.nodes[node]
    draft.nodes = draft.nodes.set(node, replace(known, cordon=reason, test=job, test_due=False))
    spec = JobSpec(
        "command",
        "",
        "",
        command,
        timeout_us=TEST_TIMEOUT_US,
        max_attempts=1,
        name=f"acceptance of {node}",
        preemptible=False,
    )
    draft.put_job(Job(job, spec, JobStatus.STARTING, now_us, (node,), now_us, 0, 1))
    draft.grant((Lease(draft.new_id("l"), node, job, "", "", 0, 0, (), now_us),), now_us)
    draft.effects.append(StartJob(job, 1, spec, (node,), ((),)))


def tested(draft: Draft, event: JobExited) -> None:
    """When that was a node's acceptance test: it is trusted again, or stays cordoned with the reason."""
    job = draft.jobs.get(event.job)
    if job is None or not job.status.ended or job.spec.tenant:
        return
    for name, known in sorted(draft.nodes.items()):
        if known.test == event.job:
            passed = job.status is JobStatus.SUCCEEDED
            cordon = "" if passed else f"it failed its acceptance test: {job.reason}"
            draft.nodes = draft.nodes.set(name, replace(known, cordon=cordon, test=""))
            draft.reindex()


def check_cordoned(state: State, event: NodeCordoned) -> None:
    """Raise unless the node is known and not cordoned yet."""
    known = _known(state, event.node)
    if known.cordon:
        raise ConflictError(f"node {event.node} is cordoned already: {known.cordon}")


def check_trusted(state: State, event: NodeTrusted) -> None:
    """Raise unless the node is cordoned."""
    known = _known(state, event.node)
    if not known.cordon:
        raise ConflictError(f"node {event.node} is not cordoned")


def _known(state: State, node: str) -> NodeState:
    known = state.nodes.get(node)
    if known is None:
        raise NotFoundError(f"there is no node {node!r}", fix="See `tokenmill status`.")
    return known


def cordoned(draft: Draft, event: NodeCordoned) -> None:
    """Nothing new goes there; replicas are replaced elsewhere, jobs start again from a checkpoint."""
    known = draft.nodes[event.node]
    reason = event.reason or "a person does not trust it"
    draft.nodes = draft.nodes.set(event.node, replace(known, cordon=reason))
    draft.reindex()
    move_away(draft, event.node, event.at_us, "preempted", f"node {event.node} was cordoned: {reason}")


def trusted(draft: Draft, event: NodeTrusted) -> None:
    """It takes work again, whatever a test of it says later; that it was slow is forgotten."""
    known = draft.nodes[event.node]
    draft.nodes = draft.nodes.set(event.node, NodeState(known.node, known.joined_us, known.lost))
    draft.reindex()


def lost(draft: Draft, event: NodeLost) -> None:
    """A node cannot be reached."""
    old = draft.nodes.get(event.node)
    if old is None or old.lost:
        return
    draft.nodes = draft.nodes.set(event.node, replace(old, lost=True))
    _count(draft, -1, event.at_us)
    draft.reindex()
    reason = f"node {event.node} was lost" + (f": {event.reason}" if event.reason else "")
    move_away(draft, event.node, event.at_us, "node_lost", reason)


def move_away(draft: Draft, node: str, now_us: int, kind: str, reason: str) -> None:
    """Stop the jobs and retire the replicas of a node, so that they go on elsewhere."""
    owners = sorted({lease.owner for lease in draft.leases.values() if lease.node == node})
    for owner in owners:
        replica = draft.replicas.get(owner)
        job = draft.jobs.get(owner)
        if replica is not None:
            replicas.retire(draft, replica, now_us, reason)
        elif job is not None and job.status in (JobStatus.STARTING, JobStatus.RUNNING):
            jobs.stop(draft, job, kind, reason)
