"""From an answer back to what made it: release, run, rows of data, code, settings, evaluation, joules.

Each link was written down when it happened: the settlement in the ledger, the release in the registry, its
manifest among the artifacts. What is no longer kept is left out and said, never guessed. Blocks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from tokenmill.console.context import ApiContext
from tokenmill.domain.codec import to_plain
from tokenmill.domain.errors import NotFoundError, TokenmillError
from tokenmill.domain.ledger import Settlement
from tokenmill.domain.work import Release, Run
from tokenmill.store.artifacts import Artifacts

ROWS_MOST = 1000
SPLITS = ("train", "validation", "test")
LINE_BYTES = 4 * 1024 * 1024


def trace(context: ApiContext, name: str, rows: int, offset: int) -> dict[str, Any]:
    """Everything known behind an answer. ``name`` is an ``x-request-id`` or the id in the answer's body;
    ``rows`` of the training rows are listed from number ``offset`` on. Raises ``NotFoundError``."""
    settlement = context.store.ledger.find(name)
    if settlement is None:
        raise NotFoundError(
            f"no answer is called {name!r}",
            expected="the x-request-id header of an answer, or the id in its body",
            fix="An answer is in the ledger half a second after it was given.",
        )
    missing: list[str] = []
    release = _release(context, settlement.release)
    manifest = _manifest(context, release, missing) if release is not None else {}
    run = context.state.runs.get(release.origin) if release is not None else None
    if settlement.release and release is None:
        missing.append(f"release {settlement.release} is not in the registry")
    if release is not None and release.line and run is None:
        missing.append(f"run {release.origin} is kept no more; what it used is in the ledger, not by station")
    return {
        "answer": _answer(context, settlement),
        "release": _release_view(context, release),
        "run": _run(run, release),
        "data": _data(context, manifest, rows, offset, missing),
        "code": manifest.get("code", {}),
        "environment": manifest.get("environment", {}),
        "settings": manifest.get("settings", {}),
        "evaluation": _evaluation(release, manifest),
        "energy": _energy(context, settlement, run),
        "missing": missing,
    }


def _answer(context: ApiContext, settlement: Settlement) -> dict[str, Any]:
    shown: dict[str, Any] = to_plain(settlement)
    good = context.store.ledger.feedback(settlement.request)
    shown["feedback"] = "" if good is None else "good" if good else "bad"
    return shown


def _release(context: ApiContext, name: str) -> Release | None:
    return context.state.releases.get(name) or (context.store.registry.release(name) if name else None)


def _release_view(context: ApiContext, release: Release | None) -> dict[str, Any] | None:
    if release is None:
        return None
    recall = context.state.recalls.get(release.id)
    return {**to_plain(release), "recalled": to_plain(recall) if recall else None}


def _manifest(context: ApiContext, release: Release, missing: list[str]) -> dict[str, Any]:
    """The manifest in a line's release; imported weights have none."""
    if not release.line:
        return {}
    try:
        path = Artifacts(context.paths.artifacts).path(release.digest)
        found = msgspec.json.decode((path / "manifest.json").read_bytes())
    except (TokenmillError, OSError, msgspec.DecodeError) as error:
        missing.append(f"the manifest of {release.id} cannot be read: {error}")
        return {}
    return found if isinstance(found, dict) else {}


def _run(run: Run | None, release: Release | None) -> dict[str, Any] | None:
    if run is None:
        return {"id": release.origin, "kept": False} if release is not None and release.line else None
    return {
        "id": run.id,
        "kept": True,
        "line": run.line,
        "by": run.by,
        "parent": run.parent,
        "submitted_us": run.submitted_us,
        "ended_us": run.ended_us,
        "stations": [
            {
                "name": s.name,
                "status": s.status.value,
                "reason": s.reason,
                "input_digest": s.input_digest,
                "outputs": dict(s.result.outputs) if s.result else {},
                "usage": to_plain(s.usage),
            }
            for s in run.stations
        ],
    }


def _data(
    context: ApiContext, manifest: dict[str, Any], rows: int, offset: int, missing: list[str]
) -> dict[str, Any]:
    data = dict(manifest.get("data", {}))
    if not rows or not data:
        return data
    digest = dict(data.get("artifacts", {})).get("train", "")
    try:
        path = Artifacts(context.paths.artifacts).path(digest)
        data["rows"] = list(islice(_rows(path), offset, offset + rows))
    except (TokenmillError, OSError) as error:
        missing.append(f"the training rows cannot be read: {error}")
    return data


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Training rows: where each stood in the source, its digest and what it says."""
    with path.open("rb") as file:
        while line := file.readline(LINE_BYTES):
            if not line.strip():
                continue
            row = json.loads(line)
            yield {key: row[key] for key in ("n", "line", "digest", "messages") if key in row}


def _evaluation(release: Release | None, manifest: dict[str, Any]) -> dict[str, Any]:
    verdict = to_plain(release.verdict) if release is not None and release.verdict is not None else None
    evidence = manifest.get("evidence", {})
    kept = ("metric", "n", "items_digest", "subjects", "pairs")
    return {"verdict": verdict, **{name: evidence[name] for name in kept if name in evidence}}


def _energy(context: ApiContext, settlement: Settlement, run: Run | None) -> dict[str, Any]:
    """Millijoules of this answer, and of the run that made its release."""
    postings = context.store.ledger.postings(settlement.request)
    answer_mj = sum(p.amount for p in postings if p.unit == "energy_mj")
    run_mj = sum(s.usage.energy_mj for s in run.stations) if run is not None else None
    sources = (
        {s.usage.energy_source for s in run.stations if s.usage.energy_source} if run is not None else set()
    )
    return {"answer_mj": answer_mj, "run_mj": run_mj, "run_source": "; ".join(sorted(sources))}
