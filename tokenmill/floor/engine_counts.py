"""Asks every engine that we started for its own token counters, to hold the ledger against them. Blocks."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from tokenmill.control.state import State
from tokenmill.domain.ledger import EngineCount
from tokenmill.domain.work import Replica, ReplicaStatus
from tokenmill.engine.adapter import counted, engine_named

PATIENCE_S = 5.0
AT_ONCE = 16
ANSWERING = (ReplicaStatus.READY, ReplicaStatus.DRAINING)


@dataclass(frozen=True, slots=True)
class Counting:
    """The engines to ask: ``(replica, alias, kind of engine, address)``."""

    engines: tuple[tuple[str, str, str, str], ...]

    def __call__(self) -> Sequence[EngineCount]:
        """Read them all; one that does not answer, or has no counters, is left out."""
        if not self.engines:
            return ()
        with ThreadPoolExecutor(min(AT_ONCE, len(self.engines))) as pool:
            found = pool.map(lambda engine: read_count(*engine), self.engines)
            return tuple(count for count in found if count is not None)


def counting(state: State) -> Counting:
    """Those that serve now and that nobody else uses: a remote server counts for others too."""
    return Counting(tuple(found for replica in state.replicas.values() if (found := _engine(state, replica))))


def read_count(replica: str, alias: str, engine: str, address: str) -> EngineCount | None:
    """One engine's counters, or ``None`` when it does not tell them within PATIENCE_S."""
    try:
        answer = httpx.get(f"http://{address}/metrics", timeout=PATIENCE_S, trust_env=False)
        found = counted(engine, answer.text) if answer.status_code == 200 else None
    except (httpx.HTTPError, ValueError):
        return None
    return EngineCount(replica, alias, *found) if found is not None else None


def _engine(state: State, replica: Replica) -> tuple[str, str, str, str] | None:
    deployment = replica.spec or next(
        (item for item in state.factory.deployments if item.name == replica.deployment), None
    )
    if deployment is None or replica.status not in ANSWERING or not replica.address:
        return None
    if engine_named(deployment.engine).command is None:
        return None
    return replica.id, replica.deployment, deployment.engine, replica.address
