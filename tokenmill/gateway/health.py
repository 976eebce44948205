"""What the gateway says of itself: readiness, metrics' gauges and the state file for the controller.

The state file is written whole every second, so that a controller that comes back finds what runs.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

import orjson

from tokenmill import __version__
from tokenmill.gateway.edge import Gateway
from tokenmill.gateway.metrics import MET, MISSED, Metrics
from tokenmill.policy.route import PEER_PREFIX

log = logging.getLogger("tokenmill.gateway")

LAG_S = 2.0
SILENT_S = 10.0
PENDING_S = 600.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


def memory_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE


def reasons(gateway: Gateway) -> list[str]:
    """Why this gateway is not ready; empty when it is."""
    found = []
    if gateway.draining:
        found.append("the gateway is draining")
    if not gateway.tables.present:
        found.append(f"there is no table: {gateway.tables.problem}")
    elif not any(not e.draining for e in gateway.serving.endpoints.values()):
        if not any(alias.asleep for alias in gateway.serving.index.aliases.values()):
            found.append("no endpoint is ready")  # while one sleeps a request wakes it, so they have to come
    else:
        now_us = gateway.clock()
        cooling = [
            r
            for r in gateway.serving.endpoints
            if (seen := gateway.memory.endpoints.get(r)) and seen.cooling_until_us > now_us
        ]
        if len(cooling) == len(gateway.serving.endpoints):
            found.append("every endpoint failed and is left alone for a moment")
    if gateway.spool.problem:
        found.append(f"the spool cannot be written: {gateway.spool.problem}")
    if gateway.loop_lag_s > LAG_S:
        found.append(f"the event loop was {gateway.loop_lag_s:.1f} s late")
    if gateway.loop.time() - gateway.ticked_s > SILENT_S:
        found.append("the loop that reads the table has stopped")
    oldest = gateway.oldest_pending_s()
    if oldest > PENDING_S:
        found.append(f"the oldest request has waited {oldest:.0f} s for its first byte")
    return found


def readiness(gateway: Gateway) -> tuple[bool, bytes]:
    """The verdict and the body of ``/readyz``."""
    why = reasons(gateway)
    body = {
        "ready": not why,
        "reasons": why,
        "table": {
            "version": gateway.serving.version,
            "present": gateway.tables.present,
            "problem": gateway.tables.problem,
        },
        "endpoints": len(gateway.serving.endpoints),
        "spool": {
            "file": gateway.spool.path.name,
            "writable": gateway.spool.writable,
            "waiting": gateway.spool.waiting,
        },
        "oldest_pending_s": round(gateway.oldest_pending_s(), 3),
        "loop_lag_s": round(gateway.loop_lag_s, 4),
        "heartbeat_age_s": round(gateway.loop.time() - gateway.ticked_s, 3),
    }
    return not why, orjson.dumps(body)


def gauges(gateway: Gateway) -> dict[str, tuple[str, float]]:
    """Values that are read, not counted, by metric name."""
    return {
        "tokenmill_gateway_open_requests": ("Requests admitted and not settled.", len(gateway.exchanges)),
        "tokenmill_gateway_connections": ("Client connections.", len(gateway.connections)),
        "tokenmill_gateway_memory_bytes": ("Resident memory.", memory_bytes()),
        "tokenmill_gateway_loop_lag_seconds": ("How late the event loop was.", gateway.loop_lag_s),
        "tokenmill_gateway_table_version": ("Version of the table served from.", gateway.serving.version),
        "tokenmill_gateway_tables_rejected_total": ("Stale or damaged tables.", gateway.tables.rejected),
        "tokenmill_gateway_retries_total": ("Requests given to another endpoint.", gateway.metrics.retries),
        "tokenmill_gateway_upstream_connections_total": ("Connections opened.", gateway.pool.opened),
        "tokenmill_spool_lines_total": ("Lines written to the spool.", gateway.spool.lines),
        "tokenmill_spool_waiting_lines": ("Lines the disk has not taken.", gateway.spool.waiting),
        "tokenmill_shadow_copies_running": ("Copies for candidates.", gateway.shadows.running),
        "tokenmill_shadow_copies_skipped_total": ("Copies left out.", gateway.shadows.skipped),
        "tokenmill_oldest_pending_seconds": ("Longest wait for a first byte.", gateway.oldest_pending_s()),
    }


def state(gateway: Gateway) -> dict[str, object]:
    """What the controller reads: load per deployment and endpoint, totals, and a heartbeat."""
    in_flight: dict[str, int] = {}
    waits: dict[str, int] = {}  # model -> longest wait for a first byte, in whole tenths of a second
    now_s = gateway.loop.time()
    for exchange in gateway.exchanges:
        in_flight[exchange.model] = in_flight.get(exchange.model, 0) + 1
        if not exchange.started:
            wait_us = int((now_s - exchange.http.arrived_s) * 10) * 100_000
            waits[exchange.model] = max(waits.get(exchange.model, 0), wait_us)
    now_us, metrics = gateway.clock(), gateway.metrics
    deployments = {
        name: {
            "in_flight": in_flight.get(name, 0),
            "refused_full": gateway.refused_full.get(name, 0),
            "asleep": gateway.asleep.get(name, 0),
            "wait_us": waits.get(name, 0),
            **{key: metrics.objectives.get((name, key), 0) for key in (MET, MISSED)},
        }
        for name in sorted({*gateway.serving.index.aliases, *in_flight})
    }
    own = Counter(exchange.replica for exchange in gateway.exchanges)
    endpoints = {
        replica: {
            "in_flight": own[replica],
            "failures": seen.failures,
            "ejected_until_us": seen.cooling_until_us if seen.cooling_until_us > now_us else 0,
        }
        for replica, seen in sorted(gateway.memory.endpoints.items())
        if replica in own or replica in gateway.serving.endpoints
    }
    return {
        "pid": os.getpid(),
        "version": __version__,
        "host": gateway.options.host,
        "port": gateway.port,
        "tls": bool(gateway.options.tls_cert),
        "index": gateway.options.index,
        "started_us": gateway.started_us,
        "heartbeat_us": now_us,
        "draining": gateway.draining,
        "ready": not reasons(gateway),
        "reasons": reasons(gateway),
        "table_version": gateway.serving.version,
        "spool": gateway.spool.path.name,
        "connections": len(gateway.connections),
        "in_flight": len(gateway.exchanges),
        "deployments": deployments,
        "endpoints": endpoints,
        "peers": _peers(gateway),
        "outcomes": gateway.outcomes.state(),
        "totals": _totals(metrics),
        "memory_bytes": memory_bytes(),
        "loop_lag_s": round(gateway.loop_lag_s, 4),
    }


def _peers(gateway: Gateway) -> dict[str, object]:
    """What each peer said when it was last asked, by name."""
    return {
        name.removeprefix(PEER_PREFIX): {
            "reachable": status.reachable,
            "reason": status.reason,
            "models": sorted(set(status.models) & set(gateway.serving.index.aliases)),
            "checked_us": status.checked_us,
        }
        for name, status in sorted(gateway.tables.directory.statuses.items())
    }


def _totals(metrics: Metrics) -> dict[str, int]:
    return {
        "requests": sum(metrics.requests.values()),
        "ok": sum(n for (_, outcome), n in metrics.requests.items() if outcome == "ok"),
        "input_tokens": metrics.total("input"),
        "output_tokens": metrics.total("output"),
    }


def write_state(gateway: Gateway, path: Path) -> None:
    """Replace the state file at once; a reader never sees half of it. A full disk leaves the old one."""
    temporary = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(orjson.dumps(state(gateway), option=orjson.OPT_INDENT_2))
        temporary.replace(path)
    except OSError as error:
        why = error.strerror or str(error)
        if gateway.state_problem != why:  # every second would be a log of nothing else
            log.error("%s cannot be written: %s", path, why)
        gateway.state_problem = why
    else:
        gateway.state_problem = ""
