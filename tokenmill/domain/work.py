"""What the factory does, as observed: nodes, leases, replicas, jobs, runs, releases, aliases, keys.

Every record is immutable; ``control`` replaces it when an event changes it. Times are microseconds
since the epoch, taken from events and never from a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from typing import Any

from tokenmill.domain.factory import Deployment, Line, Node, Resources
from tokenmill.domain.outcomes import NOTHING_SEEN, Outcomes
from tokenmill.domain.value import value


class ReplicaStatus(StrEnum):
    PENDING = "pending"  # wanted, not placed yet
    STARTING = "starting"  # placed; the floor was told
    READY = "ready"
    DRAINING = "draining"  # takes nothing new
    FAILED = "failed"  # exited; waits for its back-off
    STOPPED = "stopped"


class JobStatus(StrEnum):
    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in ENDED


ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class RunStatus(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    REJECTED = "rejected"  # the gate said no
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self is not RunStatus.RUNNING


class StationStatus(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    REUSED = "reused"  # the same inputs were done before
    FAILED = "failed"
    SKIPPED = "skipped"


@value
class NodeState:
    node: Node
    joined_us: int
    lost: bool = False
    cordon: str = ""  # why it takes no work, though it is there
    test: str = ""  # the job that is its acceptance test
    strikes: int = 0  # reports in a row that found it slow
    slow: str = ""  # what they found, once they are enough
    slow_us: int = 0  # when it was last taken out for it
    test_due: bool = False  # it is tested once nothing is left on it


@value
class Lease:
    """Resources of one node held by one owner. No accelerator is in two live leases."""

    id: str
    node: str
    owner: str  # replica, job or tenant lease id
    tenant: str
    project: str
    cpu_millis: int
    memory_bytes: int
    accelerators: tuple[str, ...]
    since_us: int
    until_us: int = 0  # 0 is open-ended


@value
class Reservation:
    """Nodes kept for one job or replica until it starts there. Others may use them only to end before.

    ``kind`` is "backfill" (it waits for work to end by itself) or "preempt" (``victims`` were told to go).
    """

    owner: str
    nodes: tuple[str, ...]  # sorted
    at_us: int  # when it is expected to start
    kind: str
    since_us: int
    victims: tuple[str, ...] = ()


@value
class Usage:
    """What a tenant has held over time: its dominant share in millionths, times microseconds, decaying."""

    integral: int
    at_us: int


@value
class Replica:
    """One engine process (or remote server) that serves one release for one deployment."""

    id: str
    deployment: str
    release: str
    status: ReplicaStatus
    node: str = ""
    address: str = ""  # "127.0.0.1:41234"
    since_us: int = 0  # when it entered ``status``
    restarts: int = 0
    retry_us: int = 0  # when a failed one may start again
    reason: str = ""
    spec: Deployment | None = None  # the deployment as it was when this replica was made


@value
class JobSpec:
    """What a job does. ``kind`` is command or station; ``params`` is what the worker reads."""

    kind: str
    tenant: str
    project: str
    command: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    resources: Resources = Resources()
    workers: int = 1
    priority: int = 0
    timeout_us: int = 3_600_000_000
    max_attempts: int = 3
    run: str = ""
    station: str = ""
    name: str = ""
    runtime_us: int = 0  # how long it says that it takes; 0 is as long as its timeout
    min_run_us: int = 0
    preemptible: bool = True


@value
class WorkUsage:
    """What a worker used, as measured by the floor. ``energy_source`` says how joules were had."""

    wall_us: int = 0
    cpu_us: int = 0
    peak_memory_bytes: int = 0
    accelerator_us: int = 0
    energy_mj: int = 0
    energy_source: str = ""


@value
class JobResult:
    """What a worker left in ``result.json``.

    ``outputs`` maps an output's name to an artifact digest, ``metrics`` holds plain numbers and
    strings for people and ``evidence`` what a gate or a release needs.
    """

    outputs: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)


@value
class Checkpoints:
    """How a job keeps what it did, and what was seen of its attempts. Zero is not known yet."""

    interval_us: int = 0  # what its trainer was told
    save_us: int = 0  # how long it stands still for one
    interrupted: int = 0  # attempts that did not end by themselves
    ran_us: int = 0  # all of them together


NO_CHECKPOINTS = Checkpoints()


@value
class Uptime:
    """How long the factory's nodes were there, all together, and how often one was lost."""

    node_us: int = 0
    nodes: int = 0  # that are there since ``at_us``
    at_us: int = 0
    lost: int = 0


NO_UPTIME = Uptime()


