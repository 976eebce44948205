"""How a model's answer is read and judged against the wanted one. Asks no model and draws no interval."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn


class AnswerError(ValueError):
    """An answer is not what it should be; the text says why."""


GRADED = ("f1", "log_likelihood", "judge", "lm_eval")
"""Metrics whose scores are more than right or wrong."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One answer judged. ``correct`` is what McNemar's test counts; ``fields`` is for JSON answers.

    ``milli`` is the score of a graded metric in thousandths (of a point, or of a nat for a log-likelihood).
    """

    correct: bool
    valid: bool  # could be read at all: JSON parsed, label known
    said: str
    fields: Mapping[str, bool] = field(default_factory=dict)
    milli: int | None = None
    graded: bool = True  # a judge gave it a grade; what has none is compared with nothing

    @property
    def score_milli(self) -> int:
        return (1000 if self.correct else 0) if self.milli is None else self.milli


@dataclass(frozen=True, slots=True)
class Rules:
    """What judging needs beside the two texts."""

    labels: frozenset[str] = frozenset()
    pattern: str = ""
    schema: Mapping[str, Any] | None = None


def judge(metric: str, wanted: str, answer: str, rules: Rules | frozenset[str] = Rules()) -> Judgement:
    """Judge ``answer`` by ``metric``; ``rules`` may be only the labels of a classification."""
    if isinstance(rules, frozenset):
        rules = Rules(labels=rules)
    labels = rules.labels
    if metric == "json_fields":
        return _judge_json(wanted, answer)
    if metric == "f1":
        score = token_f1(wanted, answer)
        return Judgement(score == 1.0, bool(answer.strip()), answer.strip(), milli=round(1000 * score))
    if metric == "regex":
        said, right = _matched(rules.pattern, answer), _matched(rules.pattern, wanted)
        return Judgement(said is not None and said == right, said is not None, answer.strip())
    if metric == "json_schema":
        return _judge_schema(rules.schema or {}, answer)
    if metric == "classification":
        said = normal_label(answer)
        return Judgement(said == normal_label(wanted), said in labels, said)
    said = answer.strip()
    return Judgement(said == wanted.strip(), bool(said), said)


def _matched(pattern: str, text: str) -> str | None:
    """The last match of ``pattern`` (its first group, if any) without spaces around it; answers come last."""
    found = list(re.finditer(pattern, text))
    if not found:
        return None
    return str(found[-1].group(1) if found[-1].re.groups else found[-1].group(0)).strip()


def token_f1(wanted: str, answer: str) -> float:
    """F1 of the words that both have (Rajpurkar et al., SQuAD, 2016), words compared as labels are."""
    one, other = Counter(normal_label(wanted).split()), Counter(normal_label(answer).split())
    if not one or not other:
        return float(one == other)
    shared = sum((one & other).values())
    return 2 * shared / (one.total() + other.total())


def _judge_schema(schema: Mapping[str, Any], answer: str) -> Judgement:
    import jsonschema

    try:
        found = parse_object(answer)
    except AnswerError:
        return Judgement(False, False, answer.strip())
    good = jsonschema.Draft202012Validator(dict(schema)).is_valid(found)
    return Judgement(good, True, answer.strip())


def _judge_json(wanted: str, answer: str) -> Judgement:
    reference = parse_object(wanted)
    try:
        found = parse_object(answer)
    except AnswerError:
        return Judgement(False, False, answer.strip(), dict.fromkeys(sorted(reference), False))
    fields = {name: name in found and _same(found[name], reference[name]) for name in sorted(reference)}
    correct = all(fields.values()) and found.keys() == reference.keys()
    return Judgement(correct, True, answer.strip(), fields)


def parse_object(text: str) -> dict[str, Any]:
    """Read ``text`` as exactly one JSON object (RFC 8259), without repeated keys. Raises ``AnswerError``."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        names = Counter(name for name, _ in items)
        repeated = [name for name, count in names.items() if count > 1]
        if repeated:
            raise AnswerError(f"the key {repeated[0]!r} is repeated")
        return dict(items)

    try:
        found = json.loads(text, object_pairs_hook=pairs, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise AnswerError(str(error)) from error
    if not isinstance(found, dict):
        raise AnswerError(f"a JSON {type(found).__name__}, not an object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise AnswerError(f"{name} is not JSON")


def _same(one: Any, other: Any) -> bool:
    # 1 == True in Python, but not in JSON.
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


_LABEL_PUNCTUATION = re.compile(r"[^\w]+|_+")


def normal_label(text: str) -> str:
    """A label as it is compared: case, punctuation, underscores and repeated spaces do not matter."""
    return _LABEL_PUNCTUATION.sub(" ", text.casefold()).strip()


def macro_f1(pairs: Sequence[tuple[str, str]]) -> float:
    """Mean F1 over the wanted labels, from (wanted, said) pairs of normal labels; 0.0 without pairs.

    A said label that nobody wanted costs recall of the wanted one, and has no class of its own.
    """
    wanted = Counter(w for w, _ in pairs)
    said = Counter(s for _, s in pairs)
    hits = Counter(w for w, s in pairs if w == s)
    if not wanted:
        return 0.0
    return sum(2 * hits[label] / (wanted[label] + said[label]) for label in sorted(wanted)) / len(wanted)
