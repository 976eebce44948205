"""What each metric makes of a subject's answers: by rules, by a judge, or by how likely it finds the wanted
ones.

Asks the serving engine nothing; whether the candidate is good enough is for the gate to say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.domain.errors import DataError
from tokenmill.domain.stations import EvaluateParams
from tokenmill.engine.likelihood import mean_log_likelihoods
from tokenmill.line.answers import GRADED, Judgement, Rules, judge, normal_label
from tokenmill.line.job import StationJob
from tokenmill.line.judge import grades
from tokenmill.line.rows import Row
from tokenmill.line.tune import base_directory


@dataclass(frozen=True, slots=True)
class Subject:
    """Weights under judgement: ``lora`` is an adapter's digest or empty."""

    name: str  # base, champion or candidate
    weights: str
    lora: str
    tree: str = ""  # digest of a folder with the adapter in the trainer's form, where there is one


def rules_of(job: StationJob, params: EvaluateParams, items: Sequence[Row]) -> Rules:
    """What the metrics need. Raises ``DataError`` for a schema that cannot be read."""
    labels = frozenset(normal_label(row.completion) for row in items)
    schema = None
    if params.json_schema:
        path = job.factory_dir / params.json_schema
        try:
            schema = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"the JSON schema cannot be read: {error}", where=str(path), expected="a JSON object"
            ) from error
    return Rules(labels, params.pattern, schema)


def judgements(
    job: StationJob,
    params: EvaluateParams,
    metric: str,
    subject: Subject,
    items: Sequence[Row],
    answers: Sequence[str],
    rules: Rules,
) -> list[Judgement] | None:
    """One judgement for each item, or ``None`` where this subject cannot be judged so: the gate then stays
    shut.
    """
    if metric == "judge":
        asked = [(row.prompt, row.completion, text) for row, text in zip(items, answers, strict=True)]
        milli = grades(params, asked)
        return [
            Judgement(m == 1000, m is not None, t, milli=m or 0, graded=m is not None)
            for m, t in zip(milli, answers, strict=True)
        ]
    if metric == "log_likelihood":
        tree = _trainable_tree(job, subject)
        if tree is None:
            return None
        rows = [[dict(m) for m in row.messages] for row in items]
        found = mean_log_likelihoods(base_directory(job), tree if tree != Path() else None, rows)
        return [Judgement(False, True, "", milli=round(1000 * value)) for value in found]
    return [judge(metric, row.completion, text, rules) for row, text in zip(items, answers, strict=True)]


def _trainable_tree(job: StationJob, subject: Subject) -> Path | None:
    """The adapter in the trainer's form; an empty path for the base itself, ``None`` where it is not at
    hand.
    """
    if subject.name == "base":
        return Path()
    if not subject.tree:
        return None
    tree = job.artifacts.path(subject.tree)
    inner = tree / "adapter" / "hf"  # of a release
    return inner if inner.is_dir() else tree


def graded_report(metric: str, judged: Sequence[Judgement]) -> dict[str, Any]:
    """The figures of a metric beyond the main one: ``<metric>_milli``, the mean score in thousandths.

    Without one graded item there is no such figure, and the gate's bounds on it are not kept.
    """
    scores = [j.score_milli for j in judged if j.graded]
    mean = {f"{metric}_milli": round(sum(scores) / len(scores))} if scores else {}
    return mean | ungraded_report(metric, judged)


def ungraded_report(metric: str, judged: Sequence[Judgement]) -> dict[str, Any]:
    """How many answers a judge left ungraded, and their share in thousandths, rounded up."""
    if metric != "judge":
        return {}
    missing = sum(not j.graded for j in judged)
    return {
        "judge_ungraded": missing,
        "judge_ungraded_milli": math.ceil(1000 * missing / max(1, len(judged))),
    }


def differences(candidate: Sequence[Judgement], reference: Sequence[Judgement]) -> list[int]:
    """Candidate's score less the reference's, in thousandths, of each item that was graded for both."""
    both = zip(candidate, reference, strict=True)
    return [a.score_milli - b.score_milli for a, b in both if a.graded and b.graded]


def is_graded(metric: str) -> bool:
    """Whether a metric's scores are more than right or wrong."""
    return metric in GRADED