@value
class Job:
    id: str
    spec: JobSpec
    status: JobStatus
    submitted_us: int
    nodes: tuple[str, ...] = ()
    started_us: int = 0
    ended_us: int = 0
    attempt: int = 0
    retry_us: int = 0
    result: JobResult | None = None
    usage: WorkUsage = WorkUsage()
    reason: str = ""
    stop: str = ""  # why it is being stopped: cancelled, timed_out, node_lost or preempted
    saved_us: int = 0  # when its last checkpoint was made, in this attempt
    ripe: bool = False  # it ran for as long as it may not be preempted
    checkpoints: Checkpoints = NO_CHECKPOINTS


@value
class StationState:
    name: str
    status: StationStatus = StationStatus.WAITING
    job: str = ""
    input_digest: str = ""  # of kind, params, code and the inputs' digests
    result: JobResult | None = None
    started_us: int = 0
    ended_us: int = 0
    usage: WorkUsage = WorkUsage()
    reason: str = ""


@value
class Run:
    """One pass of a line. ``force`` names the station from which nothing is reused."""

    id: str
    line: str
    status: RunStatus
    submitted_us: int
    stations: tuple[StationState, ...]
    by: str = ""
    force: str = ""
    release: str = ""
    ended_us: int = 0
    reason: str = ""
    parent: str = ""  # the run whose stations before ``force`` it took over
    paused: bool = False  # nothing of it starts; what runs was stopped at its checkpoint


@value
class Tuning:
    """What a tenant asked for by the fine-tuning API. ``asked`` is its own words, for its own eyes."""

    id: str
    line: Line
    deployment: Deployment  # its name is the model's
    created_us: int
    run: str = ""
    dropped: bool = False
    asked: Mapping[str, Any] = field(default_factory=dict)


@value
class GateVerdict:
    """What a gate decided, and on what. ``reasons`` has one sentence per check, passed or not."""

    passed: bool
    reasons: tuple[str, ...]
    metric: str = ""
    n: int = 0
    candidate_milli: int = 0  # thousandths: 873 is 87.3 %
    reference_milli: int = 0
    difference_milli: int = 0
    low_milli: int = 0  # confidence interval of the difference
    high_milli: int = 0
    p_value: float = 1.0
    digests: Mapping[str, str] = field(default_factory=dict)  # of data, models, engine and settings


@value
class Release:
    """An immutable candidate with its evidence. ``digest`` is that of its manifest artifact.

    ``weights`` is the base model's artifact; ``adapter`` a GGUF LoRA artifact, or empty.
    ``origin`` is "import" for weights that the operator brought, else the run's id.
    """

    id: str
    model: str
    weights: str
    adapter: str
    digest: str
    origin: str
    line: str = ""
    created_us: int = 0
    verdict: GateVerdict | None = None


@value
class Target:
    release: str
    weight_milli: int  # thousandths of the alias's traffic


@value
class Canary:
    """A candidate on its way. What was seen of both is of this step alone."""

    candidate: str  # release ids
    champion: str
    step: int
    since_us: int  # when the step began
    check_us: int = 0  # when time alone may change what is decided
    mine: Outcomes = NOTHING_SEEN
    theirs: Outcomes = NOTHING_SEEN
    reasons: tuple[str, ...] = ()  # of the last decision


@value
class Recall:
    """A release that must not serve any more, and who said so."""

    release: str
    at_us: int
    by: str = ""
    reason: str = ""


@value
class Alias:
    """What clients put in ``model``. ``desired`` is where it goes, ``targets`` where traffic goes now.

    While a candidate is on its way the champion is the first of ``targets``. ``hold`` is a person's word that
    nothing moves forward by itself; ``waiting`` is the newest release that came meanwhile.
    """

    name: str
    deployment: str
    desired: str = ""  # release id
    targets: tuple[Target, ...] = ()
    history: tuple[str, ...] = ()  # releases that were promoted, newest last
    since_us: int = 0
    failures: int = 0  # of the desired release's replicas in a row, before traffic went to it
    reason: str = ""  # why ``desired`` was last changed, when it was not by a release
    canary: Canary | None = None
    straight: bool = False  # ``desired`` takes all traffic as soon as it is ready: a person chose it
    hold: str = ""
    waiting: str = ""
    refused: tuple[str, ...] = ()  # releases that were sent back from here; none comes again by itself


@value
class Key:
    """An API key. Only the digest is kept; the secret was shown once."""

    id: str
    digest: str  # hex of sha256 over the secret
    tenant: str
    project: str
    scope: str = "inference"  # inference or admin
    hint: str = ""  # last four characters, for people
    created_us: int = 0
    expires_us: int = 0  # 0 is never
    disabled: bool = False


@value
class Imported:
    """Weights of a model as they lie in the artifact store."""

    model: str
    digest: str
    size_bytes: int
    format: str  # gguf or safetensors
    error: str = ""
    source: str = ""  # the model's source that was imported
