"""One replica's life: pending, starting, ready, draining, stopped; or failed, and a new one after a back-off.

A replica's id is one process. A failed replica is never started again: after its back-off a new replica with
the same count of restarts takes its place, so that a late message about the old process cannot be taken for
one about the new. How many replicas there should be is ``control.deployments``' to say.
"""

from __future__ import annotations

from tokenmill.control import canary
from tokenmill.control.draft import Draft
from tokenmill.control.leases import end_all, grant_all
from tokenmill.control.placing import find
from tokenmill.control.reservations import FAR_US, drop
from tokenmill.domain.effects import StartReplica, StopReplica
from tokenmill.domain.events import ReplicaExited, ReplicaReady, ReplicaStarted
from tokenmill.domain.factory import Deployment
from tokenmill.domain.value import replace
from tokenmill.domain.work import Release, Replica, ReplicaStatus
from tokenmill.policy.place import Demand

BACKOFF_US = 1_000_000
BACKOFF_MOST_US = 60_000_000
STEADY_US = 300_000_000
"""A replica that was ready for five minutes begins its back-off anew when it fails."""

GRACE_US = 30_000_000
"""An engine that was asked to stop may finish its streams for this long."""

FAILURES_MOST = 3
"""A release whose replicas fail this often in a row before it takes traffic is given up."""


def started(draft: Draft, event: ReplicaStarted) -> None:
    """The process has an address."""
    replica = draft.replicas.get(event.replica)
    if replica is None or replica.status not in (ReplicaStatus.STARTING, ReplicaStatus.READY):
        return
    if replica.address != event.address:
        draft.put_replica(replica_with(replica, address=event.address))


def ready(draft: Draft, event: ReplicaReady) -> None:
    """The engine answers. It takes traffic when its address is known too; messages may come in any order."""
    replica = draft.replicas.get(event.replica)
    if replica is None or replica.status is not ReplicaStatus.STARTING:
        return
    draft.put_replica(
        replica_with(replica, status=ReplicaStatus.READY, since_us=event.at_us, retry_us=0, reason="")
    )
    alias = draft.aliases.get(replica.deployment)
    # A candidate that turns ready and dies, again and again, is counted through its whole canary.
    trying = alias is not None and alias.canary is not None
    if alias is not None and not trying and alias.failures and alias.desired == replica.release:
        draft.put_alias(replace(alias, failures=0))


def exited(draft: Draft, event: ReplicaExited) -> None:
    """The process is gone: its lease ends; it was wanted to go, or it failed and backs off."""
    replica = draft.replicas.get(event.replica)
    if replica is None:
        return
    if replica.status is ReplicaStatus.DRAINING:
        end_all(draft, replica.id, "serve", replica.deployment, event.usage, event.at_us)
        _stopped(draft, replica, event.at_us, event.reason or replica.reason)
    elif replica.status in (ReplicaStatus.STARTING, ReplicaStatus.READY):
        end_all(draft, replica.id, "serve", replica.deployment, event.usage, event.at_us)
        _failed(draft, replica, event)


def _failed(draft: Draft, replica: Replica, event: ReplicaExited) -> None:
    steady = replica.status is ReplicaStatus.READY and event.at_us - replica.since_us >= STEADY_US
    restarts = 1 if steady else replica.restarts + 1
    # The first time it is started again at once: most engines that were well die of something that passed.
    wait_us = min(BACKOFF_US << min(restarts - 2, 6), BACKOFF_MOST_US) if restarts > 1 else 0
    draft.put_replica(
        replica_with(
            replica,
            status=ReplicaStatus.FAILED,
            address="",
            since_us=event.at_us,
            restarts=restarts,
            retry_us=event.at_us + wait_us,
            reason=event.reason or "the process ended by itself",
        )
    )
    alias = draft.aliases.get(replica.deployment)
    if alias is None or alias.desired != replica.release or not alias.targets:
        return
    serving = alias.targets[0].release
    if serving == alias.desired:
        return
    failures = alias.failures + 1
    if failures < FAILURES_MOST:
        draft.put_alias(replace(alias, failures=failures))
        return
    reason = (
        f"release {alias.desired} failed {failures} times before it took all traffic"
        f" (last: {event.reason or 'it ended by itself'}); {serving} goes on serving"
    )
    canary.back(draft, alias, event.at_us, reason)


