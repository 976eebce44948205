"""The bill of materials of a release: CycloneDX 1.6 with a model card component (ML-BOM).

Form: cyclonedx.org/docs/1.6/json. Only what is known is stated; a field without a value is left out.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

NAMESPACE = uuid.UUID(
    "6d1f4f0e-57b3-5f0a-9a52-6f1d2f0c7b11"
)  # of serial numbers, so that they can be repeated


def bill_of_materials(facts: Mapping[str, Any], license_expression: str = "") -> dict[str, Any]:
    """The document. Its components are base model, data and packages; the adapter is what they make."""
    adapter, base = facts["adapter"], facts["base"]
    made = adapter["gguf"] or facts["data"]["weights"]  # an adapter, or all weights
    made_ref, base_ref = f"{'adapter' if adapter['gguf'] else 'model'}:{made}", f"model:{base['weights']}"
    what = "LoRA adapter for" if adapter["gguf"] else "Tuned weights of"
    data = [_data(name, digest) for name, digest in sorted(facts["data"].items()) if digest != made]
    if facts["source"]["sha"]:
        data.insert(0, _data(facts["source"]["name"] or "source", facts["source"]["sha"]))
    libraries = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{version}",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name}@{version.replace('+', '%2B')}",
        }
        for name, version in sorted(facts["environment"].items())
        if name not in ("python", "platform")
    ]
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": made_ref,
        "name": facts["line"],
        "version": facts["run"],
        "description": f"{what} {base.get('model', 'the base model')}",
        "hashes": [_hash(made)],
        "modelCard": _model_card(facts, data),
    }
    if license_expression:
        component["licenses"] = [{"expression": license_expression}]
    model = {
        "type": "machine-learning-model",
        "bom-ref": base_ref,
        "name": base.get("model", "base"),
        "hashes": [_hash(base["weights"])],
    }
    components = [model, *data, *libraries]
    serial = uuid.uuid5(NAMESPACE, f"{facts['run']}/{made}")
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "tools": {
                "components": [
                    {"type": "application", "name": "tokenmill", "version": facts["code"]["version"]}
                ]
            },
            "component": component,
        },
        "components": components,
        "dependencies": [{"ref": made_ref, "dependsOn": sorted(c["bom-ref"] for c in components)}],
    }


def _model_card(facts: Mapping[str, Any], data: list[dict[str, Any]]) -> dict[str, Any]:
    evidence = facts["evidence"]
    measured = []
    for name, subject in sorted(evidence["subjects"].items()):
        if not subject:
            continue
        measured.append(
            {
                "type": evidence["metric"],
                "value": _share(subject["correct_milli"]),
                "slice": f"{name}, {evidence['n']} held-out items",
                "confidenceInterval": {
                    "lowerBound": _share(subject["low_milli"]),
                    "upperBound": _share(subject["high_milli"]),
                },
            }
        )
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "text-generation",
            "datasets": [
                {"ref": item["bom-ref"]} for item in data if item["name"] in ("train", "validation")
            ],
        },
        "quantitativeAnalysis": {"performanceMetrics": measured},
    }


def _data(name: str, digest: str) -> dict[str, Any]:
    return {
        "type": "data",
        "bom-ref": f"data:{name}:{digest}",
        "name": name,
        "hashes": [_hash(digest)],
        "data": [{"type": "dataset", "name": name}],
    }


def _hash(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest.partition(":")[2]}


def _share(milli: int) -> str:
    return f"{milli / 1000:.3f}"
