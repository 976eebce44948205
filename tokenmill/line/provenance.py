"""Where a release comes from: an in-toto statement with a SLSA provenance predicate, and the environment.

Formats: in-toto Statement v1 (github.com/in-toto/attestation, spec/v1) and SLSA Provenance v1
(slsa.dev/spec/v1.0/provenance). The statement is not signed here.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "accelerate",
    "gguf",
    "numpy",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
    "xllamacpp",
)
BUILD_TYPE = "urn:tokenmill:line:1"


def environment() -> dict[str, str]:
    """Python, platform and the versions of those packages that shape a result and are installed."""
    found = {"python": platform.python_version(), "platform": f"{sys.platform}-{platform.machine()}"}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def source_digest(package: Path) -> str:
    """``sha256:<hex>`` over names and bytes of a package's Python files: the code, whatever its version."""
    whole = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        part = hashlib.sha256(path.read_bytes()).hexdigest()
        whole.update(f"{path.relative_to(package).as_posix()}\0{part}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def statement(facts: Mapping[str, Any], files: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    """The statement about ``files``: made by this line, from these materials, with these settings."""
    trail = facts["trail"]
    times = [t for entry in trail for t in (entry["started_us"], entry["ended_us"])]
    materials = [
        ("base weights", facts["base"]["weights"]),
        (facts["source"]["name"], facts["source"]["sha"]),
    ]
    materials += [(f"data/{name}", digest) for name, digest in sorted(facts["data"].items())]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": n, "digest": {"sha256": digest}} for n, (digest, _) in sorted(files.items())],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "line": facts["line"],
                    "base": facts["base"].get("model", ""),
                    "settings": {entry["station"]: entry["settings"] for entry in trail},
                },
                "internalParameters": {"environment": facts["environment"]},
                "resolvedDependencies": [
                    {"name": name, "digest": _digest_set(digest)} for name, digest in materials if digest
                ],
            },
            "runDetails": {
                "builder": {
                    "id": f"urn:tokenmill:{facts['code']['version']}",
                    "version": {"tokenmill": facts["code"]["version"], "source": facts["code"]["source"]},
                },
                "metadata": {
                    "invocationId": facts["run"],
                    **({"startedOn": _time(min(times)), "finishedOn": _time(max(times))} if times else {}),
                },
                "byproducts": [
                    {"name": f"{entry['station']}/{name}", "digest": _digest_set(digest)}
                    for entry in trail
                    for name, digest in sorted(entry["outputs"].items())
                ],
            },
        },
    }


def _digest_set(digest: str) -> dict[str, str]:
    algorithm, _, value = digest.partition(":")
    return {algorithm: value}


def _time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
