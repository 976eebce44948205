"""Everything that can happen to the factory. The journal is a sequence of these.

Each event carries ``at_us``, the time at which it happened; ``control`` knows no other clock.
An event that changes nothing is not journalled, so a ``Tick`` may come as often as one likes.
"""

from __future__ import annotations

from tokenmill.domain.factory import Factory, Node
from tokenmill.domain.outcomes import Outcomes
from tokenmill.domain.value import value
from tokenmill.domain.work import Imported, JobResult, JobSpec, Key, Tuning, WorkUsage


@value
class ControllerStarted:
    """A controller took the lease. ``epoch`` fences everything that an earlier one still does."""

    at_us: int
    epoch: int


@value
class ClockSet:
    """The machine's clock was set: it shows ``by_us`` more than it would have; less if that is negative."""

    at_us: int
    by_us: int


@value
class Tick:
    at_us: int


@value
class SpecApplied:
    """A factory file was applied. Refused as stale unless ``base_version`` is the current one."""

    at_us: int
    base_version: int
    factory: Factory
    by: str = ""


@value
class NodeJoined:
    at_us: int
    node: Node


@value
class NodeLost:
    at_us: int
    node: str
    reason: str = ""


@value
class NodeCordoned:
    """Nothing new goes there, and what runs there is moved: a person or a watcher does not trust the node."""

    at_us: int
    node: str
    reason: str
    by: str = ""


@value
class NodeTrusted:
    """The node may take work again."""

    at_us: int
    node: str
    by: str = ""


@value
class ModelImported:
    """Weights are in the artifact store, or ``imported.error`` says why not."""

    at_us: int
    imported: Imported


@value
class ReplicaStarted:
    """The process runs and has an address; it is not ready yet."""

    at_us: int
    replica: str
    address: str


@value
class ReplicaReady:
    at_us: int
    replica: str


@value
class ReplicaExited:
    """The process is gone, wanted or not. ``usage`` is of its whole life."""

    at_us: int
    replica: str
    reason: str
    usage: WorkUsage = WorkUsage()


@value
class JobSubmitted:
    at_us: int
    job: str
    spec: JobSpec
    by: str = ""


@value
class JobStarted:
    at_us: int
    job: str
    attempt: int


@value
class JobSaved:
    """A job made a checkpoint, for which it stood still for ``save_us``."""

    at_us: int
    job: str
    attempt: int
    save_us: int


@value
class StepsTimed:
    """How long the workers of a gang need for the same work, before they wait for each other."""

    at_us: int
    job: str
    attempt: int
    median_us: int
    slow: tuple[tuple[int, int], ...] = ()  # rank and its time, of those clearly above the median


@value
class JobExited:
    """All workers of this attempt are gone. ``result`` is set only when it succeeded."""

    at_us: int
    job: str
    attempt: int
    code: int
    result: JobResult | None = None
    reason: str = ""
    usage: WorkUsage = WorkUsage()


@value
class JobCancelled:
    at_us: int
    job: str
    by: str = ""


@value
class RunSubmitted:
    at_us: int
    run: str
    line: str
    by: str = ""
    force: str = ""
    parent: str = ""  # an earlier run: what it did before ``force`` is taken over as it is


@value
class RunCancelled:
    at_us: int
    run: str
    by: str = ""


@value
class RunPaused:
    """Stop what a run does, to go on later from the last checkpoint."""

    at_us: int
    run: str
    by: str = ""


@value
class RunResumed:
    at_us: int
    run: str
    by: str = ""


@value
class TuningRequested:
    """A tenant wants a model of its own; ``run`` is the id of the run that makes it."""

    at_us: int
    tuning: Tuning
    run: str
    by: str = ""


@value
class TuningDropped:
    """A tenant wants its fine-tuned model no more."""

    at_us: int
    tuning: str
    by: str = ""


@value
class RollbackRequested:
    """Point ``alias`` back at an earlier release; empty ``to`` is the one before."""

    at_us: int
    alias: str
    to: str = ""
    by: str = ""


@value
class AliasSteered:
    """A person takes the wheel of an alias. ``action`` is hold (nothing moves forward by itself), resume (the
    schedule goes on) or promote (``release``, or the candidate, takes all traffic when it is ready)."""

    at_us: int
    alias: str
    action: str
    release: str = ""
    by: str = ""


@value
class ReleaseRecalled:
    """A release must not serve any more, anywhere, ever again."""

    at_us: int
    release: str
    by: str = ""
    reason: str = ""


@value
class KeyCreated:
    at_us: int
    key: Key


@value
class KeyDisabled:
    at_us: int
    key: str
    by: str = ""


@value
class LeaseRequested:
    """A tenant asks for whole resources for a time (GPU as a service)."""

    at_us: int
    lease: str
    tenant: str
    project: str
    cpu_millis: int
    memory_bytes: int
    accelerators: int
    duration_us: int


@value
class LeaseReleased:
    at_us: int
    lease: str
    by: str = ""


@value
class LoadReported:
    """What the gateway saw of one deployment in the last interval."""

    at_us: int
    deployment: str
    in_flight: int
    refused_full: int = 0
    asleep: int = 0  # turned away because no replica runs
    wait_us: int = 0  # how long the oldest request without a first token waits
    measured: int = 0  # answers of the last minute, where the deployment has an objective
    attained: int = 0  # of those, the ones that came in time


@value
class OutcomesReported:
    """What was seen of one release of an alias since the last report; feedback comes the same way."""

    at_us: int
    alias: str
    release: str
    seen: Outcomes


@value
class LineObserved:
    """What a line's data is like now: a profile of its rows (see ``domain.profile``). Starts a run that is
    due.
    """

    at_us: int
    line: str
    profile: tuple[int, ...] = ()  # rows by length
    words: tuple[int, ...] = ()
    opinions: tuple[tuple[str, int, int], ...] = ()  # release, good, bad: on answers since the last run
    since_us: int | None = None  # of captured traffic only rows of later answers are counted; else all are


Event = (
    ControllerStarted
    | Tick
    | ClockSet
    | SpecApplied
    | NodeJoined
    | NodeLost
    | NodeCordoned
    | NodeTrusted
    | ModelImported
    | ReplicaStarted
    | ReplicaReady
    | ReplicaExited
    | JobSubmitted
    | JobStarted
    | JobSaved
    | StepsTimed
    | JobExited
    | JobCancelled
    | RunSubmitted
    | RunCancelled
    | RunPaused
    | RunResumed
    | TuningRequested
    | TuningDropped
    | RollbackRequested
    | AliasSteered
    | ReleaseRecalled
    | KeyCreated
    | KeyDisabled
    | LeaseRequested
    | LeaseReleased
    | LoadReported
    | OutcomesReported
    | LineObserved
)
