"""What may be written in each kind of document, as strict pydantic models. Builds nothing of the domain.

Short forms (``projects: [a, b]``, ``replicas: 1..4``) are widened here, so that the rest sees one form only.
What one document says about another is checked in ``references``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from tokenmill.domain.calendar import DAY_US
from tokenmill.spec.fields import (
    AliasName,
    Context,
    Count,
    Cpu,
    Cron,
    Digest,
    Duration,
    GatewayUrl,
    Index,
    Jurisdiction,
    Name,
    Positive,
    Priority,
    Ratio,
    Replicas,
    SecretRef,
    Share,
    Size,
    Small,
    Text,
    Url,
    WeightsSource,
    choice,
    fail,
)
from tokenmill.spec.money import PriceDocument as PriceDocument
from tokenmill.spec.money import QuotaDocument as QuotaDocument
from tokenmill.spec.money import QuotaFields as QuotaFields
from tokenmill.spec.sites import FabricFields as FabricFields
from tokenmill.spec.sites import NodeFields as NodeFields
from tokenmill.spec.sites import RackFields as RackFields
from tokenmill.spec.sites import SiteDocument as SiteDocument
from tokenmill.spec.strict import Strict as Strict
from tokenmill.spec.strict import also, listed, named, span


class ResourceFields(Strict):
    """What one worker or replica asks of a node. With no `memory`, or 0, none is kept or bounded."""

    cpu: Cpu | None = Field(default=None, description="Cores: 2, 0.5 or 250m.")
    memory: Size | None = Field(default=None, description="Memory, for example 4GB; 0 is no bound.")
    accelerators: Small | None = Field(default=None, description="Whole accelerators.")
    accelerator: Text | None = Field(default=None, description="Type of accelerator, from the catalogue.")


class CaptureFields(Strict):
    """What of a project's traffic is kept, redacted, as data for its lines. Nothing is kept without this."""

    aliases: Annotated[list[AliasName], BeforeValidator(listed)] = Field(
        min_length=1, description="Deployments whose answers are kept."
    )
    consent: Text = Field(
        min_length=8, description="Who agreed to it, where and when; recorded with what is kept."
    )
    keep: Duration = Field(default=30 * DAY_US, description="Older days are deleted, such as 30d.")
    share: Share = Field(default=1000, description="Share of the answers that is kept, chosen by chance.")
    max_size: Size = Field(default=1 << 30, description="Nothing more is kept beyond it, for example 1GB.")


class ProjectFields(Strict):
    """A part of a tenant with its own quota and keys."""

    name: Name = Field(description="Name, unique in the tenant.")
    quota: QuotaFields = Field(
        default=QuotaFields(), description="Bounds of the project, within the tenant's."
    )
    capture: CaptureFields | None = Field(
        default=None, description="Keep its traffic as data for its lines; nothing is kept if not written."
    )


class FactoryDocument(Strict):
    """The factory itself. Exactly one document of this kind is needed."""

    kind: Literal["factory"]
    name: Name = Field(description="Name of the factory.")
    extends: Annotated[list[Text], BeforeValidator(listed)] = Field(
        default=[],
        description="Other factory files, relative to this one, that these documents are laid on.",
        json_schema_extra=also({"type": "string"}),
    )


class TenantDocument(Strict):
    """Who uses the factory and pays for it."""

    kind: Literal["tenant"]
    name: Name = Field(description="Name of the tenant.")
    projects: Annotated[list[ProjectFields], BeforeValidator(named)] = Field(
        default=[ProjectFields(name="default")],
        min_length=1,
        description="Projects, or only their names; when none is written there is one named `default`.",
        json_schema_extra=also({"type": "array", "items": {"type": "string"}}),
    )
    quota: QuotaFields = Field(default=QuotaFields(), description="Bounds of the whole tenant.")
    jurisdictions: list[Jurisdiction] = Field(
        default=[], description="Where its data may be; empty is anywhere."
    )
    priority: Priority = Field(default=0, description="Higher goes first.")
    share: Positive = Field(default=1, description="Weight when tenants compete.")
    parent: Name | None = Field(
        default=None, description="Tenant whose limit and guarantee hold for the sum of its children."
    )
    guarantee: Count = Field(
        default=0, description="Accelerators that are lent to others while idle and taken back when needed."
    )
    reserve: Count = Field(default=0, description="Accelerators that are kept free for it, lent to nobody.")
    limit: Count | None = Field(
        default=None, description="Accelerators that it may hold at most, borrowed ones included."
    )