def create(draft: Draft, deployment: Deployment, release: str, restarts: int, now_us: int) -> None:
    """Want one more replica of ``release``."""
    draft.put_replica(
        Replica(
            id=draft.new_id("r"),
            deployment=deployment.name,
            release=release,
            status=ReplicaStatus.PENDING,
            since_us=now_us,
            restarts=restarts,
            spec=deployment,
        )
    )


def start(draft: Draft, replica: Replica, now_us: int) -> bool:
    """Place a pending replica and have it started; False when no node has room.

    Its time is the factory's own (no tenant): the tokens that it makes recover it.
    """
    release = draft.releases.get(replica.release)
    spec = replica.spec
    if release is None or spec is None:
        return False
    demand = demand_of(draft, spec, release)
    placement = find(draft, replica.id, FAR_US, demand)
    if placement is None:
        return False
    grant_all(draft, replica.id, demand, placement, ("", ""), now_us)
    node = placement.nodes[0]
    draft.put_replica(replica_with(replica, status=ReplicaStatus.STARTING, node=node, since_us=now_us))
    drop(draft, replica.id)
    draft.effects.append(StartReplica(replica.id, spec, release, node, placement.accelerators[0]))
    return True


def retire(draft: Draft, replica: Replica, now_us: int, reason: str) -> None:
    """Stop wanting a replica. Its lease stays until the floor says that the process is gone."""
    drop(draft, replica.id)
    if replica.status in (ReplicaStatus.PENDING, ReplicaStatus.FAILED):
        _stopped(draft, replica, now_us, reason)
    elif replica.status in (ReplicaStatus.STARTING, ReplicaStatus.READY):
        draft.put_replica(
            replica_with(replica, status=ReplicaStatus.DRAINING, since_us=now_us, reason=reason)
        )
        draft.effects.append(StopReplica(replica.id, GRACE_US))


def due(draft: Draft, replica_id: str, now_us: int) -> None:
    """A failed replica's back-off is over: a new one takes its place if it is still wanted."""
    replica = draft.replicas[replica_id]
    _stopped(draft, replica, now_us, replica.reason)
    if replica.spec is not None and replica.deployment in draft.aliases:
        create(draft, replica.spec, replica.release, replica.restarts, now_us)


def demand_of(draft: Draft, spec: Deployment, release: Release) -> Demand:
    """What a replica asks. What a line released stays where its tenant's data may be."""
    line = draft.index.lines.get(release.line) if release.line else None
    tenant = draft.index.tenants.get(line.tenant) if line else None
    laws = tenant.jurisdictions if tenant else ()
    if spec.spread not in ("node", "rack", "site"):
        return Demand(spec.resources, 1, laws)
    siblings = [draft.replicas[name].node for name in draft.replicas_of.get(spec.name, ())]
    return Demand(spec.resources, 1, laws, spec.spread, tuple(node for node in siblings if node))


def replica_with(
    old: Replica,
    *,
    status: ReplicaStatus | None = None,
    node: str | None = None,
    address: str | None = None,
    since_us: int | None = None,
    restarts: int | None = None,
    retry_us: int | None = None,
    reason: str | None = None,
) -> Replica:
    """``old`` with some fields changed: ``dataclasses.replace``, several times faster."""
    return Replica(
        old.id,
        old.deployment,
        old.release,
        old.status if status is None else status,
        old.node if node is None else node,
        old.address if address is None else address,
        old.since_us if since_us is None else since_us,
        old.restarts if restarts is None else restarts,
        old.retry_us if retry_us is None else retry_us,
        old.reason if reason is None else reason,
        old.spec,
    )


def _stopped(draft: Draft, replica: Replica, now_us: int, reason: str) -> None:
    draft.put_replica(
        replica_with(
            replica, status=ReplicaStatus.STOPPED, address="", since_us=now_us, retry_us=0, reason=reason
        )
    )
