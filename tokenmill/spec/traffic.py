"""A traffic file: what comes to the deployments of a factory, what trains beside them, and what breaks.

One YAML document of ``kind: traffic``, read by the rules of a factory file: a bad field is named with file,
line and column. What a forecast needs and the file does not say is for ``twin.question`` to ask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from tokenmill.domain.errors import Problem, SpecError
from tokenmill.spec.factory_file import read_text
from tokenmill.spec.fields import AliasName, Duration, Name, Positive, Share, Small, Text, choice, fail
from tokenmill.spec.files import unreadable
from tokenmill.spec.override import Override, changed
from tokenmill.spec.source import Document, Found, Place, read_documents
from tokenmill.spec.strict import Strict, also
from tokenmill.spec.validate import Entry, validate

FILE = "traffic file"
"""What errors call it."""


def _number(low: float, high: float, expected: str) -> Any:
    def read(value: object) -> float:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        if not low <= number <= high:  # false for NaN
            fail(f"{value!r} does not fit", expected)
        return number

    return [BeforeValidator(read), WithJsonSchema({"type": "number", "minimum": low, "maximum": high})]


Rate = Annotated[float, *_number(1e-6, 1e7, "requests per second: a number above 0, at most 10 million")]
Mean = Annotated[float, *_number(1, 1e6, "a mean from 1 to 1,000,000 tokens")]
Spread = Annotated[float, *_number(0, 4, "the sigma of a log-normal distribution, from 0 to 4")]
Swing = Annotated[float, *_number(0, 1, "a number from 0 to 1")]
Hour = Annotated[float, *_number(0, 24, "an hour of the day, from 0 to 24")]
Burst = Annotated[float, *_number(1, 1e4, "the squared variation of the gaps, from 1 (Poisson) up")]


def _lengths(value: Any) -> Any:
    """2000 to {mean: 2000}."""
    return {"mean": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class LengthFields(Strict):
    """Token counts, log-normal around their mean; all alike with a sigma of 0."""

    mean: Mean = Field(description="Mean tokens.")
    sigma: Spread = Field(default=1.0, description="Spread; 0 makes all equal.")


class TargetFields(Strict):
    """What a good answer is. A request that misses one of both does not count as goodput."""

    ttft: Duration = Field(description="Longest time to the first token, for example 2s.")
    tpot: Duration = Field(description="Longest time per token after it, for example 80ms.")


class StreamFields(Strict):
    """Requests for one deployment: generated, or those of a trace."""

    deployment: AliasName = Field(description="Deployment that they go to.")
    requests_per_second: Rate | None = Field(
        default=None, description="Mean rate; that of the trace, if there is one and this is not written."
    )
    trace: Text | None = Field(
        default=None, description="Azure, BurstGPT or Mooncake trace, relative to this file; .gz is read."
    )
    input: Annotated[LengthFields | None, BeforeValidator(_lengths)] = Field(
        default=None, description="Tokens of a prompt.", json_schema_extra=also({"type": "number"})
    )
    output: Annotated[LengthFields | None, BeforeValidator(_lengths)] = Field(
        default=None, description="Tokens of an answer.", json_schema_extra=also({"type": "number"})
    )
    targets: TargetFields | None = Field(
        default=None, description="Latency that counts as good; else the deployment's `slo`."
    )
    swing: Swing = Field(default=0.0, description="How far the rate goes up and down over a day, of 1.")
    quiet_hour: Hour = Field(default=4.0, description="Hour at which it is lowest.")
    burstiness: Burst = Field(default=1.0, description="1 is Poisson; more comes in bursts (gamma gaps).")
    sessions: Positive | None = Field(
        default=None, description="Conversations at a time; prompts of one begin alike."
    )
    shared: Share = Field(default=0, description="Share of a prompt that its session shares.")

    @model_validator(mode="after")
    def _one(self) -> StreamFields:
        if self.trace is not None and (self.input is not None or self.output is not None):
            fail("a trace has its own lengths", "`trace`, or `input` and `output`")
        return self


class TrainingFields(Strict):
    """Training jobs that come over the whole time and run beside serving."""

    tenant: Name = Field(description="Tenant that owns them.")
    project: Name = Field(description="Project that pays.")
    jobs: Positive = Field(description="How many, submitted at even chances over the time.")
    workers: list[Positive] = Field(
        default=[1], min_length=1, description="Sizes of gangs; each is drawn as often."
    )
    accelerators: Small = Field(default=4, description="Accelerators of each worker.")
    work: Duration = Field(default=5_400_000_000, description="Median work, log-normal with a sigma of 0.7.")


class TrafficDocument(Strict):
    """The traffic of one rehearsal."""

    kind: Literal["traffic"]
    name: Name = Field(default="traffic", description="Name of it.")
    duration: Duration = Field(default=3_600_000_000, description="How long it lasts, for example 24h.")
    router: Annotated[str, *choice("two-choices", "least-work", "prefix-affinity", "random")] = Field(
        default="two-choices", description="How a replica is chosen."
    )
    streams: list[StreamFields] = Field(min_length=1, max_length=64, description="Requests.")
    training: list[TrainingFields] = Field(default=[], max_length=64, description="Training beside them.")
    faults: Annotated[str, *choice("none", "llama3")] = Field(
        default="none", description="`llama3`: at the rates of its published table, and of shared parts."
    )
    feeds: Small = Field(default=0, description="Power feeds without an uninterruptible supply.")


@dataclass(frozen=True, slots=True)
class Traffic:
    """The document, and where each of its fields stands."""

    model: TrafficDocument
    document: Document
    file: Path

    def where(self, *path: str | int) -> str:
        return str(self.document.place(tuple(path)))


def load_traffic(path: Path, environ: Mapping[str, str], overrides: Sequence[Override] = ()) -> Traffic:
    """Read a traffic file, with ``overrides`` of its fields laid on it.

    Raises ``SpecError`` with every problem, each with file, line and column.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            (Problem(f"the file cannot be read: {unreadable(error)}", str(path), "", "a traffic file"),), FILE
        ) from None
    documents, found = read_documents(text, str(path), 1, environ)
    if not found and len(documents) != 1:
        problem = Problem(f"the file holds {len(documents)} documents", expected="one, of `kind: traffic`")
        found.append(Found(Place(1, 1, 1, str(path)), problem))
    entry: Entry | None = None
    for override in overrides if documents else ():
        documents[0] = changed(documents[0], override.field.partition(".")[2], override)
    if documents:
        entry, problems = validate(documents[0], {"traffic": TrafficDocument})
        found += problems
    if found or entry is None or not isinstance(entry.model, TrafficDocument):
        found.sort(key=lambda one: one.place)
        raise SpecError(
            tuple(
                Problem(p.message, str(one.place), p.field, p.expected, p.fix)
                for one in found
                for p in (one.problem,)
            ),
            FILE,
        )
    return Traffic(entry.model, documents[0], path)


def of_trace(path: Path, deployment: str, targets: TargetFields | None, duration_us: int) -> Traffic:
    """The traffic of a trace file by itself."""
    stream = StreamFields(deployment=deployment, trace=path.name, targets=targets)
    fields = {"kind": "traffic", "name": "trace", "duration": f"{duration_us}us", "streams": [stream]}
    model = TrafficDocument.model_validate(fields)
    return Traffic(model, Document({}, Place(1, 1, 1, str(path))), path)