class ModelDocument(Strict):
    """Weights by where they come from."""

    kind: Literal["model"]
    name: AliasName = Field(description="Name of the model.")
    source: WeightsSource = Field(description="package:NAME, hf://OWNER/NAME, s3://BUCKET/KEY or a path.")
    type: Annotated[str, *choice("chat", "embedding")] = Field(default="chat", description="What it does.")
    digest: Digest | None = Field(default=None, description="Pins the bytes; else the first import does.")


class ReplicaRange(Strict):
    min: Replicas = Field(description="The fewest replicas.")
    max: Replicas = Field(description="The most replicas.")

    @model_validator(mode="after")
    def _ordered(self) -> ReplicaRange:
        if self.max < max(self.min, 1):
            fail(
                f"{self.min}..{self.max} is no range",
                "a range whose end is at least 1 and not below its start, for example 1..4",
            )
        return self


class CanaryStepFields(Strict):
    """One step: a share of the traffic, or copies of requests whose answers are kept and go to nobody."""

    weight: Share | None = Field(default=None, description="Share of the requests, for example 5%...")
    shadow: Share | None = Field(default=None, description="...or share of requests that are copied to it.")
    hold: Duration = Field(description="How long the step lasts at least, for example 10m.")

    @model_validator(mode="after")
    def _one(self) -> CanaryStepFields:
        if (self.weight is None) == (self.shadow is None):
            fail("a step needs `weight` or `shadow`, one of both", "for example {weight: 5%, hold: 10m}")
        share = self.shadow if self.weight is None else self.weight
        if share == 0 or (self.weight is not None and self.weight >= 1000):
            expected = "more than 0%, and a weight below 100%, so that the champion can be compared"
            fail("the share is out of range", expected)
        return self


class CanaryFields(Strict):
    """How a new release takes over. A bound that is broken sends it back, and so does missing evidence."""

    steps: list[CanaryStepFields] = Field(min_length=1, max_length=20, description="In this order.")
    min_requests: Positive = Field(default=50, description="Of candidate and champion each, in every step.")
    error_rate: Share = Field(default=10, description="How much higher its share of errors may be.")
    latency: Ratio = Field(default=1500, description="Its 95 % latency, as a multiple of the champion's.")
    feedback: Share | None = Field(
        default=None, description="How much lower its share of good feedback may be; else it is not asked."
    )
    min_feedback: Positive = Field(default=20, description="Opinions on each, when feedback is asked.")
    patience: Duration = Field(
        default=3_600_000_000, description="How long missing evidence is waited for after a step's time."
    )

    @model_validator(mode="after")
    def _rising(self) -> CanaryFields:
        weights = [step.weight for step in self.steps if step.weight is not None]
        if weights != sorted(weights):
            fail("the weights go down", "weights that rise from step to step")
        return self


class ObjectiveFields(Strict):
    """What a deployment promises its clients: the share of answers that come in time."""

    ttft: Duration | None = Field(default=None, description="Longest time to the first token.")
    tpot: Duration | None = Field(default=None, description="Longest mean time of each token after it.")
    attainment: Share = Field(default=950, description="Share of the answers that keep both.")

    @model_validator(mode="after")
    def _bounded(self) -> ObjectiveFields:
        if self.ttft is None and self.tpot is None:
            fail("the objective bounds nothing", "ttft, tpot or both, such as {ttft: 2s, tpot: 80ms}")
        if self.attainment == 0:
            fail("an attainment of 0 promises nothing", "a share above 0, such as 95%")
        return self


