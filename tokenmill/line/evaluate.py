"""Evaluate: base, champion and candidate answer the same held-out questions through the serving engine.

Answers are greedy. It measures and pairs; whether the candidate is good enough is for the gate to say.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from tokenmill.domain.codec import digest_of
from tokenmill.domain.stations import EvaluateParams
from tokenmill.domain.work import JobResult
from tokenmill.engine.generate import complete_all
from tokenmill.line.answers import Judgement, judge, macro_f1, normal_label
from tokenmill.line.intervals import bootstrap, percentile, wilson
from tokenmill.line.job import StationJob, write_atomically
from tokenmill.line.rows import Row, estimated_tokens, read_rows, write_jsonl

MIN_CONTEXT = 512
TOKENS_PER_ESTIMATE = 2  # a context holds this many times the estimated tokens, since the estimate is cheap


@dataclass(frozen=True, slots=True)
class Subject:
    """Weights under judgement: ``lora`` is an adapter's digest or empty."""

    name: str  # base, champion or candidate
    weights: str
    lora: str


class Prediction(msgspec.Struct, frozen=True):
    text: str
    input_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float
    finish_reason: str


class Predictions(msgspec.Struct, frozen=True):
    """What one subject answered to all items, and how long all of it took."""

    answers: tuple[Prediction, ...]
    seconds: float


def run(job: StationJob) -> JobResult:
    """Ask every subject, judge, and pair the candidate with each reference."""
    params = job.params
    assert isinstance(params, EvaluateParams)
    items = chosen(list(read_rows(job.input_path("test"))), params.max_items, params.seed)
    job.input_path("adapter_gguf")
    subjects = _subjects(job)
    items_digest = digest_of([row.digest for row in items])
    labels = frozenset(normal_label(row.completion) for row in items)
    judged: dict[str, list[Judgement]] = {}
    reports: dict[str, dict[str, Any]] = {}
    answers: dict[str, Predictions] = {}
    for at, subject in enumerate(subjects):
        answers[subject.name], reused = _predictions(
            job, params, subject, items, items_digest, at, len(subjects)
        )
        judged[subject.name] = [
            judge(params.metric, row.completion, answer.text, labels)
            for row, answer in zip(items, answers[subject.name].answers, strict=True)
        ]
        reports[subject.name] = {
            "weights": subject.weights,
            "adapter": subject.lora,
            **scored(params.metric, items, judged[subject.name], params.seed),
            **_speed(answers[subject.name]),
            "reused": reused,
        }
    predictions = job.work / "predictions.jsonl"
    write_jsonl(predictions, _lines(items, answers, judged))
    pairs = {
        name: paired(judged["candidate"], judged[name]) if name in judged else None
        for name in ("base", "champion")
    }
    evidence = {
        "metric": params.metric,
        "n": len(items),
        "items_digest": items_digest,
        "subjects": {name: reports.get(name) for name in ("base", "champion", "candidate")},
        "pairs": pairs,
    }
    metrics = {"n": len(items), "metric": params.metric}
    for name, report in reports.items():
        metrics[f"{name}_correct_milli"] = report["correct_milli"]
        metrics[f"{name}_ci_milli"] = f"{report['low_milli']}-{report['high_milli']}"
        metrics[f"{name}_tokens_per_s"] = report["output_tokens_per_s"]
    return JobResult({"predictions": job.artifacts.put_file(predictions, move=True)}, metrics, evidence)


def chosen(rows: Sequence[Row], most: int, seed: int) -> list[Row]:
    """At most ``most`` of ``rows``, by a hash that does not depend on their order."""
    drawn = sorted(rows, key=lambda r: (hashlib.sha256(f"{seed}:{r.digest}".encode()).digest(), r.n))
    return drawn[:most]


def _subjects(job: StationJob) -> list[Subject]:
    base = Subject("base", job.base["weights"], "")
    subjects = [base]
    if job.champion and job.champion.get("weights"):
        champion = Subject("champion", str(job.champion["weights"]), str(job.champion.get("adapter") or ""))
        subjects.append(champion)
    return [*subjects, Subject("candidate", base.weights, job.output_digest("adapter_gguf"))]


