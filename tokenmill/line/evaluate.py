"""Evaluate: base, champion and candidate answer the same held-out questions through the serving engine.

Answers are greedy. It measures and pairs; whether the candidate is good enough is for the gate to say.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from tokenmill.domain.codec import digest_of
from tokenmill.domain.stations import EvaluateParams
from tokenmill.domain.work import JobResult
from tokenmill.engine.generate import complete_all
from tokenmill.line.answers import Judgement, macro_f1, normal_label
from tokenmill.line.harness import Harness
from tokenmill.line.intervals import bootstrap, percentile, wilson
from tokenmill.line.job import StationJob, write_json
from tokenmill.line.judging import (
    Subject,
    differences,
    graded_report,
    is_graded,
    judgements,
    rules_of,
    ungraded_report,
)
from tokenmill.line.rows import Row, estimated_tokens, read_rows, write_jsonl
from tokenmill.line.safety import PROBES, checked

MIN_CONTEXT = 512
SAFETY_TOKENS = 96
TOKENS_PER_ESTIMATE = 2  # a context holds this many times the estimated tokens, since the estimate is cheap


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
    subjects = _subjects(job)
    items_digest = digest_of([row.digest for row in items])
    rules = rules_of(job, params, items)
    harness = Harness(job, params) if "lm_eval" in (params.metric, *params.also) else None
    judged: dict[str, list[Judgement]] = {}
    reports: dict[str, dict[str, Any]] = {}
    answers: dict[str, Predictions] = {}
    for at, subject in enumerate(subjects):
        made, reused = _predictions(job, params, subject, items, items_digest, at, len(subjects))
        texts = [answer.text for answer in made.answers]
        if harness is not None and params.metric == "lm_eval":
            found: list[Judgement] | None = harness.judgements(subject)
        else:
            found = judgements(job, params, params.metric, subject, items, texts, rules)
        if found is None:
            continue
        answers[subject.name], judged[subject.name] = made, found
        reports[subject.name] = {
            "weights": subject.weights,
            "adapter": subject.lora,
            **scored(params.metric, items, found, params.seed),
            **_speed(made),
            "reused": reused,
        }
        if harness is not None:
            reports[subject.name] |= harness.report(subject)
        for metric in (name for name in params.also if name != "lm_eval"):
            more = judgements(job, params, metric, subject, items, texts, rules)
            reports[subject.name] |= graded_report(metric, more) if more is not None else {}
        if params.safety:
            reports[subject.name] |= _safety(job, params, subject)
    predictions = job.work / "predictions.jsonl"
    write_jsonl(predictions, _lines(items, answers, judged if params.metric != "lm_eval" else {}))
    outputs = {"predictions": job.artifacts.put_file(predictions, move=True)}
    evidence = _evidence(job, params, items_digest, subjects, judged, reports)
    if harness is not None:
        documents = job.work / "documents.jsonl"
        write_jsonl(documents, harness.lines(subjects))
        outputs["documents"] = job.artifacts.put_file(documents, move=True)
        evidence["digests"] |= (named := harness.digests(subjects[-1]))
        if params.metric == "lm_eval":
            evidence["digests"]["items"] = evidence["items_digest"] = named["lm_eval_documents"]
    metrics = {"n": evidence["n"], "metric": params.metric}
    for name, report in reports.items():
        metrics[f"{name}_correct_milli"] = report["correct_milli"]
        metrics[f"{name}_ci_milli"] = f"{report['low_milli']}-{report['high_milli']}"
        metrics[f"{name}_tokens_per_s"] = report["output_tokens_per_s"]
        metrics |= {f"{name}_safety_milli": report["safety_milli"]} if "safety_milli" in report else {}
    return JobResult(outputs, metrics, evidence)


def _evidence(
    job: StationJob,
    params: EvaluateParams,
    items_digest: str,
    subjects: Sequence[Subject],
    judged: Mapping[str, list[Judgement]],
    reports: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """What the gate decides on: pairs or differences by reference, figures, and the digests of all of it."""
    names = ("base", "champion")
    candidate = judged["candidate"]
    graded = is_graded(params.metric)
    evidence: dict[str, Any] = {
        "metric": params.metric,
        "n": len(candidate),
        "items_digest": items_digest,
        "subjects": {name: reports.get(name) for name in (*names, "candidate")},
        "pairs": {name: paired(candidate, judged[name]) if name in judged else None for name in names},
        "digests": {
            "data": job.output_digest("test"),
            "items": items_digest,
            "engine": _engine_version(),
            "settings": digest_of(dict(job.settings)),
            **{f"{s.name}_weights": s.weights for s in subjects},
            **{f"{s.name}_adapter": s.lora for s in subjects if s.lora},
        },
    }
    if graded:
        evidence |= {
            "graded": True,
            "pairs": dict.fromkeys(names),
            "differences_milli": {
                name: differences(candidate, judged[name]) if name in judged else None for name in names
            },
            "ungraded": {
                name: len(candidate) - len(differences(candidate, judged[name]))
                for name in names
                if name in judged
            },
        }
    return evidence


def _safety(job: StationJob, params: EvaluateParams, subject: Subject) -> dict[str, Any]:
    """The share of the fixed probes that ``subject`` passes, answered by the serving engine."""
    completions = complete_all(
        job.artifacts.path(subject.weights),
        [[dict(m) for m in probe.messages] for probe in PROBES],
        lora=job.artifacts.path(subject.lora) if subject.lora else None,
        max_tokens=SAFETY_TOKENS,
        slots=params.slots,
        context_tokens=MIN_CONTEXT,
        threads=job.threads(params.threads),
    )
    passed, failed = checked([completion.text for completion in completions])
    return {"safety_milli": round(1000 * passed / len(PROBES)), "safety_failed": list(failed)}


def chosen(rows: Sequence[Row], most: int, seed: int) -> list[Row]:
    """At most ``most`` of ``rows``, by a hash that does not depend on their order."""
    drawn = sorted(rows, key=lambda r: (hashlib.sha256(f"{seed}:{r.digest}".encode()).digest(), r.n))
    return drawn[:most]


def _subjects(job: StationJob) -> list[Subject]:
    base = Subject("base", job.base["weights"], "")
    subjects = [base]
    if job.champion and job.champion.get("weights"):
        lora, release = str(job.champion.get("adapter") or ""), str(job.champion.get("digest") or "")
        subjects.append(Subject("champion", str(job.champion["weights"]), lora, release))
    whole = job.output_digest("weights")
    if whole:
        return [*subjects, Subject("candidate", whole, "")]
    job.input_path("adapter_gguf")
    lora, tree = job.output_digest("adapter_gguf"), job.output_digest("adapter_hf")
    return [*subjects, Subject("candidate", base.weights, lora, tree)]


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
    write_json(known, msgspec.to_builtins(made))
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
        return ""  # a gate does not pass what was judged by an engine that nobody can name


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
    if is_graded(metric):
        scores = [j.score_milli for j in judged if j.graded]
        mean = sum(scores) / len(scores) if scores else 0.0
        low, high = bootstrap(scores, lambda v: sum(v) / len(v), seed)
        report |= {"score_milli": round(mean), "low_milli": round(low), "high_milli": round(high)}
        report |= ungraded_report(metric, judged)
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
                name: {
                    "said": answers[name].answers[at].text,
                    **(_judged(judged[name][at]) if name in judged else {}),
                }
                for name in answers
            },
        }
        for at, row in enumerate(items)
    ]


def _judged(found: Judgement) -> dict[str, Any]:
    return {"correct": found.correct, "score_milli": found.score_milli if found.graded else None}


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def _milli(share: float) -> int:
    return round(1000 * share)
