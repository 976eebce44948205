"""What may be written in each kind of document, as strict pydantic models. Builds nothing of the domain.

Short forms (``projects: [a, b]``, ``replicas: 1..4``) are widened here, so that the rest sees one form only.
What one document says about another is checked in ``references``.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tokenmill.spec.fields import (
    AliasName,
    BitRate,
    Context,
    Count,
    Cpu,
    Currency,
    Digest,
    Duration,
    Jurisdiction,
    Latency,
    Money,
    Name,
    PerDay,
    PerMinute,
    Positive,
    Power,
    PriceTarget,
    Priority,
    Pue,
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


class Strict(BaseModel):
    """Unknown fields are refused, and nothing is coerced that a field type did not say."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, dict | str) else value


def _named(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [{"name": item} if isinstance(item, str) else item for item in value]


def _also(*shorter: dict[str, Any]) -> Any:
    """The JSON Schema of a field that may also be written in a shorter form."""

    def widen(schema: dict[str, Any]) -> None:
        kept = {key: schema.pop(key) for key in ("type", "items", "$ref", "minItems") if key in schema}
        schema["anyOf"] = [kept, *shorter]

    return widen


def _span(value: Any) -> Any:
    """2, "1..4" or {min, max} to {min, max}."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"min": value, "max": value}
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,9})(?:\s*\.\.\s*(\d{1,9}))?", value)):
        return {"min": int(match[1]), "max": int(match[2] or match[1])}
    if not isinstance(value, dict):
        fail(f"{value!r} is not a number of replicas", "a number or a range, for example 2 or 1..4")
    return value


class QuotaFields(Strict):
    """Upper bounds of use. A bound that is not written does not limit."""

    requests_per_minute: PerMinute | None = Field(
        default=None, description="Requests that may start in a minute."
    )
    tokens_per_minute: PerMinute | None = Field(
        default=None, description="Input and output tokens in a minute."
    )
    tokens_per_day: PerDay | None = Field(default=None, description="Input and output tokens in a day.")
    concurrent_requests: Count | None = Field(default=None, description="Requests open at once.")


class ResourceFields(Strict):
    """What one worker or replica asks of a node. Memory that is not written is neither kept nor bounded."""

    cpu: Cpu | None = Field(default=None, description="Cores: 2, 0.5 or 250m.")
    memory: Size | None = Field(default=None, description="Memory, for example 4GB.")
    accelerators: Small | None = Field(default=None, description="Whole accelerators.")
    accelerator: Text | None = Field(default=None, description="Type of accelerator, from the catalogue.")


class ProjectFields(Strict):
    """A part of a tenant with its own quota and keys."""

    name: Name = Field(description="Name, unique in the tenant.")
    quota: QuotaFields = Field(
        default=QuotaFields(), description="Bounds of the project, within the tenant's."
    )


class RackFields(Strict):
    """Racks of one type of the catalogue."""

    type: Text = Field(description="Rack type of the catalogue, for example gb300-nvl72.")
    count: Positive = Field(default=1, description="How many.")
    name: Name = Field(default="rack", description="First part of the racks' names.")


class NodeFields(Strict):
    """Nodes of one type of the catalogue, or of stated size."""

    name: Name = Field(description="Name; with a count it is the first part of the names.")
    type: Text | None = Field(default=None, description="Node type of the catalogue, for example hgx-h200.")
    count: Positive = Field(default=1, description="How many.")
    rack: Name | None = Field(default=None, description="Rack that they stand in.")
    cpu: Cpu | None = Field(default=None, description="Cores, where no type is given.")
    memory: Size | None = Field(default=None, description="Memory, where no type is given.")
    accelerators: Small | None = Field(
        default=None, description="Accelerators of each, where no type is given."
    )
    accelerator: Text | None = Field(default=None, description="Their type, from the catalogue.")


class FabricFields(Strict):
    """A network that joins the nodes of a site."""

    name: Name = Field(description="Name, unique in the factory.")
    type: Annotated[str, *choice("nvlink", "infiniband", "ethernet", "wan")] = Field(
        description="Technology."
    )
    bandwidth: BitRate = Field(description="Of one accelerator or node in each direction: 800Gbit/s.")
    latency: Latency = Field(default=0, description="One way, for example 2us.")


class FactoryDocument(Strict):
    """The factory itself. Exactly one document of this kind is needed."""

    kind: Literal["factory"]
    name: Name = Field(description="Name of the factory.")
    extends: Annotated[list[Text], BeforeValidator(_listed)] = Field(
        default=[],
        description="Other factory files, relative to this one, that these documents are laid on.",
        json_schema_extra=_also({"type": "string"}),
    )


class SiteDocument(Strict):
    """A place under one law, with one power cap."""

    kind: Literal["site"]
    name: Name = Field(description="Name of the site.")
    jurisdiction: Jurisdiction | None = Field(
        default=None, description="Law that applies there, for example de."
    )
    power_cap: Power | None = Field(default=None, description="Most power that the site may draw.")
    pue: Pue = Field(default=1000, description="Power of the whole site per power of its computers.")
    nodes: Literal["this-machine"] | list[NodeFields] = Field(
        default=[], description="`this-machine`, or a list of nodes."
    )
    racks: Annotated[list[RackFields], BeforeValidator(_listed)] = Field(
        default=[],
        description="Racks by type: one mapping or a list.",
        json_schema_extra=_also({"type": "object"}),
    )
    fabrics: list[FabricFields] = Field(default=[], description="Networks that join the nodes.")


class TenantDocument(Strict):
    """Who uses the factory and pays for it."""

    kind: Literal["tenant"]
    name: Name = Field(description="Name of the tenant.")
    projects: Annotated[list[ProjectFields], BeforeValidator(_named)] = Field(
        default=[ProjectFields(name="default")],
        min_length=1,
        description="Projects, or only their names; when none is written there is one named `default`.",
        json_schema_extra=_also({"type": "array", "items": {"type": "string"}}),
    )
    quota: QuotaFields = Field(default=QuotaFields(), description="Bounds of the whole tenant.")
    jurisdictions: list[Jurisdiction] = Field(
        default=[], description="Where its data may be; empty is anywhere."
    )
    priority: Priority = Field(default=0, description="Higher goes first.")
    share: Positive = Field(default=1, description="Weight when tenants compete.")


class PriceDocument(Strict):
    """What tokens of one model cost, per million, and the work on it."""

    kind: Literal["price"]
    model: PriceTarget = Field(description='Deployment, model, or "*" for all the rest.')
    input: Money = Field(default=(0, ""), description="Per million input tokens: 0.15 USD.")
    cached: Money | None = Field(
        default=None, description="Per million input tokens found in a cache; as `input` if not written."
    )
    output: Money = Field(default=(0, ""), description="Per million output tokens.")
    accelerator_hour: Money = Field(default=(0, ""), description="Per hour of one accelerator.")
    kwh: Money = Field(default=(0, ""), description="Per kilowatt-hour.")
    currency: Currency | None = Field(
        default=None, description="Currency of amounts that name none; else USD."
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


class DeploymentDocument(Strict):
    """A name that clients put in `model`, the engine behind it and how many replicas."""

    kind: Literal["deployment"]
    name: AliasName = Field(description="What clients put in `model`.")
    model: AliasName | None = Field(default=None, description="Serve this model...")
    line: Name | None = Field(default=None, description="...or what this line releases.")
    engine: Annotated[str, *choice("embedded", "vllm", "sglang", "openai")] = Field(
        default="embedded", description="Program that serves it; `openai` is a server that already runs."
    )
    replicas: Annotated[ReplicaRange, BeforeValidator(_span)] = Field(
        default=ReplicaRange(min=1, max=1),
        description="How many: 2, or a range 1..4 to scale in.",
        json_schema_extra=_also({"type": "integer"}, {"type": "string", "pattern": r"^\d+(\s*\.\.\s*\d+)?$"}),
    )
    context: Context = Field(default=2048, description="Tokens of one request, prompt and answer.")
    slots: Positive = Field(default=4, description="Requests that one replica decodes together.")
    resources: ResourceFields = Field(
        default=ResourceFields(), description="What one replica asks of its node."
    )
    tenants: list[Name] = Field(default=[], description="Who may call it; empty is everyone.")
    engine_args: list[Text] = Field(default=[], description="More arguments for the engine.")
    url: Url | None = Field(default=None, description="Only with engine `openai`: where it answers.")
    canary: CanaryFields | None = Field(
        default=None, description="How a new release takes over; without it, all at once when it is ready."
    )


class StationFields(Strict):
    """One step of a line, in the long form."""

    name: Name = Field(description="Name, unique in the line.")
    kind: Annotated[str, *choice("intake", "curate", "tune", "evaluate", "gate", "pack")] = Field(
        description="What it does."
    )
    needs: list[Name] = Field(default=[], description="Stations whose outputs it reads.")
    params: dict[str, Any] = Field(default={}, description="Parameters of its kind; see below.")
    resources: ResourceFields = Field(default=ResourceFields(), description="What its job asks of a node.")
    timeout: Duration | None = Field(default=None, description="Longest time of its job.")


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


class PeerDocument(Strict):
    """Another factory that we trust to answer for some names."""

    kind: Literal["peer"]
    name: Name = Field(description="Name of the peer.")
    url: Url = Field(description="Address of its gateway.")
    jurisdiction: Jurisdiction = Field(description="Law that applies there.")
    key: SecretRef = Field(description="Where our key for it is: secret://env/NAME.")
    aliases: list[AliasName] = Field(default=[], description="Names that it answers for.")


KINDS: dict[str, type[Strict]] = {
    "factory": FactoryDocument,
    "site": SiteDocument,
    "tenant": TenantDocument,
    "price": PriceDocument,
    "model": ModelDocument,
    "deployment": DeploymentDocument,
    "line": LineDocument,
    "job": JobDocument,
    "peer": PeerDocument,
}
