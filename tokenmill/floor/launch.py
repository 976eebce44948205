"""What a replica needs before it can start: whole weights, the adapter in its engine's format, a command.

Reads and verifies artifacts, so it blocks. The engines' own command lines are ``engine.adapter``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tokenmill.domain.effects import StartReplica
from tokenmill.domain.errors import NotFoundError
from tokenmill.domain.factory import Factory
from tokenmill.domain.work import Release
from tokenmill.engine import adapter
from tokenmill.floor.imports import Verifier
from tokenmill.floor.machine import device_index
from tokenmill.floor.workers import free_port


@dataclass(frozen=True, slots=True)
class Prepared:
    """``argv`` is empty for a server that is not ours to start."""

    address: str  # host:port, as the gateway dials it
    health: str  # says whether requests may come
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


def prepare(effect: StartReplica, factory: Factory, verifier: Verifier, host: str) -> Prepared:
    """Verify what ``effect`` serves and return how to start it on ``host``, on a port that is free now.

    Raises ``CorruptWeightsError``, ``NotFoundError`` and what ``engine.adapter.command`` raises.
    """
    deployment, release = effect.deployment, effect.release
    if deployment.url:
        return remote(deployment.url)
    verifier.check(release)
    engine = adapter.engine_named(deployment.engine)
    port = free_port()
    resources = deployment.resources
    command = adapter.command(
        engine.name,
        adapter.Launch(
            alias=deployment.name,
            weights=verifier.verified(release.weights),
            unpacked=verifier.unpacked(release.weights),
            port=port,
            host=host,
            lora=_lora(engine, release, verifier),
            slots=deployment.slots,
            context_tokens=deployment.context_tokens,
            threads=max(1, resources.cpu_millis // 1000) if resources.cpu_millis else 0,
            accelerators=tuple(device_index(a) for a in effect.accelerators),
            memory_bytes=resources.memory_bytes,
            kind=next((m.kind for m in factory.models if m.name == release.model), "chat"),
            engine_args=deployment.engine_args,
        ),
    )
    health = f"http://{host}:{port}{engine.health_path}"
    return Prepared(f"{host}:{port}", health, command.argv, command.env)


def remote(url: str) -> Prepared:
    """Return where a server is that somebody else runs. Its address ends before ``/v1``."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    path = adapter.engine_named("openai").health_path
    return Prepared(f"{parts.hostname}:{port}", url.rstrip("/").removesuffix("/v1") + path)


def _lora(engine: adapter.Engine, release: Release, verifier: Verifier) -> Path | None:
    """Return the adapter in the format that the engine loads; a release's tree holds it in both."""
    if not release.adapter:
        return None
    if engine.lora_format != "safetensors":
        return verifier.verified(release.adapter)
    path = verifier.verified(release.digest) / "adapter" / "hf"
    if not path.is_dir():
        raise NotFoundError(
            f"release {release.id} has no adapter that {engine.name} can load",
            expected="adapter/hf in the release's artifact",
            fix="Serve it with the embedded engine, or run the line again.",
        )
    return path
