"""Deployments and their aliases: which release is desired, when traffic flips to it, and what drains after.

Traffic flips when enough replicas of the desired release are ready, and only then do the others drain. Where
there is no room for both they are replaced one by one, and nobody grows before everybody has a successor. A
removed deployment drains. ``desired`` is changed by events (an import, a release, a rollback, a new spec),
never by looking at state, so that a release which was given up or rolled back is not chosen again by itself.
With a canary plan the flip is the end of a way in steps (``control.canary``); a person's choice goes
straight.
"""

from __future__ import annotations

from tokenmill.control import canary, replicas
from tokenmill.control.draft import Draft
from tokenmill.control.index import id_order
from tokenmill.control.releases import fits, import_release, latest_of_line, remote, remote_release
from tokenmill.control.schedule import preempt_for_replica
from tokenmill.control.state import State
from tokenmill.domain.events import LoadReported
from tokenmill.domain.factory import Deployment, Factory
from tokenmill.domain.value import replace
from tokenmill.domain.work import Alias, Release, Replica, ReplicaStatus, Target
from tokenmill.policy.place import place
from tokenmill.policy.scale import Bounds, Load, ScaleMemory, because, missed, scale

HISTORY_MOST = 20
STARTED = (ReplicaStatus.STARTING, ReplicaStatus.READY)


def same_engine(old: Deployment | None, new: Deployment) -> bool:
    """Whether a replica made from ``old`` serves as ``new`` asks, its release aside."""
    return old is new or (old is not None and _engine(old) == _engine(new))


def _engine(deployment: Deployment) -> tuple[object, ...]:
    """What an engine is started with."""
    return (
        deployment.engine,
        deployment.context_tokens,
        deployment.slots,
        deployment.resources,
        deployment.engine_args,
        deployment.url,
    )


def follow_spec(draft: Draft, old: Factory, now_us: int) -> None:
    """Make, re-point and drop aliases after a new spec. Every deployment is reconciled once."""
    before = {deployment.name: deployment for deployment in old.deployments}
    for deployment in draft.factory.deployments:
        known = before.get(deployment.name)
        alias = draft.aliases.get(deployment.name)
        if alias is None:
            alias = Alias(deployment.name, deployment.name, since_us=now_us)
            draft.put_alias(alias)
            known = None
        if known is None or (known.model, known.line, known.url) != (
            deployment.model,
            deployment.line,
            deployment.url,
        ):
            release = newest(draft, deployment, now_us)
            # While a model is being imported the old one serves on; a line without a release serves nothing.
            if release or deployment.line or alias.desired in draft.recalls:
                point(draft, alias, release, now_us)
        draft.touched_deployments.add(deployment.name)
    names = set(draft.index.deployments)
    for name in sorted(draft.aliases):
        if name not in names:
            draft.aliases = draft.aliases.delete(name)
            draft.changed = True
            draft.touched_deployments.add(name)
    for name in sorted(draft.scaling):
        if name not in names:
            draft.scaling = draft.scaling.delete(name)


def newest(draft: Draft, deployment: Deployment, now_us: int) -> str:
    """The release a deployment should serve by its spec alone, or "" when there is none yet."""
    if deployment.line:
        return latest_of_line(draft, deployment.line)
    if remote(deployment):
        return _not_recalled(draft, remote_release(draft, deployment, now_us))
    model = next((m for m in draft.factory.models if m.name == deployment.model), None)
    imported = draft.models.get(deployment.model)
    if model is None or imported is None or not fits(model, imported):
        return ""
    return _not_recalled(draft, import_release(draft, imported, now_us))


def _not_recalled(draft: Draft, release: str) -> str:
    return "" if release in draft.recalls else release


def point(
    draft: Draft, alias: Alias, release: str, now_us: int, reason: str = "", *, straight: bool = False
) -> None:
    """Desire ``release``. Traffic follows when its replicas are ready; without any release it stops.

    A candidate that was on its way is given up. A release that takes traffic already takes all of it now.
    """
    targets = alias.targets if release else ()
    if alias.canary is not None and release:
        targets = (Target(release if straight and _served(alias, release) else targets[0].release, 1000),)
    changed = replace(
        alias,
        desired=release,
        targets=targets,
        since_us=now_us,
        failures=0,
        reason=reason,
        canary=None,
        straight=straight,
    )
    if (alias.desired, alias.targets, alias.reason) != (release, targets, reason):
        draft.put_alias(changed)


def _served(alias: Alias, release: str) -> bool:
    return any(target.release == release and target.weight_milli for target in alias.targets)


