"""What ``control`` wants done. A floor carries these out and reports back with events.

Every effect is idempotent by its id: a floor that is told twice does it once, because after a crash
the controller asks again for whatever the journal does not show as done.
"""

from __future__ import annotations

from tokenmill.domain.factory import Deployment, Model
from tokenmill.domain.table import Table
from tokenmill.domain.value import value
from tokenmill.domain.work import JobSpec, Recall, Release, WorkUsage


@value
class ImportModel:
    """Bring a model's weights into the artifact store, or verify that they are there."""

    model: Model


@value
class StartReplica:
    replica: str
    deployment: Deployment
    release: Release
    node: str
    accelerators: tuple[str, ...]


@value
class StopReplica:
    """Stop an engine that the gateway has drained; kill it ``grace_us`` after asking."""

    replica: str
    grace_us: int


@value
class StartJob:
    job: str
    attempt: int
    spec: JobSpec
    nodes: tuple[str, ...]  # one per worker
    accelerators: tuple[tuple[str, ...], ...]
    checkpoint_us: int = 0  # time between checkpoints; 0 leaves it to the trainer until one was measured


@value
class PaceJob:
    """Let a job that runs keep a checkpoint every ``checkpoint_us`` from now on."""

    job: str
    checkpoint_us: int


@value
class StopJob:
    job: str
    grace_us: int


@value
class PublishTable:
    """Give the gateways a new table. An older ``table.version`` never replaces a newer one."""

    table: Table


@value
class RecordRelease:
    """Write a release down in the registry, where it outlives the journal's horizon."""

    release: Release


@value
class RecordRecall:
    """Write a recall down in the registry, beside the release."""

    recall: Recall


@value
class ChargeWork:
    """Post what a lease used to the ledger, once per ``id``."""

    id: str
    tenant: str
    project: str
    kind: str  # serve, train, evaluate, command, lease
    model: str
    usage: WorkUsage
    held: tuple[tuple[str, int], ...] = ()  # accelerators by type; they share the time of ``usage``


@value
class WakeAt:
    """Send a ``Tick`` at ``at_us``, or soon after."""

    at_us: int


Effect = (
    ImportModel
    | StartReplica
    | StopReplica
    | StartJob
    | PaceJob
    | StopJob
    | PublishTable
    | RecordRelease
    | RecordRecall
    | ChargeWork
    | WakeAt
)
