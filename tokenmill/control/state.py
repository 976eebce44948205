"""All that the control core knows. One immutable value; every event makes the next one.

Maps are persistent (``immutables.Map``), so a step costs the size of the change and a what-if is another
value. They have no order: iterate ``sorted(...)``.
"""

from __future__ import annotations

from immutables import Map

from tokenmill.control.index import NO_INDEX, Index
from tokenmill.domain.factory import Factory
from tokenmill.domain.table import Table
from tokenmill.domain.value import value
from tokenmill.domain.work import (
    NO_UPTIME,
    Alias,
    Imported,
    Job,
    JobResult,
    Key,
    Lease,
    NodeState,
    Recall,
    Release,
    Replica,
    Reservation,
    Run,
    Tuning,
    Uptime,
    Usage,
)
from tokenmill.policy.power import History
from tokenmill.policy.scale import ScaleMemory


@value
class State:
    """``version`` counts applied specs; ``table_version`` counts published tables.

    ``index`` and ``table`` are derived from the other fields and kept up to date by every step.
    """

    factory: Factory
    version: int = 0
    epoch: int = 0
    table_version: int = 0
    next_id: int = 1
    nodes: Map[str, NodeState] = Map()
    leases: Map[str, Lease] = Map()
    models: Map[str, Imported] = Map()
    replicas: Map[str, Replica] = Map()
    aliases: Map[str, Alias] = Map()
    jobs: Map[str, Job] = Map()
    runs: Map[str, Run] = Map()
    releases: Map[str, Release] = Map()
    recalls: Map[str, Recall] = Map()  # by release
    tunings: Map[str, Tuning] = Map()
    keys: Map[str, Key] = Map()
    done: Map[str, JobResult] = Map()  # station input digest -> what it made
    scaling: Map[str, ScaleMemory] = Map()  # deployment -> what its scaling remembers
    reservations: Map[str, Reservation] = Map()  # by owner
    usage: Map[str, Usage] = Map()  # by tenant
    uptime: Uptime = NO_UPTIME
    draws: Map[str, History] = Map()  # what places whose rise is bounded drew lately
    index: Index = NO_INDEX
    table: Table = Table(version=0, factory="")


EMPTY = State(factory=Factory(name=""))


def with_jobs(state: State, jobs: Map[str, Job]) -> State:
    """The same state with other records of jobs, of which no index says anything."""
    return State(
        state.factory,
        state.version,
        state.epoch,
        state.table_version,
        state.next_id,
        state.nodes,
        state.leases,
        state.models,
        state.replicas,
        state.aliases,
        jobs,
        state.runs,
        state.releases,
        state.recalls,
        state.tunings,
        state.keys,
        state.done,
        state.scaling,
        state.reservations,
        state.usage,
        state.uptime,
        state.draws,
        state.index,
        state.table,
    )
