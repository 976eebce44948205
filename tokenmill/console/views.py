"""The factory as the API, the CLI and the status page read it: one plain dictionary from one state.

Reads the state, the progress lines and small files of the run directory. Decides nothing and calls no store.
"""

from __future__ import annotations

from typing import Any

from tokenmill import __version__
from tokenmill.console.commands import promotion_view
from tokenmill.console.context import ApiContext, read_json
from tokenmill.console.run_view import line_view, run_row
from tokenmill.control.deployments import wanted
from tokenmill.control.state import State
from tokenmill.control.table import is_asleep
from tokenmill.control.why import pace_reasons
from tokenmill.control.why_waiting import Briefly
from tokenmill.domain.codec import to_plain
from tokenmill.domain.factory import Deployment
from tokenmill.domain.work import Alias, Job, Release, Replica, ReplicaStatus
from tokenmill.floor import procfs
from tokenmill.floor.load import peers_seen, read_states
from tokenmill.floor.logs import last_words
from tokenmill.policy.power import bounded_places, unknown_draw

GATEWAY_LATE_US = 30_000_000
RECENT_RUNS = 20
RECENT_JOBS = 50
PEER_STATUS = {None: "unknown", True: "ready", False: "lost"}


def status_view(context: ApiContext) -> dict[str, Any]:
    """``GET /api/status``."""
    state, now_us, stats = context.state, context.now_us(), context.runtime.stats
    deployments = deployment_views(context)
    reasons = _not_ready(context, deployments)
    last = context.samples[-1] if context.samples else None
    return {
        "factory": state.factory.name,
        "version": __version__,
        "spec_version": state.version,
        "epoch": state.epoch,
        "pid": context.pid,
        "uptime_s": max(0, now_us - context.started_us) / 1e6,
        "started_us": context.started_us,
        "now_us": now_us,
        "url": context.url,
        "factory_file": str(context.factory_file),
        "ready": not reasons,
        "health": _health(context, deployments, reasons),
        "reasons": reasons,
        "nodes": node_views(state),
        "imports": import_views(context),
        "deployments": deployments,
        "peers": seen_peers(context),
        "lines": [line_view(state, context.runtime.progress, line, now_us) for line in state.factory.lines],
        "runs": [run_row(state, run, now_us) for _, run in sorted(state.runs.items())[-RECENT_RUNS:]][::-1],
        "jobs": job_rows(context, RECENT_JOBS),
        "throughput": {
            "tokens_per_s": last.tokens_per_s if last else 0.0,
            "requests_per_s": last.requests_per_s if last else 0.0,
        },
        "energy": {"source": stats.get("energy_source", ""), "watts": stats.get("watts", 0.0)},
        "memory": {"control_bytes": 0, "gateway_bytes": 0},
        "ledger": {"lag_s": float(stats.get("ledger_lag_s", 0.0))},
    }


def node_views(state: State) -> list[dict[str, Any]]:
    """Each node; ``closed`` says why one that is alive and trusted takes no work."""
    places = bounded_places(state.factory)
    return [
        {**to_plain(known), "closed": "" if known.lost else unknown_draw(known.node, places)}
        for _, known in sorted(state.nodes.items())
    ]


def seen_peers(context: ApiContext) -> list[dict[str, Any]]:
    """Each peer of the file, and what a gateway found when it last asked; before that nothing is known."""
    seen = peers_seen(context.paths.run, context.now_us())
    found = [(peer, seen.get(peer.name, {})) for peer in context.state.factory.peers]
    return [
        {
            "name": peer.name,
            "url": peer.url,
            "jurisdiction": peer.jurisdiction,
            "aliases": list(peer.aliases),
            "reachable": said.get("reachable"),
            "status": PEER_STATUS[said.get("reachable")],
            "reason": said.get("reason", ""),
        }
        for peer, said in found
    ]


def _not_ready(context: ApiContext, deployments: list[dict[str, Any]]) -> list[str]:
    """Why the factory as a whole is not ready; a line that never ran is no reason."""
    found = [] if context.url else [_gateway_trouble(context)]
    if context.state.version == 0:
        found.append("no factory file has been applied yet")
    found += [f"{part}: {text}" for part, text in context.runtime.stats.get("troubles", {}).items()]
    for shown in deployments:
        if shown["model"] and shown["ready_replicas"] == 0 and not shown["asleep"]:
            found.append(f"{shown['name']}: {shown['reason'] or 'no replica is ready yet'}")
    return found


