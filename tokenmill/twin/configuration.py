"""What serves a deployment, as the twin has to know it: model, accelerator, layout, precision and engine.

All of it stands in the factory file: layout and precision are read from the arguments that the engine itself
gets. What is not said is named, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenmill.domain.errors import DataError
from tokenmill.domain.factory import Deployment, Factory
from tokenmill.domain.units import did_you_mean
from tokenmill.spec.catalogue import AcceleratorType, Catalogue, EngineType, ModelType, catalogue
from tokenmill.twin.engine_model import shape_of
from tokenmill.twin.iteration import Layout

PRECISIONS = {
    "fp8": "fp8",
    "modelopt": "fp8",
    "fbgemm_fp8": "fp8",
    "w8a8_fp8": "fp8",
    "modelopt_fp8": "fp8",
    "modelopt_fp4": "fp4",
    "nvfp4": "fp4",
    "mxfp4": "fp4",
    "petit_nvfp4": "fp4",
    "bfloat16": "bf16",
    "float16": "bf16",
    "half": "bf16",
}
"""Values of --quantization and --dtype of vLLM and SGLang, by how many bits the weights have."""

FLAGS = {
    "tensor": ("--tensor-parallel-size", "-tp", "--tp", "--tp-size"),
    "pipeline": ("--pipeline-parallel-size", "-pp", "--pp", "--pp-size"),
    "data": ("--data-parallel-size", "-dp", "--dp", "--dp-size"),
    "expert": ("--expert-parallel-size", "--ep", "--ep-size"),
    "quantization": ("--quantization", "-q"),
    "dtype": ("--dtype",),
}
SWITCHES = {"--enable-expert-parallel": "spread", "--enable-dp-attention": "shared"}
"""Of vLLM: experts over all accelerators. Of SGLang: copies of attention share the accelerators of its tp."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """One replica of a deployment. ``engine_id`` is the catalogue's newest version of its engine."""

    deployment: str
    model: ModelType
    accelerator: AcceleratorType
    layout: Layout
    precision: str
    engine: EngineType
    slots: int
    context: int
    overhead_w: float  # of its node, its accelerators' share

    def __str__(self) -> str:
        return f"{self.model.id} in {self.precision} as {self.layout} on {self.accelerator.name}"


def configuration(factory: Factory, deployment: Deployment) -> tuple[Configuration | None, list[str]]:
    """What serves it, and what the factory does not say of it: then there is no configuration.

    Raises ``DataError`` for a layout that is not that of its accelerators.
    """
    missing: list[str] = []
    known = catalogue(factory.types)
    name = deployment.model or next((x.base for x in factory.lines if x.name == deployment.line), "")
    stated = next((m for m in factory.models if m.name == name), None)
    model = (shape_of(stated.source, known) or shape_of(stated.name, known)) if stated else None
    if model is None:
        near = did_you_mean(name, known.models)
        missing.append(f"model: the catalogue knows no architecture of {name!r}. {near}".rstrip())
    engine = _engine(deployment.engine)
    if engine is None:
        missing.append(f"engine: there are no rules of {deployment.engine!r}; expected vllm or sglang")
    kind = deployment.resources.accelerator_kind or next(
        (node.accelerators[0].kind for node in factory.nodes if node.accelerators), ""
    )
    accelerator = known.accelerators.get(kind)
    if accelerator is None:
        missing.append(
            f"accelerator: {kind!r} is not in the catalogue; expected resources: {{accelerator: TYPE}}"
        )
    precision = precision_of(deployment)
    if not precision:
        missing.append(
            "precision: expected --quantization fp8 or modelopt_fp4, or --dtype bfloat16, in engine_args"
        )
    if model is None or accelerator is None or engine is None or not precision:
        return None, missing
    layout = layout_of(deployment, model)
    share = layout.accelerators * _overhead_w(factory, accelerator, known)
    return Configuration(
        deployment.name, model, accelerator, layout, precision, engine, deployment.slots,
        deployment.context_tokens, share,
    ), []  # fmt: skip


def precision_of(deployment: Deployment) -> str:
    """Of its weights, as the engine's arguments say; empty when they say nothing that is known."""
    said = dict(_flags(deployment.engine_args))
    return PRECISIONS.get(said.get("quantization", said.get("dtype", "")), "")


def _engine(name: str) -> EngineType | None:
    versions = [one for one in catalogue().engines.values() if one.id.rpartition("-")[0] == name]
    return versions[-1] if versions else None


def _overhead_w(factory: Factory, kind: AcceleratorType, known: Catalogue) -> float:
    """Watts of a node beside its accelerators, for each: of the factory's, else of the catalogue's."""
    kin = [n for n in factory.nodes if n.power_mw and n.accelerators and n.accelerators[0].kind == kind.id]
    if kin:
        return max(0.0, *(n.power_mw / 1000 / len(n.accelerators) - kind.max_w for n in kin))
    return max(
        (n.overhead_w / n.accelerators for n in known.nodes.values() if n.accelerator == kind.id), default=0.0
    )


def _flags(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    names = {flag: name for name, flags in FLAGS.items() for flag in flags}
    for at, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag in SWITCHES:
            yield SWITCHES[flag], "1"
        elif flag in names:
            yield names[flag], value or (arguments[at + 1] if at + 1 < len(arguments) else "")


def layout_of(deployment: Deployment, model: ModelType) -> Layout:
    """As the engine's arguments say; tensor parallel over all accelerators where they say nothing.

    Raises ``DataError`` where that is not the number of its accelerators.
    """
    said = dict(_flags(deployment.engine_args))
    held = max(1, deployment.resources.accelerators)
    counts = {name: _count(deployment.name, name, said) for name in ("tensor", "pipeline", "data", "expert")}
    pipeline, data = counts["pipeline"] or 1, counts["data"] or 1
    shared = "shared" in said
    copies = 1 if shared else data  # of what --tensor-parallel-size counts
    stage = copies * (counts["tensor"] or max(1, held // (pipeline * copies)))
    if stage % data:
        raise DataError(
            f"{deployment.name}: {data} copies of attention do not share {stage} accelerators evenly",
            expected="--dp-size that divides --tp-size",
        )
    tensor = stage // data
    spread = counts["expert"] or (stage if "spread" in said else 1 if shared else data)
    expert = spread if model.experts else 1
    expert_tensor = stage // expert if model.experts else tensor
    layout = Layout(tensor, pipeline, data, expert, max(1, expert_tensor))
    if layout.accelerators != held:
        raise DataError(
            f"{deployment.name}: {layout} takes {layout.accelerators} accelerators, a replica has {held}",
            expected=f"tensor x pipeline x data parallel = {held}",
            fix="Change engine_args, or resources: {accelerators: N}.",
        )
    return layout


def _count(deployment: str, name: str, said: dict[str, str]) -> int:
    text = said.get(name, "")
    if not text:
        return 0
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise DataError(
            f"{deployment}: {FLAGS[name][0]} is {text!r}", expected="a whole number from 1 to 1024"
        )
    return int(text)