def promote(draft: Draft, release: Release, now_us: int) -> None:
    """A new release is there: every deployment of its line, or of its model, desires it.

    Except where a person holds the alias, or where it was sent back before.
    """
    if release.id in draft.recalls:
        return
    for _, deployment in sorted(draft.index.deployments.items()):
        alias = draft.aliases.get(deployment.name)
        if alias is None:  # a tenant's own model gets its name with its first release
            alias = Alias(deployment.name, deployment.name, since_us=now_us)
        if remote(deployment) or release.id in (alias.desired, *alias.refused):
            continue
        if deployment.line == release.line if release.line else deployment.model == release.model:
            if alias.hold:
                draft.put_alias(replace(alias, waiting=release.id))
            else:
                point(draft, alias, release.id, now_us)


def load_reported(state: State, event: LoadReported) -> ScaleMemory | None:
    """What scaling remembers after this report, or ``None`` when it changes nothing."""
    seen = _seen(state, event)
    new = scale(*seen, event.at_us) if seen else None
    return None if seen is None or new == seen[0] else new


def scaling_reason(state: State, event: LoadReported) -> str:
    """What this report makes of the number of replicas, and because of what; empty when nothing."""
    seen = _seen(state, event)
    return f"{event.deployment}: {said}" if seen and (said := because(*seen, event.at_us)) else ""


def _seen(state: State, event: LoadReported) -> tuple[ScaleMemory, Bounds, Load] | None:
    deployment = state.index.deployments.get(event.deployment)
    if deployment is None or deployment.max_replicas <= deployment.replicas:
        return None
    old = state.scaling.get(event.deployment) or ScaleMemory(deployment.replicas)
    bounds = Bounds(
        deployment.replicas,
        deployment.max_replicas,
        deployment.slots,
        deployment.wait_target_us,
        deployment.idle_after_us,
        deployment.slo.attainment_milli if deployment.slo else 0,
    )
    load = Load(
        event.in_flight, event.refused_full, event.asleep, event.wait_us, event.measured, event.attained
    )
    if missed(bounds, load):
        load = replace(load, settled_us=_settled_us(state, deployment.name, old.wanted))
    return old, bounds, load


def _settled_us(state: State, name: str, count: int) -> int:
    """Since when ``count`` replicas serve, or -1 while fewer do."""
    ready = [
        replica.since_us
        for replica in (state.replicas[found] for found in state.index.replicas_of.get(name, ()))
        if replica.status is ReplicaStatus.READY
    ]
    return max(ready, default=0) if len(ready) >= count else -1


def scaled(draft: Draft, event: LoadReported) -> None:
    """Remember what the load says; the number wanted may change with it."""
    memory = load_reported(draft.base, event)
    if memory is not None:
        draft.changed = True
        draft.scaling = draft.scaling.set(event.deployment, memory)
        draft.touched_deployments.add(event.deployment)


def wanted(deployment: Deployment, memory: ScaleMemory | None) -> int:
    """How many replicas there should be now."""
    most = max(deployment.replicas, deployment.max_replicas)
    return min(max(memory.wanted if memory else 0, deployment.replicas), most)


def succeed(draft: Draft, name: str, now_us: int) -> None:
    """Start one successor where all are to be replaced, before any deployment grows into the room."""
    deployment, alias = draft.index.deployments.get(name), draft.aliases.get(name)
    if deployment is None or alias is None or alias.desired not in draft.releases:
        return
    current, others = _split(draft, deployment, alias)
    if others and not current and wanted(deployment, draft.scaling.get(name)):
        _fill(draft, deployment, alias, 1, now_us)
        for replica in _split(draft, deployment, alias)[0]:
            replicas.start(draft, replica, now_us)


def reconcile(draft: Draft, name: str, now_us: int) -> None:
    """Bring one deployment a step nearer to its spec: fill, start, flip, drain."""
    deployment = draft.index.deployments.get(name)
    alias = draft.aliases.get(name)
    if deployment is None or alias is None or alias.desired not in draft.releases:
        for replica in _live(draft, name):
            why = "the deployment was removed" if deployment is None else "there is no release to serve"
            replicas.retire(draft, replica, now_us, why)
        return
    count = wanted(deployment, draft.scaling.get(name))
    _fill(draft, deployment, alias, count, now_us)
    waiting = _start(draft, deployment, name, now_us)
    current, others = _split(draft, deployment, alias)
    enough = _enough(current, others, alias, min(count, deployment.replicas))
    making = waiting is not None and not enough and _make_room(draft, deployment, alias, waiting, now_us)
    if enough or (not making and _placed(current)):
        if deployment.canary is not None and canary.needed(deployment, alias):
            canary.begin(draft, alias, deployment.canary, now_us)
            return
        _flip(draft, alias, now_us)
        for replica in others:
            replicas.retire(draft, replica, now_us, f"replaced by {alias.desired}")
        return
    serving = {target.release for target in alias.targets}
    for replica in others:
        if replica.release not in serving:
            replicas.retire(draft, replica, now_us, f"{alias.desired} is wanted instead")