def _health(context: ApiContext, deployments: list[dict[str, Any]], reasons: list[str]) -> str:
    """ready, starting while all that is missing is on its way, else degraded: somebody should look."""
    if not reasons:
        return "ready"
    late = not context.url and context.now_us() - context.started_us > GATEWAY_LATE_US
    failed = any(imported.error for imported in context.state.models.values())
    stuck = any(
        not shown["ready_replicas"] and replica["status"] in ("failed", "pending")
        for shown in deployments
        for replica in shown["replicas"]
    )
    return "degraded" if context.runtime.stats.get("troubles") or late or failed or stuck else "starting"


def _gateway_trouble(context: ApiContext) -> str:
    """Whether it runs and cannot be heard, else the last line of its log: why it could not start."""
    known = read_json(context.paths.process("gateway"))
    found = procfs.stat(int(known.get("pid", 0)))
    states = read_states(context.paths.run, 0, 0)  # of any age, but of this process
    heard = [
        us for us in (int(one.get("heartbeat_us", 0)) for one in states) if us >= known.get("started_us", 0)
    ]
    if found is not None and found.alive and found.start_time == known.get("start_time") and heard:
        silent_s = max(0, context.now_us() - max(heard)) // 1_000_000
        return (
            f"the gateway runs (pid {found.pid}), but its word is {silent_s} s old: it cannot write into "
            f"{context.paths.run}, where the disk may be full or read-only, or it hangs"
        )
    last = last_words(context.paths.log("gateway"))
    return "the gateway is not up yet" + (f"; its log ends with: {last}" if last else "")


def deployment_views(context: ApiContext) -> list[dict[str, Any]]:
    state = context.state
    why = {alias.name: alias.reason for alias in state.table.aliases}
    answers = context.runtime.stats.get("answers", {})
    briefly = Briefly(state, context.now_us())
    return [
        _deployment(
            state, deployment, why.get(deployment.name, ""), answers.get(deployment.name, (0, 0)), briefly
        )
        for deployment in (*state.factory.deployments, *_own(state))
    ]


def _own(state: State) -> list[Deployment]:
    """Models that tenants fine-tuned for themselves."""
    return [t.deployment for _, t in sorted(state.tunings.items()) if t.deployment.name in state.aliases]


def _deployment(
    state: State, deployment: Deployment, reason: str, answers: tuple[int, int], briefly: Briefly
) -> dict[str, Any]:
    alias = state.aliases.get(deployment.name)
    replicas = [
        replica
        for _, replica in sorted(state.replicas.items())
        if replica.deployment == deployment.name and replica.status is not ReplicaStatus.STOPPED
    ]
    ready = sum(replica.status is ReplicaStatus.READY for replica in replicas)
    return {
        "name": deployment.name,
        "kind": _kind(state, deployment),
        "engine": deployment.engine,
        "model": deployment.model,
        "line": deployment.line,
        "release": alias.desired if alias else "",
        "weights": [to_plain(target) for target in alias.targets] if alias else [],
        "promotion": promotion_view(alias) if alias else None,
        "wanted_replicas": wanted(deployment, state.scaling.get(deployment.name)),
        "ready_replicas": ready,
        "objective": _objective(deployment, *answers),
        "replicas": [_replica(replica, briefly) for replica in replicas],
        "asleep": alias is not None and is_asleep(state, deployment, alias),
        "reason": "" if ready else reason,
    }


def _objective(deployment: Deployment, met: int, missed: int) -> dict[str, Any] | None:
    """What a deployment promises, and how many answers of the last minute kept it."""
    if deployment.slo is None:
        return None
    milli = met * 1000 // (met + missed) if met + missed else None
    return {**to_plain(deployment.slo), "met": met, "missed": missed, "attained_milli": milli}


def _kind(state: State, deployment: Deployment) -> str:
    name = deployment.model or next(
        (line.base for line in state.factory.lines if line.name == deployment.line), ""
    )
    return next((model.kind for model in state.factory.models if model.name == name), "chat")


