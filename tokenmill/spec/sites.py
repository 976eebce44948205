"""What may be written about places: sites, their racks, nodes and fabrics."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from tokenmill.spec.fields import (
    BitRate,
    Cpu,
    Jurisdiction,
    Latency,
    Name,
    Positive,
    Power,
    Pue,
    Ramp,
    Size,
    Small,
    Text,
    choice,
)
from tokenmill.spec.strict import Strict, also, listed


class RackFields(Strict):
    """Racks of one type of the catalogue."""

    type: Text = Field(description="Rack type of the catalogue, for example gb300-nvl72.")
    count: Positive = Field(default=1, description="How many.")
    name: Name = Field(default="rack", description="First part of the racks' names.")
    schedulable: Positive | None = Field(
        default=None, description="How many nodes of each may hold work; the others are spares."
    )
    power_cap: Power | None = Field(default=None, description="Most power that each rack may draw.")
    power_ramp: Ramp | None = Field(
        default=None, description="By how much the draw of each may rise within a second, minute or hour."
    )
    leaf: Name | None = Field(default=None, description="Leaf switch, or scalable unit, that they hang on.")
    rail: Name | None = Field(default=None, description="Group of leaves that their rails join.")
    row: Name | None = Field(default=None, description="Row that they stand in.")


class NodeFields(Strict):
    """Nodes of one type of the catalogue, or of stated size."""

    name: Name = Field(description="Name; with a count it is the first part of the names.")
    type: Text | None = Field(default=None, description="Node type of the catalogue, for example hgx-h200.")
    count: Positive = Field(default=1, description="How many.")
    rack: Name | None = Field(default=None, description="Rack that they stand in.")
    domain: Name | None = Field(default=None, description="NVLink domain that they are in together.")
    leaf: Name | None = Field(default=None, description="Leaf switch, or scalable unit, that they hang on.")
    rail: Name | None = Field(default=None, description="Group of leaves that their rails join.")
    row: Name | None = Field(default=None, description="Row that they stand in.")
    cpu: Cpu | None = Field(default=None, description="Cores, where no type is given.")
    memory: Size | None = Field(default=None, description="Memory, where no type is given.")
    accelerators: Small | None = Field(
        default=None, description="Accelerators of each, where no type is given."
    )
    accelerator: Text | None = Field(default=None, description="Their type, from the catalogue.")
    idle_power: Power | None = Field(
        default=None, description="What each draws with nothing on it, where no type is given."
    )
    max_power: Power | None = Field(
        default=None,
        description="What each draws at most, where no type is given; needed under a bound of power.",
    )


class FabricFields(Strict):
    """A network that joins the nodes of a site."""

    name: Name = Field(description="Name, unique in the factory.")
    type: Annotated[str, *choice("nvlink", "infiniband", "ethernet", "wan")] = Field(
        description="Technology."
    )
    bandwidth: BitRate = Field(description="Of one accelerator or node in each direction: 800Gbit/s.")
    latency: Latency = Field(default=0, description="One way, for example 2us.")
    switch: Text | None = Field(
        default=None, description="Switch of the catalogue that it is built of, for `tokenmill fabric`."
    )
    rails: Positive | None = Field(
        default=None,
        description="Adapters of a node; as many as it has accelerators, or 1 of ethernet, if not written.",
    )
    planes: Positive = Field(
        default=1, description="Fabrics side by side, each of which has a port of every adapter."
    )


class SiteDocument(Strict):
    """A place under one law, with one power cap."""

    kind: Literal["site"]
    name: Name = Field(description="Name of the site.")
    jurisdiction: Jurisdiction | None = Field(
        default=None, description="Law that applies there, for example de."
    )
    power_cap: Power | None = Field(default=None, description="Most power that the site may draw.")
    power_ramp: Ramp | None = Field(
        default=None, description="By how much its draw may rise within a second, minute or hour."
    )
    pue: Pue = Field(default=1000, description="Power of the whole site per power of its computers.")
    acceptance: list[Text] = Field(
        default=[],
        description="Command that a node which was lost must pass before it takes work, as a list.",
    )
    nodes: Literal["this-machine"] | list[NodeFields] = Field(
        default=[], description="`this-machine`, or a list of nodes."
    )
    racks: Annotated[list[RackFields], BeforeValidator(listed)] = Field(
        default=[],
        description="Racks by type: one mapping or a list.",
        json_schema_extra=also({"type": "object"}),
    )
    fabrics: list[FabricFields] = Field(default=[], description="Networks that join the nodes.")