class DeploymentDocument(Strict):
    """A name that clients put in `model`, the engine behind it and how many replicas."""

    kind: Literal["deployment"]
    name: AliasName = Field(description="What clients put in `model`.")
    model: AliasName | None = Field(default=None, description="Serve this model...")
    line: Name | None = Field(default=None, description="...or what this line releases.")
    engine: Annotated[str, *choice("embedded", "vllm", "sglang", "openai")] = Field(
        default="embedded", description="Program that serves it; `openai` is a server that already runs."
    )
    replicas: Annotated[ReplicaRange, BeforeValidator(span)] = Field(
        default=ReplicaRange(min=1, max=1),
        description="How many: 2, or a range 1..4 to scale in.",
        json_schema_extra=also({"type": "integer"}, {"type": "string", "pattern": r"^\d+(\s*\.\.\s*\d+)?$"}),
    )
    context: Context = Field(default=2048, description="Tokens of one request, prompt and answer.")
    slots: Positive = Field(default=4, description="Requests that one replica decodes together.")
    resources: ResourceFields = Field(
        default=ResourceFields(), description="What one replica asks of its node."
    )
    tenants: list[Name] = Field(default=[], description="Who may call it; empty is everyone.")
    engine_args: list[Text] = Field(
        default=[], description="More arguments for the engine; none that changes its address."
    )
    url: Url | None = Field(default=None, description="Only with engine `openai`: where it answers.")
    canary: CanaryFields | None = Field(
        default=None, description="How a new release takes over; without it, all at once when it is ready."
    )
    priority: Priority = Field(
        default=100, description="Against jobs: those of a lower priority give way to its replicas."
    )
    spread: Annotated[str, *choice("node", "rack", "site", "none")] = Field(
        default="node", description="How far its replicas keep apart where they can."
    )
    wait_target: Duration = Field(
        default=2_000_000, description="Longest wait before the first token that scaling aims at."
    )
    slo: ObjectiveFields | None = Field(
        default=None, description="What it promises: while too few answers keep it, replicas are added."
    )
    idle_after: Duration = Field(
        default=600_000_000, description="With `replicas: 0..N`: without a request for so long it goes to 0."
    )


class StationFields(Strict):
    """One step of a line, in the long form."""

    name: Name = Field(description="Name, unique in the line.")
    kind: Annotated[
        str, *choice("intake", "curate", "tune", "evaluate", "gate", "pack", "command", "python")
    ] = Field(description="What it does.")
    needs: list[Name] = Field(default=[], description="Stations whose outputs it reads.")
    params: dict[str, Any] = Field(default={}, description="Parameters of its kind; see below.")
    resources: ResourceFields = Field(default=ResourceFields(), description="What its job asks of a node.")
    timeout: Duration | None = Field(default=None, description="Longest time of its job.")


class TriggerFields(Strict):
    """What starts a run of the line by itself; any one of these is enough. Times are UTC."""

    cron: Cron | None = Field(default=None, description="Five fields as in crontab: `30 2 * * 1-5`.")
    new_rows: Positive | None = Field(default=None, description="So many rows more than the last run read.")
    drift: Index | None = Field(
        default=None, description="Stability index of the new rows' lengths; 0.25 is a large change."
    )
    words_drift: Index | None = Field(
        default=None,
        description="Divergence (Jensen-Shannon) of the new rows' words, 0 to 1 bit; 0.05 is a clear change.",
    )
    quality: Share | None = Field(
        default=None,
        description="Clients' good opinions of the answers since the last run fell below this, beyond luck.",
    )


