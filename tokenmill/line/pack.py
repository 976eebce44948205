"""Pack: everything that belongs to a release in one tree, with a manifest that names each file by its digest.

Copies neither base weights nor data into the tree: they are named by digest. Signs nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

import tokenmill
from tokenmill.domain.errors import DataError
from tokenmill.domain.stations import PackParams
from tokenmill.domain.work import JobResult
from tokenmill.line.bom import bill_of_materials
from tokenmill.line.job import StationJob
from tokenmill.line.model_card import model_card
from tokenmill.line.provenance import environment, source_digest, statement

SCHEMA = "tokenmill.release/1"
DATA_OUTPUTS = (
    "rows",
    "intake_quarantine",
    "train",
    "validation",
    "test",
    "quarantine",
    "predictions",
    "weights",
    "weights_hf",
)


def run(job: StationJob) -> JobResult:
    """Write the release. Raises ``DataError`` when no station made an adapter or an evaluation."""
    params = job.params
    assert isinstance(params, PackParams)
    job.report(0, 3, "parts", "collecting")
    release = job.work / "release"
    shutil.rmtree(release, ignore_errors=True)
    release.mkdir()
    evidence = _evidence(job)
    _copy_inputs(job, release)
    facts = _facts(job, evidence)
    _write_json(release / "evidence" / "evaluation.json", evidence)
    job.report(1, 3, "parts", "describing")
    _write_json(release / "bom.cdx.json", bill_of_materials(facts, params.license))
    (release / "model-card.md").write_text(model_card(facts, params), encoding="utf-8")
    # Provenance is about the other files, so it comes after them; the manifest is about all.
    _write_json(release / "provenance.intoto.json", statement(facts, files_of(release)))
    manifest = manifest_of(facts, files_of(release))
    _write_json(release / "manifest.json", manifest)
    job.report(2, 3, "parts", "storing")
    manifest_digest = job.artifacts.put_file(release / "manifest.json")
    outputs = {"release": job.artifacts.put_tree(release), "manifest": manifest_digest}
    size = sum(f["bytes"] for f in manifest["files"])
    job.report(3, 3, "parts", f"{len(manifest['files'])} files")
    return JobResult(
        outputs=outputs,
        metrics={"files": len(manifest["files"]), "bytes": size, "manifest_digest": manifest_digest},
        evidence={
            "manifest_digest": manifest_digest,
            "weights": job.output_digest("weights") or facts["base"]["weights"],
            "adapter": facts["adapter"]["gguf"],
        },
    )


def _evidence(job: StationJob) -> dict[str, Any]:
    """What evaluate found, and the gate's verdict on it, without the trail that every station carries."""
    everything = [job.inputs[name].evidence for name in sorted(job.inputs)]
    verdict = next((dict(e) for e in everything if "passed" in e and "reasons" in e), None)
    for found in everything:
        if "pairs" in found and "subjects" in found:
            kept = {k: v for k, v in found.items() if k != "trail"}
            return kept | ({"verdict": verdict} if verdict else {})
    raise DataError(
        f"station {job.station!r} has no evaluation among its inputs",
        expected="the result of an evaluate station",
        fix="Add the evaluate station to 'needs' in the factory file.",
    )


def _copy_inputs(job: StationJob, release: Path) -> None:
    adapter = release / "adapter"
    if not job.output_digest("weights"):  # all weights that were tuned are named by digest, not copied
        shutil.copytree(job.input_path("adapter_hf"), adapter / "hf")
        shutil.copy(job.input_path("adapter_gguf"), adapter / "adapter.gguf")
    if job.output_digest("card"):
        shutil.copytree(job.input_path("card"), release / "data-card")
    # Artifacts are read-only; the copies must not be, or a second attempt could not remove them.
    for folder, _, names in os.walk(release):
        Path(folder).chmod(0o755)
        for name in names:
            (Path(folder) / name).chmod(0o644)


def _facts(job: StationJob, evidence: Mapping[str, Any]) -> dict[str, Any]:
    """All that the documents of a release are written from."""
    trail = job.trail()
    data = {name: digest for name in DATA_OUTPUTS if (digest := job.output_digest(name))}
    intake = next((e for e in trail if e["kind"] == "intake"), {})
    return {
        "line": job.line,
        "run": job.run,
        "base": dict(job.base),
        "adapter": {"gguf": job.output_digest("adapter_gguf"), "hf": job.output_digest("adapter_hf")},
        "champion": {k: job.champion[k] for k in ("id", "weights", "adapter", "digest") if k in job.champion}
        if job.champion
        else None,
        "source": {
            "name": Path(str(intake.get("settings", {}).get("path", ""))).name,
            "sha": intake.get("metrics", {}).get("sha", ""),
        },
        "data": data,
        "trail": trail,
        "evidence": dict(evidence),
        "code": {"version": tokenmill.__version__, "source": source_digest(Path(tokenmill.__file__).parent)},
        "environment": environment(),
    }


def manifest_of(facts: Mapping[str, Any], files: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    """The manifest: what the release is made of and from, every file by digest."""
    evidence = facts["evidence"]
    return {
        "schema": SCHEMA,
        "line": facts["line"],
        "run": facts["run"],
        "base": facts["base"],
        "adapter": facts["adapter"],
        "champion": facts["champion"],
        "data": {"source": facts["source"], "artifacts": facts["data"]},
        "code": facts["code"],
        "environment": facts["environment"],
        "settings": {entry["station"]: entry["settings"] for entry in facts["trail"]},
        "evidence": dict(evidence),
        "files": [
            {"name": name, "sha256": digest, "bytes": size} for name, (digest, size) in sorted(files.items())
        ],
    }


def files_of(directory: Path) -> dict[str, tuple[str, int]]:
    """Relative name of every file below ``directory``, with the hex sha256 and the size of each."""
    found = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            path = Path(folder) / name
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.relative_to(directory).as_posix()] = (digest, path.stat().st_size)
    return dict(sorted(found.items()))


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1))
