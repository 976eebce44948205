"""What a factory is: sites, racks, nodes, tenants, models, deployments and lines.

These are the validated, immutable nouns that ``spec`` produces from ``factory.yaml``. They hold no
observed state; that is in ``domain.work`` and ``control.state``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from tokenmill.domain.catalogue import NO_TYPES, OwnTypes
from tokenmill.domain.trigger import Trigger
from tokenmill.domain.value import replace, value


@value
class Accelerator:
    """One GPU (or other device) of a node. ``id`` is unique in the factory."""

    id: str
    kind: str  # catalogue name, for example "h200-sxm"
    memory_bytes: int


@value
class Node:
    """One machine. CPU is in thousandths of a core, so that engines can share a laptop's."""

    id: str
    site: str
    rack: str = ""
    domain: str = ""  # NVLink domain; empty when the node has none of its own
    cpu_millis: int = 0
    memory_bytes: int = 0
    accelerators: tuple[Accelerator, ...] = ()
    leaf: str = ""  # leaf switch, or scalable unit
    rail: str = ""  # group of leaves that one rail joins
    row: str = ""
    idle_mw: int = 0  # milliwatts that it draws with nothing on it; 0 is not known
    power_mw: int = 0  # milliwatts that it may draw at full load


@value
class Site:
    """A place under one law, with one power cap."""

    name: str
    jurisdiction: str = ""
    power_cap_mw: int = 0  # milliwatts; 0 is no stated cap
    pue_milli: int = 1000  # power usage effectiveness in thousandths
    acceptance: tuple[str, ...] = ()  # command that a node which was lost must pass before it takes work
    ramp_mw: int = 0  # by how much its draw may rise within ``ramp_us``; 0 is no stated limit
    ramp_us: int = 0


@value
class Rack:
    """Bounds of one rack (and of the NVLink domain in it). Its nodes name it."""

    name: str
    site: str
    power_cap_mw: int = 0  # 0 is no stated cap
    schedulable_nodes: int = 0  # how many of its nodes may hold work, the rest are spares; 0 is all
    ramp_mw: int = 0  # by how much its draw may rise within ``ramp_us``; 0 is no stated limit
    ramp_us: int = 0


@value
class Fabric:
    """A network that joins nodes: kind is nvlink, infiniband, ethernet or wan."""

    name: str
    kind: str
    site: str
    gbit_s: int
    latency_ns: int = 0
    switch: str = ""  # of the catalogue
    rails: int = 0  # adapters of a node; 0 is not said
    planes: int = 1  # fabrics side by side, each with a port of every adapter


@value
class Quota:
    """Upper bounds; ``None`` is unlimited. Money is in millionths of the factory's one currency.

    ``warn`` makes the bounds in money soft: what goes beyond them is answered, with a warning.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    concurrent_requests: int | None = None
    micros_per_day: int | None = None
    micros_per_month: int | None = None
    warn: bool = False

    @property
    def in_money(self) -> bool:
        return self.micros_per_day is not None or self.micros_per_month is not None


@value
class Capture:
    """Which answers of a project may be kept to learn from, on whose word, how long, and how much of them."""

    aliases: tuple[str, ...]
    consent: str
    keep_us: int
    share_milli: int = 1000
    bytes_most: int = 1 << 30


@value
class Project:
    name: str
    quota: Quota = Quota()
    capture: Capture | None = None


@value
class Tenant:
    """Who uses and pays. ``jurisdictions`` bounds where its data may be; empty is anywhere."""

    name: str
    projects: tuple[Project, ...] = ()
    quota: Quota = Quota()
    jurisdictions: tuple[str, ...] = ()
    priority: int = 0
    share: int = 1
    parent: str = ""  # tenant whose bounds hold for the sum of its children
    guarantee: int = 0  # accelerators: lent to others while idle, taken back when needed
    reserve: int = 0  # accelerators: kept free for it, lent to nobody
    limit: int | None = None  # accelerators that it may hold at most, borrowed ones included


@value
class ModelQuota:
    """Bounds of what a tenant, or one project of it, may use of one deployment."""

    tenant: str
    project: str  # empty is the whole tenant
    model: str  # the alias that clients put in ``model``
    quota: Quota


@value
class Price:
    """What one model's tokens and the work on it cost, in millionths of ``currency``.

    It holds for what is admitted from ``from_us`` on (microseconds since the epoch; 0 is always), until a
    later price of the same ``model`` begins.
    """

    model: str  # alias, model or "*"
    input_micros_per_mtok: int = 0
    cached_micros_per_mtok: int = 0
    output_micros_per_mtok: int = 0
    accelerator_hour_micros: int = 0  # of types that have none of their own
    kwh_micros: int = 0
    currency: str = "USD"
    from_us: int = 0
    reasoning_micros_per_mtok: int | None = None  # None is as output
    type_hour_micros: tuple[tuple[str, int], ...] = ()  # of an accelerator's type, by name

    def hour_micros(self, kind: str) -> int:
        """Of one accelerator of this type, for an hour."""
        return dict(self.type_hour_micros).get(kind, self.accelerator_hour_micros)

    @property
    def hours_cost(self) -> bool:
        """Whether any accelerator's time costs anything."""
        return any((self.accelerator_hour_micros, *(micros for _, micros in self.type_hour_micros)))


@value
class Model:
    """Weights by source. ``source`` is ``package:NAME``, ``hf://OWNER/NAME``, ``s3://...`` or a path.

    ``digest`` pins the content (``sha256:...``); when empty, the first import pins it.
    """

    name: str
    source: str
    kind: str = "chat"  # chat or embedding
    digest: str = ""