class LineDocument(Strict):
    """Data in, released model out. Either `data` and parameters by station, or `stations`."""

    kind: Literal["line"]
    name: Name = Field(description="Name of the line.")
    tenant: Name = Field(description="Tenant that owns data and releases.")
    project: Name = Field(description="Project that pays.")
    base: AliasName = Field(description="Model that is tuned.")
    data: Text | dict[str, Any] | None = Field(
        default=None, description="Data file relative to the factory file, or the parameters of `intake`."
    )
    intake: dict[str, Any] = Field(default={}, description="Parameters of that station.")
    curate: dict[str, Any] = Field(default={}, description="Parameters of that station.")
    tune: dict[str, Any] = Field(default={}, description="Parameters of that station.")
    evaluate: dict[str, Any] = Field(default={}, description="Parameters of that station.")
    gate: dict[str, Any] = Field(default={}, description="Parameters of that station.")
    pack: dict[str, Any] = Field(default={}, description="Parameters of that station.")
    stations: list[StationFields] = Field(
        default=[], description="The long form: every station and what it needs."
    )
    resources: ResourceFields = Field(default=ResourceFields(), description="What each job asks of a node.")
    timeout: Duration = Field(default=3_600_000_000, description="Longest time of each job.")
    priority: Priority = Field(default=0, description="Higher goes first.")
    trigger: TriggerFields | None = Field(default=None, description="When it runs by itself; else by hand.")


class JobDocument(Strict):
    """A command that is run once, when the document first appears."""

    kind: Literal["job"]
    name: Name = Field(description="Name of the job.")
    tenant: Name = Field(description="Tenant that owns it.")
    project: Name = Field(description="Project that pays.")
    command: list[Text] = Field(min_length=1, description="Program and arguments, as a list.")
    workers: Positive = Field(default=1, description="Size of the gang, which starts whole or not at all.")
    resources: ResourceFields = Field(
        default=ResourceFields(), description="What each worker asks of a node."
    )
    priority: Priority = Field(default=0, description="Higher goes first.")
    timeout: Duration = Field(default=3_600_000_000, description="Longest time of one attempt.")
    runtime: Duration | None = Field(
        default=None, description="How long it takes; short work may use room that is kept for a large gang."
    )
    min_run: Duration | None = Field(
        default=None, description="It is not preempted before it has run so long."
    )
    preemptible: bool = Field(default=True, description="Whether it may be told to go for others.")


class PeerDocument(Strict):
    """Another factory that we trust to answer for some names."""

    kind: Literal["peer"]
    name: Name = Field(description="Name of the peer.")
    url: GatewayUrl = Field(description="Address of its gateway: https, or http on this machine.")
    jurisdiction: Jurisdiction = Field(description="Law that applies there.")
    key: SecretRef = Field(description="Where our key for it is: secret://env/NAME or secret://file/PATH.")
    aliases: list[AliasName] = Field(
        min_length=1, description="Names that it answers for when no replica of ours can."
    )


Rows = dict[Name, dict[str, Any]]


class CatalogueDocument(Strict):
    """Types that the shipped [catalogue](#catalogue) lacks, or has with other prices and powers."""

    kind: Literal["catalogue"]
    name: Name = Field(description="Name of this part of the catalogue.")
    accelerators: Rows = Field(default={}, description="Accelerators by name.")
    nodes: Rows = Field(default={}, description="Servers and trays by name.")
    racks: Rows = Field(default={}, description="Racks by name.")
    nics: Rows = Field(default={}, description="Network adapters by name.")
    dpus: Rows = Field(default={}, description="DPUs by name.")
    switches: Rows = Field(default={}, description="Switches by name.")
    models: Rows = Field(default={}, description="Architectures by name: fields, or `config: FILE`.")


KINDS: dict[str, type[Strict]] = {
    "factory": FactoryDocument,
    "site": SiteDocument,
    "tenant": TenantDocument,
    "price": PriceDocument,
    "quota": QuotaDocument,
    "model": ModelDocument,
    "deployment": DeploymentDocument,
    "line": LineDocument,
    "job": JobDocument,
    "peer": PeerDocument,
    "catalogue": CatalogueDocument,
}
