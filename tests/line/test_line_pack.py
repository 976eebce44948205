"""Pack: the release tree, its manifest, bill of materials, provenance and model card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tokenmill.domain.errors import DataError
from tokenmill.domain.work import JobResult
from tokenmill.line.job import StationJob
from tokenmill.line.process import run_station
from tokenmill.store.artifacts import Artifacts

WEIGHTS = "sha256:" + "a" * 64


def evidence() -> dict[str, Any]:
    def subject(correct: int) -> dict[str, Any]:
        speed = {"output_tokens_per_s": 100.0, "ttft_ms_p50": 50.0}
        return {"correct_milli": correct, "low_milli": correct - 10, "high_milli": correct + 10, **speed}

    return {
        "metric": "json_fields",
        "n": 100,
        "items_digest": "sha256:" + "b" * 64,
        "subjects": {"base": subject(10), "champion": None, "candidate": subject(800)},
        "pairs": {
            "base": {"both": 1, "neither": 20, "candidate_only": 79, "reference_only": 0},
            "champion": None,
        },
    }


def pack(
    tmp_path: Path, job_of: Callable[..., StationJob], made: dict[str, str], method: str = "lora"
) -> tuple[StationJob, JobResult]:
    """Intake, curate and pack for real, around what a tune station is said to have made."""
    (tmp_path / "rows.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"{i} {'abcdef'[i % 6] * 9}", "completion": "x"}) + "\n" for i in range(60)
        )
    )
    intake = run_station(job_of("intake", {"path": "rows.jsonl"}))
    curate = run_station(job_of("curate", {"near_duplicates": "keep"}, {"intake": intake}))
    trained = {"rows": 60, "tokens": 600, "steps": 4, "seconds": 1.0, "precision": "fp32", "method": method}
    entry = {"station": "tune", "kind": "tune", "settings": {"method": method}, "metrics": trained}
    entry |= {"started_us": 0, "ended_us": 1_000_000, "outputs": made}
    trail = [*curate.evidence["trail"], entry]
    tune = JobResult(outputs=made, evidence={"trail": trail})
    evaluate = JobResult(
        outputs={"predictions": Artifacts(tmp_path / "artifacts").put_bytes(b"{}")},
        evidence={**evidence(), "trail": trail},
    )
    base = {"model": "smollm2", "weights": WEIGHTS, "format": "gguf"}
    job = job_of("pack", {"license": "Apache-2.0"}, {"tune": tune, "evaluate": evaluate}, base=base)
    return job, run_station(job)


@pytest.fixture
def packed(tmp_path: Path, job_of: Callable[..., StationJob]) -> tuple[StationJob, JobResult]:
    artifacts = Artifacts(tmp_path / "artifacts")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    outputs = {
        "adapter_hf": artifacts.put_tree(adapter),
        "adapter_gguf": artifacts.put_bytes(b"GGUF adapter"),
    }
    return pack(tmp_path, job_of, outputs)


def test_all_weights_are_a_release_without_an_adapter(
    tmp_path: Path, job_of: Callable[..., StationJob]
) -> None:
    artifacts = Artifacts(tmp_path / "artifacts")
    made = {"weights": artifacts.put_bytes(b"GGUF weights"), "weights_hf": artifacts.put_bytes(b"tree")}
    job, result = pack(tmp_path, job_of, made, method="full")
    release = job.artifacts.path(result.outputs["release"])
    card = (release / "model-card.md").read_text()
    assert "All weights of `smollm2`" in card
    assert "tuned in full" in card
    assert "LoRA" not in card
    assert "library_name: transformers" in card
    text = (release / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    component = json.loads(text)["metadata"]["component"]
    assert component["hashes"] == [{"alg": "SHA-256", "content": made["weights"].partition(":")[2]}]
    assert component["description"] == "Tuned weights of smollm2"
    refs = [c["bom-ref"] for c in json.loads(text)["components"]]
    assert component["bom-ref"] not in refs
    assert not (release / "adapter").exists()


def test_the_manifest_names_every_file_of_the_release(packed: tuple[StationJob, JobResult]) -> None:
    job, result = packed
    release = job.artifacts.path(result.outputs["release"])
    manifest = json.loads((release / "manifest.json").read_text())
    found = {p.relative_to(release).as_posix(): p for p in release.rglob("*") if p.is_file()}
    found.pop("manifest.json")
    assert {f["name"]: (f["sha256"], f["bytes"]) for f in manifest["files"]} == {
        name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
        for name, path in found.items()
    }
    assert {"adapter/adapter.gguf", "adapter/hf/adapter_config.json", "data-card/card.md"} <= found.keys()
    digest = "sha256:" + hashlib.sha256((release / "manifest.json").read_bytes()).hexdigest()
    assert result.evidence["manifest_digest"] == digest == result.outputs["manifest"]
    assert manifest["base"]["weights"] == WEIGHTS
    assert manifest["evidence"]["subjects"]["candidate"]["correct_milli"] == 800
    assert manifest["settings"]["intake"] == {"path": "rows.jsonl"}
    assert set(manifest["data"]["artifacts"]) >= {"rows", "train", "test", "quarantine"}
    assert manifest["code"]["source"].startswith("sha256:")


def test_the_bill_of_materials_is_in_the_form_of_cyclonedx(packed: tuple[StationJob, JobResult]) -> None:
    job, result = packed
    release = job.artifacts.path(result.outputs["release"])
    bom = json.loads((release / "bom.cdx.json").read_text())
    assert (bom["bomFormat"], bom["specVersion"], bom["version"]) == ("CycloneDX", "1.6", 1)
    assert bom["serialNumber"].startswith("urn:uuid:")
    refs = [c["bom-ref"] for c in bom["components"]] + [bom["metadata"]["component"]["bom-ref"]]
    assert len(set(refs)) == len(refs)
    for dependency in bom["dependencies"]:
        assert {dependency["ref"], *dependency["dependsOn"]} <= set(refs)
    for component in bom["components"]:
        assert component["type"] in ("machine-learning-model", "data", "library")
        for each in component.get("hashes", []):
            assert each["alg"] == "SHA-256"
            assert len(each["content"]) == 64
    model = bom["metadata"]["component"]
    assert model["licenses"] == [{"expression": "Apache-2.0"}]
    assert {d["ref"] for d in model["modelCard"]["modelParameters"]["datasets"]} <= set(refs)
    measured = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert [m["value"] for m in measured] == ["0.010", "0.800"]


def test_provenance_is_an_in_toto_statement_about_the_files(packed: tuple[StationJob, JobResult]) -> None:
    job, result = packed
    release = job.artifacts.path(result.outputs["release"])
    statement = json.loads((release / "provenance.intoto.json").read_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {s["name"]: s["digest"]["sha256"] for s in statement["subject"]}
    gguf = release / "adapter" / "adapter.gguf"
    assert subjects["adapter/adapter.gguf"] == hashlib.sha256(gguf.read_bytes()).hexdigest()
    predicate = statement["predicate"]
    materials = {m["name"]: m["digest"] for m in predicate["buildDefinition"]["resolvedDependencies"]}
    assert materials["base weights"] == {"sha256": "a" * 64}
    assert {"rows.jsonl", "data/train", "data/test"} <= materials.keys()
    assert predicate["runDetails"]["metadata"]["invocationId"] == "run-000001"
    assert "signature" not in json.dumps(statement)


def test_the_model_card_tells_people_how_it_did(packed: tuple[StationJob, JobResult]) -> None:
    job, result = packed
    card = (job.artifacts.path(result.outputs["release"]) / "model-card.md").read_text()
    assert "| candidate | 80.0 % | 79.0 to 81.0 % |" in card
    assert "license: Apache-2.0" in card
    assert "60 rows" in card


def test_a_second_attempt_packs_over_what_the_first_left(packed: tuple[StationJob, JobResult]) -> None:
    job, result = packed
    assert (job.work / "release").is_dir()
    assert run_station(job).metrics["files"] == result.metrics["files"]


def test_pack_needs_an_evaluation_and_an_adapter(job_of: Callable[..., StationJob]) -> None:
    with pytest.raises(DataError, match="no evaluation among its inputs"):
        run_station(job_of("pack", {}, base={"model": "m", "weights": WEIGHTS}))
    judged = {"evaluate": JobResult(evidence=evidence())}
    with pytest.raises(DataError, match="needs 'adapter_hf'"):
        run_station(job_of("pack", {}, judged, base={"model": "m", "weights": WEIGHTS}))


def test_the_bill_of_materials_is_valid_cyclonedx(packed: tuple[StationJob, JobResult]) -> None:
    job, done = packed
    release = job.artifacts.path(done.outputs["release"])
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str((release / "bom.cdx.json").read_text()) is None