@value
class Resources:
    """What one worker of a gang asks of a node. With no memory it is bounded by none, and none is kept."""

    cpu_millis: int = 0
    memory_bytes: int = 0
    accelerators: int = 0
    accelerator_kind: str = ""


@value
class CanaryStep:
    """A part of a candidate's way to all traffic: real requests, or copies whose answers nobody gets."""

    weight_milli: int  # thousandths of the requests
    hold_us: int  # how long the step lasts at least
    shadow: bool = False


@value
class CanaryPlan:
    """How a candidate takes over from a champion. Bounds compare its live numbers with the champion's."""

    steps: tuple[CanaryStep, ...]
    min_requests: int = 50  # of each, in every step
    error_milli: int = 10  # thousandths by which its error rate may be higher
    latency_milli: int = 1500  # its 95 % latency by the champion's, in thousandths; 0 is unbounded
    feedback_milli: int = -1  # thousandths by which its share of good opinions may be lower; -1 is not asked
    min_feedback: int = 20  # of each, in every step, when feedback is asked
    patience_us: int = 3_600_000_000  # how long missing evidence is waited for after a step's time


@value
class Objective:
    """What a deployment promises: the share of its answers that come in time. A time of 0 is no bound."""

    ttft_us: int = 0  # from arrival to the first token
    tpot_us: int = 0  # mean time of each token after the first
    attainment_milli: int = 950

    def met(self, first_us: int, duration_us: int, tokens: int) -> bool:
        """Whether one answer came in time. ``first_us`` is 0 for one that was not streamed: where both
        times are bounded it may take as long as a stream that just keeps them."""
        rest_us = self.tpot_us * max(0, tokens - 1)
        if not first_us:
            return not (self.ttft_us and self.tpot_us) or duration_us <= self.ttft_us + rest_us
        late = self.ttft_us and first_us > self.ttft_us
        slow = self.tpot_us and tokens > 1 and duration_us - first_us > rest_us
        return not (late or slow)


@value
class Deployment:
    """An alias that clients put in ``model``, the engine behind it and how many replicas.

    Exactly one of ``model`` (serve these weights) and ``line`` (serve what this line releases) is set.
    """

    name: str
    engine: str = "embedded"
    model: str = ""
    line: str = ""
    replicas: int = 1
    max_replicas: int = 1
    context_tokens: int = 2048
    slots: int = 4  # requests decoded together by one replica
    resources: Resources = Resources()
    tenants: tuple[str, ...] = ()  # who may call it; empty is everyone
    engine_args: tuple[str, ...] = ()
    url: str = ""  # only for engine "openai": a server that is already running
    canary: CanaryPlan | None = None  # without one a new release takes all traffic when it is ready
    priority: int = 100  # against jobs: those below give way to its replicas
    spread: str = "node"  # how far replicas keep apart where they can: node, rack, site or none
    wait_target_us: int = 2_000_000  # longest wait in the engine's queue that the service aims at
    slo: Objective | None = None  # replicas are added while it is missed
    idle_after_us: int = 600_000_000  # with replicas 0..N: without a request for so long it goes to zero


@value
class Station:
    """One step of a line. ``needs`` names the stations whose outputs it reads."""

    name: str
    kind: str  # intake curate tune evaluate gate pack
    needs: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    resources: Resources = Resources()
    timeout_us: int = 3_600_000_000


@value
class Line:
    """Data in, released model out. Its releases go to the deployment that names it."""

    name: str
    tenant: str
    project: str
    base: str  # model that is tuned
    stations: tuple[Station, ...]
    priority: int = 0
    trigger: Trigger | None = None  # without one it is run by hand

    @property
    def work(self) -> Line:
        """What a run of it goes through, however it is started and whoever goes first."""
        return replace(self, priority=0, trigger=None)


@value
class JobTemplate:
    """A plain command to run on the floor, started once when it first appears in the file."""

    name: str
    tenant: str
    project: str
    command: tuple[str, ...]
    resources: Resources = Resources()
    workers: int = 1  # gang size; starts whole or not at all
    priority: int = 0
    timeout_us: int = 3_600_000_000
    runtime_us: int = 0  # how long it says that it takes; 0 is as long as its timeout
    min_run_us: int = 0  # it is not preempted before it has run so long
    preemptible: bool = True


@value
class Peer:
    """Another factory that we trust to answer for some aliases."""

    name: str
    url: str
    jurisdiction: str
    key_ref: str  # a secret reference, never the key itself
    aliases: tuple[str, ...] = ()


@value
class Factory:
    """Everything that one set of factory files says, validated and in file order."""

    name: str
    sites: tuple[Site, ...] = ()
    nodes: tuple[Node, ...] = ()  # empty means "this machine"
    racks: tuple[Rack, ...] = ()  # only those that have bounds
    fabrics: tuple[Fabric, ...] = ()
    tenants: tuple[Tenant, ...] = ()
    prices: tuple[Price, ...] = ()
    models: tuple[Model, ...] = ()
    deployments: tuple[Deployment, ...] = ()
    lines: tuple[Line, ...] = ()
    jobs: tuple[JobTemplate, ...] = ()
    peers: tuple[Peer, ...] = ()
    quotas: tuple[ModelQuota, ...] = ()
    types: OwnTypes = NO_TYPES  # what it adds to the catalogue