def _replica(replica: Replica, briefly: Briefly) -> dict[str, Any]:
    return {
        "id": replica.id,
        "release": replica.release,
        "status": replica.status.value,
        "node": replica.node,
        "address": replica.address,
        "reason": briefly.replica(replica),
        "since_us": replica.since_us,
        "restarts": replica.restarts,
    }


def import_views(context: ApiContext) -> list[dict[str, Any]]:
    """Each model of the file: where its weights come from, and how far they are."""
    state = context.state
    found = []
    for model in state.factory.models:
        imported = state.models.get(model.name)
        progress = context.runtime.progress.get(f"import-{model.name}", {})
        if imported is None:
            status = "importing"
        else:
            status = "failed" if imported.error else "ready"
        found.append(
            {
                "model": model.name,
                "kind": model.kind,
                "source": model.source,
                "status": status,
                "digest": imported.digest if imported else "",
                "size_bytes": imported.size_bytes if imported else 0,
                "format": imported.format if imported else "",
                "error": imported.error if imported else "",
                "progress": dict(progress) if imported is None else {},
            }
        )
    return found


def names_of(state: State) -> dict[str, str]:
    """What each job and replica is for, for sentences about them."""
    jobs = {
        job.id: " of ".join(filter(None, (job.spec.station or job.spec.name, job.spec.run)))
        for job in state.jobs.values()
    }
    return jobs | {replica.id: replica.deployment for replica in state.replicas.values()}


def job_rows(context: ApiContext, most: int | None = None) -> list[dict[str, Any]]:
    """The first jobs, or all: those that have not ended first, each part newest first."""
    jobs = [job for _, job in sorted(context.state.jobs.items(), reverse=True)]
    jobs.sort(key=lambda job: job.status.ended)
    briefly = Briefly(context.state, context.now_us())
    return [job_view(context, job, briefly) for job in jobs[:most]]


def job_view(context: ApiContext, job: Job, briefly: Briefly | None = None) -> dict[str, Any]:
    now_us = context.now_us()
    briefly = briefly or Briefly(context.state, now_us)
    live = not job.status.ended
    return {
        "id": job.id,
        "name": job.spec.name or job.spec.station or job.id,
        "kind": job.spec.kind,
        "status": job.status.value,
        "tenant": job.spec.tenant,
        "project": job.spec.project,
        "run": job.spec.run,
        "station": job.spec.station,
        "command": list(job.spec.command),
        "workers": job.spec.workers,
        "nodes": list(job.nodes),
        "attempt": job.attempt,
        "submitted_us": job.submitted_us,
        "started_us": job.started_us,
        "ended_us": job.ended_us,
        "seconds": max(0, (job.ended_us or now_us) - job.started_us) / 1e6 if job.started_us else 0.0,
        "progress": dict(context.runtime.progress.get(job.id, {})) if live else {},
        "result": to_plain(job.result) if job.result else None,
        "usage": to_plain(job.usage),
        "reason": briefly.job(job),
        "checkpoint": {
            "saved_us": job.saved_us,
            "interval_us": job.checkpoints.interval_us,
            "save_us": job.checkpoints.save_us,
            "reasons": pace_reasons(context.state, job, now_us),
        },
    }


def models_view(context: ApiContext) -> dict[str, Any]:
    """``GET /api/models``: weights, releases with their evidence, and what each alias points at."""
    state = context.state
    return {
        "imports": import_views(context),
        "releases": [release_view(state, release) for _, release in sorted(state.releases.items())],
        "aliases": [alias_view(alias) for _, alias in sorted(state.aliases.items())],
    }


def release_view(state: State, release: Release) -> dict[str, Any]:
    aliases = [
        name
        for name, alias in sorted(state.aliases.items())
        if any(target.release == release.id for target in alias.targets)
    ]
    plain: dict[str, Any] = to_plain(release)
    recall = state.recalls.get(release.id)
    return {**plain, "serving": aliases, "recalled": to_plain(recall) if recall else None}


def alias_view(alias: Alias) -> dict[str, Any]:
    plain: dict[str, Any] = to_plain(alias)
    return plain
