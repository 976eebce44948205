"""The nouns of the catalogue. Figures of hardware and of models, not of what software reaches on them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenmill.domain.value import value

SERVER_LOSS = 0.165
"""What supplies and fans of a server add to each watt of its accelerators. Fitted by ``bench/accuracy.py`` to
wall power of eight B200 (MLPerf Inference v5.1, Lenovo, Yokogawa WT500)."""


def beside_w(full_w: float, unused_w: float, count: int = 1) -> float:
    """Watts of a server beside its accelerators, when each of ``count`` draws ``unused_w`` less than it may.

    ``full_w`` is that at full load.
    """
    return max(0.0, full_w - SERVER_LOSS * count * unused_w)


@dataclass(frozen=True, slots=True)
class AcceleratorType:
    """Dense peak rates in TFLOP/s, 0 where the part has no such mode; nothing computes with ``sparse_*``.

    Parts of one ``architecture`` run the same kernels: NVIDIA's differ in the minor number of their compute
    capability at most.
    ``device`` is the name that its driver reports, where the words of ``id`` do not tell it from a kin.
    """

    id: str
    name: str
    memory_gb: int
    memory_gb_s: float
    source: str
    architecture: str
    tflops_bf16: float
    link_gb_s: float
    idle_w: int
    max_w: int
    hour_micros: int
    vendor: str = "NVIDIA"
    device: str = ""
    tflops_fp8: float = 0
    tflops_fp4: float = 0
    tops_int8: float = 0
    sparse_bf16: float = 0
    sparse_fp8: float = 0
    sparse_fp4: float = 0
    sparse_int8: float = 0


@dataclass(frozen=True, slots=True)
class NodeType:
    """``nvlink`` says how far an NVLink domain reaches: node, rack, or nowhere when empty.

    ``nics`` and ``dpus`` are how many of which type: ``4 x connectx-8``.
    """

    id: str
    accelerators: int
    cpu: int
    memory_gb: int
    source: str
    accelerator: str = ""
    nvlink: str = ""
    nics: str = ""
    dpus: str = ""
    overhead_w: int = 0

    def idle_w(self, chip: AcceleratorType | None) -> float:
        """Of a node that holds nothing: part of its overhead at full load follows the accelerators."""
        if chip is None:
            return self.overhead_w
        beside = beside_w(self.overhead_w, chip.max_w - chip.idle_w, self.accelerators)
        return beside + self.accelerators * chip.idle_w


@dataclass(frozen=True, slots=True)
class RackType:
    id: str
    node: str
    nodes: int
    max_w: int
    source: str
    switch_trays: int = 0


@dataclass(frozen=True, slots=True)
class AdapterType:
    """A NIC or a DPU."""

    id: str
    gbit_s: float
    fabric: str
    source: str


@dataclass(frozen=True, slots=True)
class SwitchType:
    id: str
    name: str
    ports: int
    gbit_s: float
    fabric: str
    source: str


@dataclass(frozen=True, slots=True)
class ModelType:
    """A decoder-only transformer; see ``models.yaml`` for the words."""

    id: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    source: str = ""
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    dense_layers: int = 0
    full_attention_layers: int = 0
    window: int = 0
    latent: int = 0
    latent_query: int = 0
    rope_dim: int = 0
    tied: bool = False

    @property
    def moe_layers(self) -> int:
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def attention_layers(self) -> int:
        """Layers whose work and cache grow with the whole context."""
        return self.full_attention_layers or self.layers

    @property
    def attention_parameters(self) -> int:
        """Weights of the projections of one layer. Linear attention is counted as wide as full attention."""
        wide = self.heads * self.head_dim
        if self.latent:
            asked = self.heads * (self.head_dim + self.rope_dim)
            query = (self.hidden + asked) * self.latent_query or self.hidden * asked
            cache = self.hidden * (self.latent + self.rope_dim) + 2 * self.latent * wide
            return query + cache + wide * self.hidden
        return self.hidden * (2 * wide + 2 * self.kv_heads * self.head_dim)

    @property
    def dense_parameters(self) -> int:
        """Weights that every token passes, all layers, without experts, embedding and head."""
        mlp = 3 * self.hidden * self.intermediate * (self.layers - self.moe_layers)
        shared = 3 * self.hidden * self.shared_intermediate * self.moe_layers
        router = self.hidden * self.experts * self.moe_layers
        return self.layers * self.attention_parameters + mlp + shared + router

    @property
    def expert_parameters(self) -> int:
        """Weights of one expert of one layer."""
        return 3 * self.hidden * self.expert_intermediate

    @property
    def parameters(self) -> int:
        """All weights."""
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.dense_parameters + self.moe_layers * self.experts * self.expert_parameters + tables

    @property
    def active_parameters(self) -> int:
        """Weights that one token passes, the output head among them."""
        chosen = self.moe_layers * self.experts_per_token * self.expert_parameters
        return self.dense_parameters + chosen + self.vocabulary * self.hidden

    @property
    def kv_token_values(self) -> int:
        """Numbers that one token adds to the cache, over all layers whose cache grows."""
        width = self.latent + self.rope_dim if self.latent else 2 * self.kv_heads * self.head_dim
        return self.attention_layers * width


@dataclass(frozen=True, slots=True)
class EngineType:
    """Default rules of a version: ``admission`` prompt or reserve, ``preemption`` recompute or none."""

    id: str
    mixed: bool
    token_budget: int
    max_sequences: int
    admission: str
    preemption: str
    block: int
    prefix_cache: bool
    source: str


@value
class OwnTypes:
    """Types that a factory file states, beside those that are shipped or in their place.

    ``sources`` as in ``Catalogue``: (type, field, source).
    """

    accelerators: tuple[AcceleratorType, ...] = ()
    nodes: tuple[NodeType, ...] = ()
    racks: tuple[RackType, ...] = ()
    nics: tuple[AdapterType, ...] = ()
    dpus: tuple[AdapterType, ...] = ()
    switches: tuple[SwitchType, ...] = ()
    models: tuple[ModelType, ...] = ()
    sources: tuple[tuple[str, str, str], ...] = ()


NO_TYPES = OwnTypes()


@dataclass(frozen=True, slots=True)
class Catalogue:
    """``sources`` has an entry for each value whose source is not that of its row: (type, field)."""

    accelerators: dict[str, AcceleratorType]
    nodes: dict[str, NodeType]
    racks: dict[str, RackType]
    nics: dict[str, AdapterType] = field(default_factory=dict)
    dpus: dict[str, AdapterType] = field(default_factory=dict)
    switches: dict[str, SwitchType] = field(default_factory=dict)
    models: dict[str, ModelType] = field(default_factory=dict)
    engines: dict[str, EngineType] = field(default_factory=dict)
    sources: dict[tuple[str, str], str] = field(default_factory=dict)

    def source(self, kind: str, field_name: str) -> str:
        """Where the value of a field of the type ``kind`` is from."""
        own = self.sources.get((kind, field_name))
        if own is not None:
            return own
        rows: dict[str, str] = {}
        for table in (self.accelerators, self.nodes, self.racks, self.nics, self.dpus):
            rows |= {name: row.source for name, row in table.items()}
        for other in (self.switches, self.models, self.engines):
            rows |= {name: row.source for name, row in other.items()}
        return rows[kind]
