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


@dataclass(frozen=True, slots=True)
class Judgement:
    """One answer judged. ``correct`` is what the paired test counts; ``fields`` is for JSON answers."""

    correct: bool
    valid: bool  # could be read at all: JSON parsed, label known
    said: str
    fields: Mapping[str, bool] = field(default_factory=dict)


def judge(metric: str, wanted: str, answer: str, labels: frozenset[str] = frozenset()) -> Judgement:
    """Judge ``answer`` by ``metric``: exact_match, json_fields or classification (by ``labels``)."""
    if metric == "json_fields":
        return _judge_json(wanted, answer)
    if metric == "classification":
        said = normal_label(answer)
        return Judgement(said == normal_label(wanted), said in labels, said)
    said = answer.strip()
    return Judgement(said == wanted.strip(), bool(said), said)


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
