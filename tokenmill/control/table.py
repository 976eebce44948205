"""The table that gateways serve from, derived from the state: keys, limits, aliases and live replicas.

Keys that are disabled, or whose tenant or project is not in the factory file, are left out. An endpoint's
jurisdiction is that of its node's site. Peers answer for aliases under releases named ``peer:<name>``.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from tokenmill.control.releases import remote
from tokenmill.control.state import State
from tokenmill.domain.factory import Deployment, Peer
from tokenmill.domain.table import AliasEntry, Endpoint, KeyEntry, Table, TenantEntry
from tokenmill.domain.value import replace
from tokenmill.domain.work import Alias, Replica, ReplicaStatus
from tokenmill.policy.price import book_of
from tokenmill.policy.route import PEER_PREFIX

PEER_SLOTS = 64
SHOWN = (ReplicaStatus.READY, ReplicaStatus.DRAINING)


def table_of(state: State, before: State | None = None) -> Table:
    """The table as it should be published now, with the state's table version.

    What is as it was ``before`` is taken from the table of that state, which must be the one due for it: of a
    thousand replicas of many deployments a step touches few.
    """
    old = before if before is not None and before.factory is state.factory else None
    return Table(
        version=state.table_version,
        factory=state.factory.name,
        keys=old.table.keys if old is not None and old.keys is state.keys else _keys(state),
        tenants=_tenants(state) if old is None else old.table.tenants,
        aliases=_aliases(state, old),
    )


def publish(state: State, before: State) -> State:
    """The state with a newer table if anything that it shows has changed since ``before``, else the same."""
    table = table_of(state, before)
    if table == state.table:
        return state
    version = state.table_version + 1
    return replace(state, table_version=version, table=replace(table, version=version))


def _tenants(state: State) -> tuple[TenantEntry, ...]:
    return tuple(
        TenantEntry(
            t.name,
            t.quota,
            t.jurisdictions,
            tuple((p.name, p.quota) for p in t.projects),
            tuple(bound for bound in state.factory.quotas if bound.tenant == t.name),
            t.priority,
            t.share,
            tuple((p.name, p.capture) for p in t.projects if p.capture is not None),
        )
        for t in state.factory.tenants
    )


def _keys(state: State) -> tuple[KeyEntry, ...]:
    known = {(tenant.name, project.name) for tenant in state.factory.tenants for project in tenant.projects}
    return tuple(
        KeyEntry(key.id, key.digest, key.tenant, key.project, key.scope, key.expires_us)
        for key in sorted(state.keys.values(), key=lambda key: key.id)
        if not key.disabled and (key.tenant, key.project) in known
    )


def _aliases(state: State, old: State | None) -> tuple[AliasEntry, ...]:
    known = {entry.name: entry for entry in old.table.aliases} if old is not None else {}
    law = {site.name: site.jurisdiction for site in state.factory.sites}
    peers: dict[str, list[Peer]] = {}
    for peer in state.factory.peers:
        for name in peer.aliases:
            peers.setdefault(name, []).append(peer)
    entries: list[AliasEntry] = []
    tuned = (tuning.deployment for _, tuning in sorted(state.tunings.items()) if not tuning.dropped)
    for deployment in (*state.factory.deployments, *tuned):
        name = deployment.name
        alias, entry = state.aliases.get(name), known.get(name)
        if alias is None:
            continue
        away = peers.pop(name, ())
        stays = _staying(state, old, name)
        if old is not None and entry is not None and _as_it_was(state, old, deployment, entry, len(stays)):
            entries.append(entry)
        else:
            own = _endpoints(
                state, name, law, {one.replica: one for one in _of(entry) if one.replica in stays}
            )
            entries.append(_entry(state, deployment, alias, own, tuple(_peer(peer, name) for peer in away)))
    for name in sorted(peers):
        was_own = old is None or (name in old.aliases and name in old.index.deployments)
        entries.append(_elsewhere(state, name, peers[name]) if was_own else known[name])
    return tuple(entries)


def _elsewhere(state: State, name: str, peers: list[Peer]) -> AliasEntry:
    """An alias that only peers answer for."""
    away = tuple(_peer(peer, name) for peer in peers)
    targets = tuple((endpoint.release, 1000 // len(away)) for endpoint in away)
    prices = book_of(state.factory.prices, name)
    return AliasEntry(name, "chat", 0, targets, away, (), 0, peers[0].name, prices=prices)


def _of(entry: AliasEntry | None) -> tuple[Endpoint, ...]:
    return entry.endpoints if entry is not None else ()


def _as_it_was(state: State, old: State, deployment: Deployment, entry: AliasEntry, staying: int) -> bool:
    """Whether all that the entry of a deployment is made of is what it was; ``reason_of`` asks for more."""
    name = deployment.name
    names = state.index.replicas_of.get(name, ())
    return (
        staying == len(names)
        and old.aliases.get(name) is state.aliases[name]
        and old.index.deployments.get(name) is deployment
        and old.index.replicas_of.get(name, ()) == names
        and (not entry.reason or _says_why(old, deployment) == _says_why(state, deployment))
    )


def _says_why(state: State, deployment: Deployment) -> tuple[object, ...]:
    return state.models.get(deployment.model), state.scaling.get(deployment.name)


def _staying(state: State, old: State | None, deployment: str) -> set[str]:
    """Replicas of a deployment that are what they were, on a node that stands where it stood."""
    if old is None:
        return set()
    names = state.index.replicas_of.get(deployment, ())
    same = [state.replicas[name] for name in names if old.replicas.get(name) is state.replicas[name]]
    if old.nodes is not state.nodes:
        same = [replica for replica in same if _site_of(old, replica) == _site_of(state, replica)]
    return {replica.id for replica in same}


def _site_of(state: State, replica: Replica) -> str | None:
    known = state.nodes.get(replica.node)
    return None if known is None else known.node.site


def _endpoints(
    state: State, deployment: str, law: dict[str, str], kept: dict[str, Endpoint]
) -> list[Endpoint]:
    """Where its replicas answer; those of ``kept`` as they did."""
    found: list[Endpoint] = []
    for name in state.index.replicas_of.get(deployment, ()):
        replica = state.replicas[name]
        if replica.status in SHOWN and replica.address:
            found.append(kept.get(name) or _endpoint(state, replica, law))
    return found


def _entry(
    state: State, deployment: Deployment, alias: Alias, own: list[Endpoint], away: tuple[Endpoint, ...]
) -> AliasEntry:
    serves = any(not endpoint.draining for endpoint in own)
    line = state.index.lines.get(deployment.line)
    base = deployment.model or (line.base if line else "")
    model = next((found for found in state.factory.models if found.name == base), None)
    return AliasEntry(
        name=alias.name,
        kind=model.kind if model else "chat",
        context_tokens=deployment.context_tokens,
        targets=tuple((target.release, target.weight_milli) for target in alias.targets),
        endpoints=(*own, *away),
        tenants=deployment.tenants,
        created_s=alias.since_us // 1_000_000,
        owner=line.tenant if line else state.factory.name,
        reason="" if serves and alias.targets else reason_of(state, deployment, alias),
        shadow=_shadow(deployment, alias),
        slo=deployment.slo,
        prices=book_of(state.factory.prices, deployment.name, deployment.model),
        asleep=not own and is_asleep(state, deployment, alias),
    )


def _shadow(deployment: Deployment, alias: Alias) -> tuple[str, int] | None:
    """Which release gets copies of requests now, and of how many."""
    plan, found = deployment.canary, alias.canary
    if plan is None or found is None or found.step >= len(plan.steps):
        return None
    step = plan.steps[found.step]
    return (found.candidate, step.weight_milli) if step.shadow else None


def _endpoint(state: State, replica: Replica, law: dict[str, str]) -> Endpoint:
    node = state.nodes.get(replica.node)
    spec = replica.spec
    elsewhere = spec is not None and remote(spec)
    return Endpoint(
        replica=replica.id,
        release=replica.release,
        address=replica.address,
        jurisdiction=law.get(node.node.site, "") if node else "",
        slots=spec.slots if spec else 1,
        draining=replica.status is ReplicaStatus.DRAINING,
        tls=bool(elsewhere and spec and spec.url.startswith("https:")),
        engine=spec.engine if spec and not elsewhere else "",
        served_model=spec.model if elsewhere and spec else "",
    )


def _peer(peer: Peer, alias: str) -> Endpoint:
    url = urlsplit(peer.url)
    tls = url.scheme == "https"
    port = url.port or (443 if tls else 80)
    name = f"{PEER_PREFIX}{peer.name}"
    return Endpoint(
        replica=name,
        release=name,
        address=f"{url.hostname or ''}:{port}",
        jurisdiction=peer.jurisdiction,
        slots=PEER_SLOTS,
        tls=tls,
        key_ref=peer.key_ref,
        served_model=alias,
    )


def is_asleep(state: State, deployment: Deployment, alias: Alias) -> bool:
    """Whether nothing serves it because nobody asks, and a request would wake it."""
    memory = state.scaling.get(deployment.name)
    wanted = deployment.replicas or (memory is not None and memory.wanted)
    return bool(alias.desired) and not wanted and not state.index.replicas_of.get(deployment.name)


def reason_of(state: State, deployment: Deployment, alias: Alias) -> str:
    """Why nothing serves this alias now, in one sentence."""
    if not alias.desired:
        if "was recalled" in alias.reason:
            return alias.reason
        if deployment.line:
            line = deployment.line
            return f"line {line} has not released anything yet: `tokenmill run {line}` makes a release"
        imported = state.models.get(deployment.model)
        if imported is not None and imported.error:
            return f"model {deployment.model} could not be imported: {imported.error}"
        return f"model {deployment.model} is being imported"
    replicas = [state.replicas[name] for name in state.index.replicas_of.get(deployment.name, ())]
    if is_asleep(state, deployment, alias):
        return "it sleeps: the first request wakes it, retry in some seconds"
    for replica in replicas:
        if replica.status is ReplicaStatus.FAILED:
            return f"replica {replica.id} failed and will be tried again: {replica.reason}"
    if any(replica.status is ReplicaStatus.STARTING for replica in replicas):
        return f"replicas of {alias.desired} are starting"
    if any(replica.status is ReplicaStatus.PENDING for replica in replicas):
        return f"no node has room for a replica; `tokenmill why {deployment.name}` says what each lacks"
    return f"no replica of {alias.desired} is ready"
