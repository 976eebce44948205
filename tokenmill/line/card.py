"""The data card: what a data set is, what was dropped and why, and how it was split; as JSON and Markdown."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tokenmill.domain.codec import to_plain
from tokenmill.domain.stations import CurateParams
from tokenmill.line.curated import Curated
from tokenmill.line.intervals import percentile
from tokenmill.line.job import StationJob
from tokenmill.line.rows import Row, estimated_tokens

MAX_CONFLICTS = 50
MAX_ANSWERS = 100


def card_of(
    job: StationJob, params: CurateParams, result: Curated, outputs: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that the card says, as plain values."""
    intake = next((e for e in job.trail() if e["kind"] == "intake"), {})
    metrics = intake.get("metrics", {})
    return {
        "schema": "tokenmill.data-card/1",
        "line": job.line,
        "run": job.run,
        "source": {
            "name": Path(str(intake.get("settings", {}).get("path", ""))).name,
            "sha": metrics.get("sha", ""),
            "bytes": metrics.get("bytes", 0),
            "rows": metrics.get("rows_in", result.rows_in),
            "quarantined_by_intake": metrics.get("quarantined", 0),
            "first_reasons": metrics.get("first_reasons", []),
        },
        "rows_in": result.rows_in,
        "kept": result.kept,
        "dropped": len(result.dropped),
        "dropped_by_reason": dict(result.reasons.most_common()),
        "conflicts": {"prompts": len(result.conflicts), "shown": result.conflicts[:MAX_CONFLICTS]},
        "languages": dict(result.languages.most_common()) or None,
        "redacted": dict(sorted(result.redactions.items())) if params.redact_pii else None,
        "splits": {name: _split(rows, outputs[name], params) for name, rows in result.splits.items()},
        "settings": to_plain(params),
    }


def _split(rows: Sequence[Row], digest: str, params: CurateParams) -> dict[str, Any]:
    tokens = [estimated_tokens(row) for row in rows]
    answers = Counter(row.completion.strip() for row in rows)
    body: dict[str, Any] = {
        "rows": len(rows),
        "groups": len({row.group for row in rows}),
        "digest": digest,
        "tokens_estimated": sum(tokens),
        "tokens_p50": percentile(tokens, 0.5),
        "tokens_p99": percentile(tokens, 0.99),
        "distinct_answers": len(answers),
    }
    if params.answer == "label":
        body["answers"] = dict(answers.most_common(MAX_ANSWERS))
    return body


def write_card(card: Mapping[str, Any], directory: Path) -> Path:
    """Write ``card.json`` and ``card.md`` into a fresh ``directory`` and return it."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / "card.json").write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=1))
    (directory / "card.md").write_text(markdown(card), encoding="utf-8")
    return directory


def markdown(card: Mapping[str, Any]) -> str:
    """The card for people."""
    source = card["source"]
    lines = [
        f"# Data card: {source['name'] or card['line']}",
        "",
        f"Source `{source['name']}`, {source['bytes']:,} bytes, `{source['sha']}`.",
        f"{source['rows']:,} rows; {source['quarantined_by_intake']:,} could not be read.",
        f"{card['rows_in']:,} were curated: {card['dropped']:,} dropped, {card['kept']:,} kept.",
        "",
        "| dropped because | rows |",
        "|---|---:|",
        *[f"| {reason} | {count:,} |" for reason, count in card["dropped_by_reason"].items()],
        "",
        "| split | rows | groups | tokens (estimated) | distinct answers |",
        "|---|---:|---:|---:|---:|",
    ]
    counts = ("rows", "groups", "tokens_estimated", "distinct_answers")
    lines += [
        f"| {name} | " + " | ".join(f"{split[k]:,}" for k in counts) + " |"
        for name, split in card["splits"].items()
    ]
    lines += ["", "No group of rows is in two splits.", ""]
    if card["source"]["first_reasons"]:
        lines += ["First rows that could not be read:", ""]
        lines += [f"- {reason}" for reason in card["source"]["first_reasons"]] + [""]
    if card["conflicts"]["prompts"]:
        lines += [
            f"{card['conflicts']['prompts']:,} prompts have more than one answer, the first of them:",
            "",
        ]
        lines += [
            f"- rows {', '.join(map(str, c['rows']))}: `{_cell(c['prompt'])}`"
            for c in card["conflicts"]["shown"][:10]
        ]
        lines += [""]
    if card["redacted"] is not None:
        found = ", ".join(f"{count:,} {kind}" for kind, count in card["redacted"].items()) or "nothing"
        lines += [f"Redacted: {found}.", ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("`", "'").replace("\n", " ")[:160]
