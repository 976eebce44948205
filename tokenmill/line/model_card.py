"""The model card of a release, in Markdown: what it is, what it was made from and how well it did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenmill.domain.stations import PackParams


def model_card(facts: Mapping[str, Any], params: PackParams) -> str:
    """The card, from the facts of ``pack`` and what the operator wrote."""
    base = facts["base"]
    front = ["---", f"base_model: {base.get('model', '')}"]
    front += [f"library_name: {'peft' if facts['adapter']['gguf'] else 'transformers'}"]
    front += [f"license: {params.license}"] if params.license else []
    lines = [
        *front,
        "---",
        "",
        f"# {params.title or facts['line']}",
        "",
        *_what(facts),
        f"made by line `{facts['line']}`, run `{facts['run']}`.",
        "",
        *([params.notes, ""] if params.notes else []),
        *_results(facts["evidence"]),
        *_training(facts),
        *_data(facts),
        "## Files",
        "",
        *_files(facts),
        "`manifest.json` names every file by its digest; `bom.cdx.json` is the bill of materials",
        "(CycloneDX 1.6), `provenance.intoto.json` says how it was made (in-toto, SLSA provenance) and",
        "`evidence/` how it was judged.",
        "",
    ]
    return "\n".join(lines)


HOW = {"dpo": "learnt from preferences (DPO)", "full": "tuned in full", "lora": "tuned"}


def _what(facts: Mapping[str, Any]) -> list[str]:
    base = facts["base"]
    tunings = [e["metrics"] for e in facts["trail"] if e["kind"] == "tune"]
    how = HOW[str(tunings[0]["method"])] if tunings else "tuned"
    kind = "A LoRA adapter for" if facts["adapter"]["gguf"] else "All weights of"
    return [f"{kind} `{base.get('model', '')}` (`{base['weights']}`), {how},"]


def _files(facts: Mapping[str, Any]) -> list[str]:
    if facts["adapter"]["gguf"]:
        return [
            "`adapter/adapter.gguf` is what the embedded engine loads, `adapter/hf` the same in PEFT's form."
        ]
    return ["The weights are named by digest in `manifest.json`, and kept in the factory's store."]


def _results(evidence: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Results",
        "",
        f"`{evidence['metric']}` on {evidence['n']} held-out items, greedy, through the serving engine.",
        "",
        "| subject | correct | 95 % interval | tokens/s | median time to first token |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, subject in evidence["subjects"].items():
        if subject:
            lines.append(
                f"| {name} | {subject['correct_milli'] / 10:.1f} % "
                f"| {subject['low_milli'] / 10:.1f} to {subject['high_milli'] / 10:.1f} % "
                f"| {subject['output_tokens_per_s']} | {subject['ttft_ms_p50']} ms |"
            )
    lines.append("")
    for name, pairs in evidence["pairs"].items():
        if pairs:
            lines += [
                f"Against the {name}, the candidate alone is right on {pairs['candidate_only']} items,",
                f"the {name} alone on {pairs['reference_only']}.",
                "",
            ]
    for reason in evidence.get("verdict", {}).get("reasons", ()):
        lines.append(f"- {reason}")
    return [*lines, ""]


def _training(facts: Mapping[str, Any]) -> list[str]:
    tune = next((e for e in facts["trail"] if e["kind"] == "tune"), None)
    if tune is None:
        return []
    metrics = tune["metrics"]
    settings = ", ".join(f"{k} {v}" for k, v in sorted(tune["settings"].items())) or "the defaults"
    return [
        "## Training",
        "",
        f"{metrics['rows']:,} rows, {metrics['tokens']:,} tokens, {metrics['steps']:,} steps in",
        f"{metrics['seconds']:.0f} s ({metrics['precision']}). Settings: {settings}.",
        "",
    ]


def _data(facts: Mapping[str, Any]) -> list[str]:
    curate = next((e for e in facts["trail"] if e["kind"] == "curate"), None)
    source = facts["source"]
    lines = ["## Data", "", f"`{source['name']}` (`{source['sha']}`)."]
    if curate is not None:
        counts = curate["metrics"]
        lines += [
            f"Of {counts['rows_in']:,} rows {counts['kept']:,} were kept: {counts['train_rows']:,} to train,",
            f"{counts['validation_rows']:,} to validate, {counts['test_rows']:,} held out.",
            "See `data-card/card.md`.",
        ]
    return [*lines, ""]