def _live(draft: Draft, name: str) -> list[Replica]:
    """A deployment's replicas that are not on their way out, by id."""
    found = (draft.replicas[replica] for replica in draft.replicas_of.get(name, ()))
    return [replica for replica in found if replica.status is not ReplicaStatus.DRAINING]


def _split(draft: Draft, deployment: Deployment, alias: Alias) -> tuple[list[Replica], list[Replica]]:
    """Replicas that are as desired, and the others."""
    current: list[Replica] = []
    others: list[Replica] = []
    for replica in _live(draft, deployment.name):
        as_desired = replica.release == alias.desired and same_engine(replica.spec, deployment)
        (current if as_desired else others).append(replica)
    return current, others


def _fill(draft: Draft, deployment: Deployment, alias: Alias, count: int, now_us: int) -> None:
    current, _ = _split(draft, deployment, alias)
    for _ in range(count - len(current)):
        replicas.create(draft, deployment, alias.desired, 0, now_us)
    # Those that do least go first: waiting, failed, starting, then the youngest that is ready.
    order = (ReplicaStatus.PENDING, ReplicaStatus.FAILED, ReplicaStatus.STARTING, ReplicaStatus.READY)
    current.sort(key=lambda replica: id_order(replica.id), reverse=True)
    current.sort(key=lambda replica: order.index(replica.status))
    for replica in current[: max(0, len(current) - count)]:
        replicas.retire(draft, replica, now_us, f"{count} replicas are wanted")


def _start(draft: Draft, deployment: Deployment, name: str, now_us: int) -> Replica | None:
    """Start what waits. Returns the first for which no node has room; jobs may have to give way to it."""
    if not draft.unplaced.get(name):
        return None
    for replica in _live(draft, name):
        if replica.status is ReplicaStatus.PENDING and not replicas.start(draft, replica, now_us):
            release = draft.releases.get(replica.release)
            if release is not None:
                demand = replicas.demand_of(draft, replica.spec or deployment, release)
                preempt_for_replica(draft, replica, demand, now_us)
            return replica
    return None


def _make_room(draft: Draft, deployment: Deployment, alias: Alias, waiting: Replica, now_us: int) -> bool:
    """Whether an old replica drains for the one that waits; one begins to if that makes room.

    One at a time: the next when its successor is ready, and none while successors fail. The last one goes for
    a changed spec only, which a person wants, and only where nothing new serves: a release waits for room. A
    candidate has one replica until it has earned its traffic.
    """
    names = draft.replicas_of.get(deployment.name, ())
    if any(draft.replicas[name].status is ReplicaStatus.DRAINING for name in names):
        return True
    current, others = _split(draft, deployment, alias)
    old = [replica for replica in others if replica.status in STARTED]
    release = draft.releases.get(waiting.release)
    if not old or release is None or waiting not in current:
        return False
    if any(replica.status in (ReplicaStatus.STARTING, ReplicaStatus.FAILED) for replica in current):
        return False
    serves = any(replica.status is ReplicaStatus.READY for replica in current)
    if len(old) == 1 and (serves or not _changed(old[0].spec, deployment)):
        return False
    if serves and canary.needed(deployment, alias):
        return False
    demand = replicas.demand_of(draft, deployment, release)
    leaving = {replica.id for replica in old}
    if place(draft.fleet_if(lambda lease: lease.owner not in leaving), demand) is None:
        return False
    replicas.retire(draft, old[0], now_us, "it makes room for the changed deployment")
    return True


def _changed(old: Deployment | None, new: Deployment) -> bool:
    return old is None or not same_engine(old, new) or (old.model, old.line) != (new.model, new.line)


def _enough(current: list[Replica], others: list[Replica], alias: Alias, least: int) -> bool:
    """Whether what is as desired can carry the traffic.

    All that the spec asks for are ready; or those that could be placed are, and as many as still serve of the
    releases before. Of the same release all serve together, so none has to go before the last. An alias that
    nothing serves yet flips to the first one.
    """
    ready = sum(r.status is ReplicaStatus.READY and bool(r.address) for r in current)
    if ready == 0:
        return False
    if ready >= least or not alias.targets:
        return True
    still = [replica.release for replica in others if replica.status is ReplicaStatus.READY]
    return _placed(current) and alias.desired not in still and ready >= len(still)


def _placed(current: list[Replica]) -> bool:
    """Whether some serve, and all others wait for room."""
    ready = any(r.status is ReplicaStatus.READY and r.address for r in current)
    return ready and all(r.status in (ReplicaStatus.READY, ReplicaStatus.PENDING) for r in current)


def _flip(draft: Draft, alias: Alias, now_us: int) -> None:
    targets = (Target(alias.desired, 1000),)
    if alias.targets == targets:
        return
    history = alias.history
    if not history or history[-1] != alias.desired:
        history = (*history, alias.desired)[-HISTORY_MOST:]
    draft.put_alias(
        replace(
            alias, targets=targets, history=history, since_us=now_us, failures=0, canary=None, straight=False
        )
    )