def _predictions(
    job: StationJob,
    params: EvaluateParams,
    subject: Subject,
    items: Sequence[Row],
    items_digest: str,
    at: int,
    subjects: int,
) -> tuple[Predictions, bool]:
    """What ``subject`` answers, and whether that was known already: the same weights, items and settings."""
    longest = max(estimated_tokens(row) for row in items) * TOKENS_PER_ESTIMATE + params.max_tokens
    context = max(MIN_CONTEXT, 1 << (longest - 1).bit_length())
    settings = {
        "weights": subject.weights,
        "lora": subject.lora,
        "items": items_digest,
        "max_tokens": params.max_tokens,
        "slots": params.slots,
        "context": context,
        "engine": _engine_version(),
    }
    known = job.cache / "predictions" / f"{digest_of(settings).removeprefix('sha256:')}.json"
    total = subjects * len(items)
    if (found := _read(known, len(items))) is not None:
        job.report((at + 1) * len(items), total, "answers", f"{subject.name}: known from before")
        return found, True
    started = time.monotonic()
    completions = complete_all(
        job.artifacts.path(subject.weights),
        [[dict(m) for m in row.messages[:-1]] for row in items],
        lora=job.artifacts.path(subject.lora) if subject.lora else None,
        max_tokens=params.max_tokens,
        slots=params.slots,
        context_tokens=context,
        threads=job.threads(params.threads),
        report=lambda done, _: job.report(at * len(items) + done, total, "answers", subject.name),
    )
    answers = tuple(
        Prediction(c.text, c.input_tokens, c.output_tokens, c.ttft_s, c.tpot_s, c.finish_reason)
        for c in completions
    )
    made = Predictions(answers, time.monotonic() - started)
    known.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(known, msgspec.to_builtins(made))
    return made, False


def _read(path: Path, items: int) -> Predictions | None:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Predictions)
    except (OSError, msgspec.DecodeError):
        return None
    return found if len(found.answers) == items else None


def _engine_version() -> str:
    try:
        return f"xllamacpp {metadata.version('xllamacpp')}"
    except metadata.PackageNotFoundError:
        return "unknown"


def scored(metric: str, items: Sequence[Row], judged: Sequence[Judgement], seed: int) -> dict[str, Any]:
    """Scores of one subject in thousandths, with 95 % intervals: Wilson for shares, else bootstrap."""
    n = len(judged)
    hits = sum(j.correct for j in judged)
    low, high = wilson(hits, n)
    report: dict[str, Any] = {
        "correct": hits,
        "correct_milli": _milli(hits / n if n else 0.0),
        "low_milli": _milli(low),
        "high_milli": _milli(high),
        "valid_milli": _milli(sum(j.valid for j in judged) / n if n else 0.0),
    }
    if metric == "json_fields":
        names = sorted({name for j in judged for name in j.fields})
        report["fields_milli"] = {
            name: _milli(_share([j.fields[name] for j in judged if name in j.fields])) for name in names
        }
        shares = [_share(list(j.fields.values())) for j in judged]
        low, high = bootstrap(shares, lambda values: sum(values) / len(values), seed)
        report["all_fields_milli"] = _milli(sum(shares) / n if n else 0.0)
        report["all_fields_low_milli"], report["all_fields_high_milli"] = _milli(low), _milli(high)
    if metric == "classification":
        said = [(normal_label(row.completion), j.said) for row, j in zip(items, judged, strict=True)]
        low, high = bootstrap(said, macro_f1, seed)
        report["macro_f1_milli"] = _milli(macro_f1(said))
        report["macro_f1_low_milli"], report["macro_f1_high_milli"] = _milli(low), _milli(high)
    return report


def paired(candidate: Sequence[Judgement], reference: Sequence[Judgement]) -> dict[str, int]:
    """How the two did on the same items: both right, neither, only one of them."""
    counts = {"both": 0, "neither": 0, "candidate_only": 0, "reference_only": 0}
    for one, other in zip(candidate, reference, strict=True):
        if one.correct == other.correct:
            counts["both" if one.correct else "neither"] += 1
        else:
            counts["candidate_only" if one.correct else "reference_only"] += 1
    return counts


def _speed(made: Predictions) -> dict[str, Any]:
    answers = made.answers
    tokens = sum(a.output_tokens for a in answers)
    ttft = [a.ttft_s * 1000 for a in answers]
    tpot = [a.tpot_s * 1000 for a in answers if a.output_tokens > 1]
    return {
        "seconds": round(made.seconds, 3),
        "input_tokens": sum(a.input_tokens for a in answers),
        "output_tokens": tokens,
        "output_tokens_per_s": round(tokens / made.seconds, 1) if made.seconds else 0.0,
        "ttft_ms_p50": round(percentile(ttft, 0.5), 1),
        "ttft_ms_p95": round(percentile(ttft, 0.95), 1),
        "tpot_ms_p50": round(percentile(tpot, 0.5), 2),
        "cut": sum(a.finish_reason == "length" for a in answers),
    }


def _lines(
    items: Sequence[Row], answers: Mapping[str, Predictions], judged: Mapping[str, Sequence[Judgement]]
) -> list[dict[str, Any]]:
    """One line per item: the question, the wanted answer, and what each subject said."""
    return [
        {
            "n": row.n,
            "digest": row.digest,
            "prompt": row.prompt,
            "wanted": row.completion,
            **{
                name: {"said": answers[name].answers[at].text, "correct": judged[name][at].correct}
                for name in judged
            },
        }
        for at, row in enumerate(items)
    ]


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def _milli(share: float) -> int:
    return round(1000 * share)
