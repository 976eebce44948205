"""Nodes: they join, are lost and come back. What ran on a lost node holds its lease until its end is
reported.

A lost node may be cut off with its processes alive, so nothing that it held is given to anyone else; its
replicas are replaced elsewhere and its jobs stopped, to be tried again. A floor reports the exits of what is
gone when the node is back.
"""

from __future__ import annotations

from dataclasses import replace

from tokenmill.control import jobs, replicas
from tokenmill.control.draft import Draft
from tokenmill.domain.events import NodeJoined, NodeLost
from tokenmill.domain.work import JobStatus, NodeState


def joined(draft: Draft, event: NodeJoined) -> None:
    """A node is here, new or back, or another size than before."""
    old = draft.nodes.get(event.node.id)
    if old is not None and not old.lost and old.node == event.node:
        return
    draft.nodes = draft.nodes.set(event.node.id, NodeState(event.node, event.at_us))
    draft.reindex()


def lost(draft: Draft, event: NodeLost) -> None:
    """A node cannot be reached."""
    old = draft.nodes.get(event.node)
    if old is None or old.lost:
        return
    draft.nodes = draft.nodes.set(event.node, replace(old, lost=True))
    draft.reindex()
    reason = f"node {event.node} was lost" + (f": {event.reason}" if event.reason else "")
    owners = sorted({lease.owner for lease in draft.leases.values() if lease.node == event.node})
    for owner in owners:
        replica = draft.replicas.get(owner)
        job = draft.jobs.get(owner)
        if replica is not None:
            replicas.retire(draft, replica, event.at_us, reason)
        elif job is not None and job.status in (JobStatus.STARTING, JobStatus.RUNNING):
            jobs.stop(draft, job, "node_lost", reason)
